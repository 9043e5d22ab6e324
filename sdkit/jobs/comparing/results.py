"""From what was measured to a table and a sentence of advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdkit.core.human import human_bytes, human_seconds
from sdkit.jobs.comparing.order import Measured

NEAR = 0.9  # share of the largest fall that counts as about the same
WORTHWHILE = 0.5  # share of it from which on a method is worth naming for another virtue
FEW_STEPS = 50  # where fewer teach nothing, the learning rate is not to blame yet


@dataclass(frozen=True, slots=True)
class Row:
    """One method, measured.

    Attributes:
        label: as it was asked for.
        method: its name.
        loss: held-out loss.
        fall: how far it lies below the base's.
        fall_interval: 95 % of that, over the pairs of picture, noise and timestep.
        drift: by how much the loss of what the base knew rose, as a share of what it was.
        drift_interval: 95 % of that.
        similarity: mean cosine between drawn pictures and those trained on; None without an image encoder.
        base_similarity: the same of what the base draws, asked in words it knows.
        following: mean cosine between drawn pictures and their prompts; None without an image encoder.
        nearest: share of the drawn pictures that are nearest to one trained on; None with an image encoder.
        steps: of the training.
        seconds: wall time of the training's processes.
        memory_mib: their largest resident memory; None where the system does not tell.
        device_memory_mib: the largest memory on an accelerator; None without one.
        parameters: numbers trained.
        output_bytes: of all files it wrote.
        files: their names.
        folder: where they lie, beside the page.
    """

    label: str
    method: str
    loss: float
    fall: float
    fall_interval: tuple[float, float]
    drift: float
    drift_interval: tuple[float, float]
    similarity: float | None
    base_similarity: float | None
    following: float | None
    nearest: float | None
    steps: int
    seconds: float
    memory_mib: float | None
    device_memory_mib: float | None
    parameters: int
    output_bytes: int
    files: tuple[str, ...]
    folder: str

    @property
    def learnt(self) -> bool:
        """Whether the loss fell beyond doubt."""
        return self.fall_interval[0] > 0

    @property
    def resembles(self) -> bool:
        """Whether what it draws is more like the pictures trained on than what the base draws; True if nobody can tell.

        A loss also falls when only the colours are learnt, or that the base's own idea of the subject is wrong.
        """
        return self.similarity is None or self.base_similarity is None or self.similarity > self.base_similarity


def row(label: str, method: str, folder: str, base: Measured, found: Measured) -> Row:
    """The figures of one method beside the base's."""
    before, loss, fall, fall_interval = _change(base, found, "held_out")
    known, _, known_fall, known_interval = _change(base, found, "prior")
    return Row(
        label,
        method,
        loss,
        fall,
        fall_interval,
        drift=-known_fall / known,
        drift_interval=(-known_interval[1] / known, -known_interval[0] / known),
        similarity=found.get("similarity"),
        base_similarity=base.get("similarity"),
        following=found.get("following"),
        nearest=_share(found),
        output_bytes=found["bytes"],
        files=tuple(found["files"]),
        folder=folder,
        **{name: found[name] for name in ("steps", "seconds", "memory_mib", "device_memory_mib", "parameters")},
    )


def _change(base: Measured, found: Measured, part: str) -> tuple[float, float, float, tuple[float, float]]:
    """The mean loss of a part before and after, how far it fell, and the interval of that."""
    import torch

    from sdkit.runtime.losses import fall_interval

    before, after = torch.tensor(base[part]), torch.tensor(found[part])
    means = float(before.mean()), float(after.mean())
    return *means, means[0] - means[1], fall_interval(before, after)


def advice(rows: Sequence[Row]) -> str:
    """What the figures say to somebody who must choose; every word of it follows from the table.

    The loss alone praises nobody: where similarity is known, what is recommended also draws more like the pictures
    trained on than the base does.
    """
    learnt = sorted((entry for entry in rows if entry.learnt), key=lambda entry: -entry.fall)
    if not learnt:
        return _nothing_learnt(rows)
    drawing = [entry for entry in learnt if entry.resembles]
    unlike = [entry.label for entry in learnt if not entry.resembles]
    sentences = _praise(drawing)
    if unlike:
        sentences.append(
            f"The loss fell with {_list(unlike)}, but what is drawn then resembles the pictures no more than what the "
            "base draws."
        )
    failed = [entry.label for entry in rows if not entry.learnt]
    if failed:
        sentences.append(f"Nothing that shows was learnt by {_list(failed)} in this time.")
    return " ".join(sentences)


