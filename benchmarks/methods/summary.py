"""From measured lines to figures: means over runs and pairs, their bootstrap intervals, and tables.

The pairs of noise and timestep are the same for the base and every run, so what makes a pair hard cancels out. A
bootstrap sample draws, within each concept, seeds and pairs with replacement, each pair with its loss before and after
(Efron 1979, percentile method); conditions share the drawn pairs, which makes the ratio of two falls steadier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Line = dict[str, Any]
Array = NDArray[np.float64]

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def times(self, factor: float) -> Estimate:
        """In another unit; the interval turns round where the factor is negative."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Estimate(self.mean * factor, low, high)


@dataclass(frozen=True, slots=True)
class Falls:
    """How far the loss of each pair fell in each run: concept → [seeds, pairs].

    Attributes:
        condition: whose runs they are; conditions draw their seeds apart.
        of: the falls.
        before: mean loss of the base on the same pairs, over all concepts.
    """

    condition: str
    of: Mapping[str, Array]
    before: float

    @property
    def mean(self) -> float:
        """Every concept counts alike."""
        return float(np.mean([fall.mean() for fall in self.of.values()]))

    def estimate(self) -> Estimate:
        """The mean fall."""
        return Estimate(self.mean, *_bounds(self._resampled()))

    def share_of(self, reference: Falls) -> Estimate:
        """The mean fall as a share of another condition's."""
        ratios = self._resampled() / reference._resampled()
        return Estimate(self.mean / reference.mean, *_bounds(ratios))

    def rise(self) -> Estimate:
        """How far the mean loss rose, as a share of what it was."""
        return self.estimate().times(-1 / self.before)

    def rise_less(self, other: Falls) -> Estimate:
        """By how much another condition's loss rose less, on the same pairs, as a share of what it was."""
        differences = other._resampled() - self._resampled()
        return Estimate(other.mean - self.mean, *_bounds(differences)).times(1 / self.before)

    def _resampled(self) -> Array:
        """The mean fall of every bootstrap sample, [RESAMPLES]."""
        means = []
        for name, fall in self.of.items():
            seeds = _weights(fall.shape[0], "seeds", self.condition, name)
            pairs = _weights(fall.shape[1], "pairs", name)
            means.append(np.einsum("rs,sp,rp->r", seeds, fall, pairs))
        return np.asarray(np.mean(means, 0), np.float64)


def falls(condition: str, part: str, bases: Sequence[Line], runs: Sequence[Line]) -> Falls | None:
    """The falls of one condition's runs.

    Args:
        condition: as the runs name it.
        part: which losses: ``held_out``, ``other``, ``known`` or ``class``.
        bases: what the base does by itself, a line for each concept.
        runs: of these concepts, of any condition.

    Returns:
        None where nothing was measured.
    """
    of, before = {}, []
    for base in bases:
        after = [run["losses"].get(part) for run in _of(runs, condition, base["concept"])]
        if part in base["losses"] and after:
            start = np.asarray(base["losses"][part], np.float64).ravel()
            of[base["concept"]] = np.stack([start - np.asarray(losses, np.float64).ravel() for losses in after])
            before.append(start.mean())
    return Falls(condition, of, float(np.mean(before))) if of else None


def accuracy(lines: Sequence[Line], what: str) -> tuple[int, int]:
    """(pictures nearest to a drawing of the right ``concept`` or ``style``, pictures)."""
    found = [line["nearest"] for line in lines]
    return sum(entry[what] for entry in found), sum(entry["pictures"] for entry in found)


def teaching_table(bases: Sequence[Line], runs: Sequence[Line], conditions: Sequence[str], reference: str) -> list[str]:
    """Markdown: what each condition taught, over all concepts together, and what it cost the base's knowledge."""
    measured = {condition: falls(condition, "held_out", bases, runs) for condition in conditions}
    style = all("other" not in base["losses"] for base in bases)
    heads = ["method", "held-out loss", "fall", f"of {reference}'s fall"]
    heads += [] if style else ["fall on another drawing", "class: loss rises"]
    heads += ["known drawings: loss rises", "nearest: style" if style else "nearest: subject"]
    aspect = "style" if style else "concept"
    start = next(fall for fall in measured.values() if fall is not None).before
    rows = [["the base", f"{start:.4f}", *[""] * (len(heads) - 3), _percent_of(accuracy(bases, aspect))]]
    for condition, fall in measured.items():
        if fall is None:
            continue
        share = "" if condition == reference or not (other := measured[reference]) else _percent(fall.share_of(other))
        row = [f"`{condition}`", f"{start - fall.mean:.4f}", _loss(fall.estimate()), share]
        if not style:
            row += [_fall_on(condition, "other", bases, runs), _rise_on(condition, "class", bases, runs)]
        row.append(_rise_on(condition, "known", bases, runs))
        rows.append([*row, _percent_of(accuracy(_of(runs, condition), aspect))])
    return _table(heads, rows)