def _nothing_learnt(rows: Sequence[Row]) -> str:
    """Why, as far as the figures say it, and what to try."""
    rose, steps = [entry.label for entry in rows if entry.fall < 0], max((entry.steps for entry in rows), default=0)
    seen = f"No method learnt anything that shows{f'; the held-out loss rose with {_list(rose)}' if rose else ''}."
    if steps < FEW_STEPS:
        return f"{seen} The budget (steps={steps}) is too small to learn from: give them some hundreds."
    smaller = " (a smaller one where the loss rose)" if rose else ""
    return f"{seen} Give them more steps, or {'another' if rose else 'a larger'} learning rate{smaller}."


def _praise(learnt: Sequence[Row]) -> list[str]:
    """What each is the best at, of those that can be recommended, the largest fall first."""
    if not learnt:
        return ["No method can be recommended: give them more steps, or a larger learning rate."]
    best = learnt[0]
    sentences = [f"{best.label} learnt most ({_cost(best)})."]
    near = [entry for entry in learnt if entry.fall >= NEAR * best.fall]
    smallest = min(near, key=lambda entry: entry.output_bytes)
    if smallest.output_bytes < best.output_bytes / 2:
        sentences.append(f"{smallest.label} comes near it, {_beside(smallest, best)}.")
    useful = [entry for entry in learnt if entry.fall >= WORTHWHILE * best.fall]
    gentle = min(useful, key=lambda entry: entry.drift)
    named = {best.label, smallest.label}
    if gentle.drift < best.drift - 0.01:
        also = "" if gentle.label in named else f"; it comes {_beside(gentle, best)}"
        sentences.append(
            f"{gentle.label} keeps best what the base knew: the loss of that {_rose(gentle)}, "
            f"with {best.label} it {_rose(best)}{also}."
        )
    tiny = min(learnt, key=lambda entry: entry.output_bytes)
    if tiny.output_bytes < min(entry.output_bytes for entry in (best, smallest, gentle)) / 2:
        sentences.append(f"Where every byte counts: {tiny.label}, {_beside(tiny, best)}.")
    return sentences


def _cost(entry: Row) -> str:
    return f"{human_bytes(entry.output_bytes)}, {human_seconds(entry.seconds)}"


def _beside(entry: Row, best: Row) -> str:
    return f"with {entry.fall / best.fall:.0%} of its fall ({_cost(entry)})"


def _rose(entry: Row) -> str:
    percent = f"{abs(entry.drift):.0%}"
    return "stayed" if percent == "0%" else f"{'rose' if entry.drift > 0 else 'fell'} by {percent}"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


HEADS = (
    "method",
    "held-out loss",
    "fall (95 %)",
    "known: loss rises",
    "similarity",
    "following",
    "nearest",
    "trained",
    "file",
    "time",
    "memory",
)


def table(rows: Sequence[Row], base: Measured) -> list[list[str]]:
    """The figures in words: the base, then the methods; columns that nothing was measured for are left out."""
    first = ["the base", f"{_mean(base['held_out']):.4f}", "", "", *_likeness(base), *[""] * 4]
    lines = [list(HEADS), first, *(_cells(entry) for entry in rows)]
    keep = [column for column in range(len(HEADS)) if any(line[column] for line in lines[1:])]
    return [[line[column] for column in keep] for line in lines]


def _cells(entry: Row) -> list[str]:
    memory = entry.device_memory_mib or entry.memory_mib
    low, high = entry.fall_interval
    return [
        entry.label,
        f"{entry.loss:.4f}",
        f"{_signed(entry.fall)} ({_signed(low)} … {_signed(high)})",
        f"{100 * entry.drift:.0f} %".replace("-0 ", "0 ").replace("-", "−"),
        *("" if value is None else f"{value:.3f}" for value in (entry.similarity, entry.following)),
        "" if entry.nearest is None else f"{entry.nearest:.0%}",
        f"{entry.parameters:,}",
        human_bytes(entry.output_bytes),
        human_seconds(entry.seconds),
        "" if memory is None else human_bytes(memory * (1 << 20)),
    ]


def _likeness(base: Measured) -> list[str]:
    cosines, share = (base.get("similarity"), base.get("following")), _share(base)
    return [*("" if value is None else f"{value:.3f}" for value in cosines), "" if share is None else f"{share:.0%}"]


def _share(found: Measured) -> float | None:
    """Drawn pictures that are nearest to one trained on, as a share."""
    return found["nearest"][0] / found["nearest"][1] if "nearest" in found else None


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:.4f}".replace("-", "−")


def _mean(losses: Any) -> float:
    return float(sum(map(sum, losses)) / sum(map(len, losses)))