def prior_sentence(bases: Sequence[Line], runs: Sequence[Line], plain: str, prior: str) -> str:
    """What prior preservation does to the loss of the class; empty where it was not measured."""
    without, with_it = (falls(condition, "class", bases, runs) for condition in (plain, prior))
    if without is None or with_it is None:
        return ""
    less = without.rise_less(with_it)
    return f"With prior preservation, the loss of the class rises less, by this share of the base's: {_percent(less)}."


def apart_table(bases: Sequence[Line], runs: Sequence[Line], conditions: Sequence[str]) -> list[str]:
    """Markdown: how far the held-out loss of each concept fell."""
    rows = [
        [f"`{condition}`", *(_fall_on(condition, "held_out", [base], runs) for base in bases)]
        for condition in conditions
    ]
    return _table(["fall of the held-out loss", *(base["concept"] for base in bases)], rows)


def cost_table(runs: Sequence[Line], conditions: Sequence[str]) -> list[str]:
    """Markdown: what a run costs; medians over all runs, and the largest peak."""
    heads = ["method", "runs", "trained numbers", "file", "processor s", "wall s", "steps/s", "peak memory"]
    rows = []
    for condition in conditions:
        found = _of(runs, condition)
        if not found:
            continue
        middle = {
            key: float(np.median([run[key] for run in found]))
            for key in ("parameters", "bytes", "cpu_seconds", "seconds", "steps_per_second")
        }
        peak = max(run["mib"] for run in found)
        cells = [f"{middle['parameters']:,.0f}", _size(middle["bytes"]), f"{middle['cpu_seconds']:.0f}"]
        cells += [f"{middle['seconds']:.0f}", f"{middle['steps_per_second']:.1f}", f"{peak:.0f} MiB"]
        rows.append([f"`{condition}`", str(len(found)), *cells])
    return _table(heads, rows)


def settings_table(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown: the hyper-parameters of each method, and among how many they were chosen."""
    rows = []
    for method, entry in methods.items():
        keys = " ".join(f"{key}={_spelled(value)}" for key, value in entry["chosen"].items())
        rows.append([f"`{method}`", f"`{keys}`", str(len(entry["tried"]))])
    return _table(["method", "chosen", "combinations tried"], rows)


def _of(runs: Sequence[Line], condition: str, concept: str | None = None) -> list[Line]:
    return [run for run in runs if run["condition"] == condition and concept in (None, run["concept"])]


def _weights(count: int, *words: str) -> Array:
    """How much each of `count` things counts in every bootstrap sample, [RESAMPLES, count]."""
    digest = hashlib.blake2b("\0".join(words).encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.asarray(drawn / count, np.float64)


def _bounds(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return low, high


def _fall_on(condition: str, part: str, bases: Sequence[Line], runs: Sequence[Line]) -> str:
    fall = falls(condition, part, bases, runs)
    return "" if fall is None else _loss(fall.estimate())


def _rise_on(condition: str, part: str, bases: Sequence[Line], runs: Sequence[Line]) -> str:
    fall = falls(condition, part, bases, runs)
    return "" if fall is None else _percent(fall.rise())


def _loss(value: Estimate) -> str:
    return f"{_signed(value.mean, 4)} ({_signed(value.low, 4)} … {_signed(value.high, 4)})"


def _percent(value: Estimate) -> str:
    value = value.times(100)
    return f"{_signed(value.mean, 0)} % ({_signed(value.low, 0)} … {_signed(value.high, 0)})"


def _signed(value: float, digits: int) -> str:
    rounded = round(value, digits) + 0.0  # no minus before what rounds to nothing
    return f"{rounded:.{digits}f}".replace("-", "−")


def _percent_of(counts: tuple[int, int]) -> str:
    hits, total = counts
    return f"{100 * hits / total:.0f} % of {total}"


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _spelled(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
