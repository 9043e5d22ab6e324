"""Does textual inversion learn faster from what CLIP inversion found than from a word?

    python -m benchmarks.warm_start runs/emoji [--rates 5e-3 2e-2] [--seeds 0 1] [--steps 100]

takes the folder that recipes/tiny-base/pictures.py made. Subjects the embedded base has never seen are taught twice,
with the same settings, pictures and noise: from the word of what the base knows that comes nearest (cold), and from
what CLIP inversion has made of that word (warm). Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import sdkit
from benchmarks.methods.concepts import SUBJECTS, TUNING, Concept, concept, laid_out
from sdkit.report.log import read_log

BASE, WORD, EVERY = "tiny", "<x>", 10
SAME: dict[str, Any] = {"token": WORD, "vectors": 2, "batch": 4, "save_every": 0, "device": "cpu"}
Curve = Mapping[int, float]  # held-out loss by step


def reached(curve: Curve, loss: float) -> float | None:
    """The step at which a curve first comes down to a loss, on straight lines between what was measured."""
    before: tuple[int, float] | None = None
    for step, found in sorted(curve.items()):
        if found <= loss:
            if before is None:
                return float(step)
            share = (before[1] - loss) / (before[1] - found)
            return before[0] + share * (step - before[0])
        before = step, found
    return None


@dataclass(frozen=True, slots=True)
class Pair:
    """A subject and seed, taught both ways."""

    cold: Curve
    warm: Curve

    def needed(self, step: int) -> float | None:
        """How many warm steps the loss takes that is cold's after `step`; None where they were not enough."""
        return reached(self.warm, self.cold[step])


def table(pairs: Sequence[Pair]) -> str:
    """What the steps of cold are worth, as Markdown."""
    lines = ["| step | cold | warm | warm needs | at most half |", "|---|---|---|---|---|"]
    for step in pairs[0].cold:
        cold, warm = fmean(pair.cold[step] for pair in pairs), fmean(pair.warm[step] for pair in pairs)
        needs = [pair.needed(step) for pair in pairs]
        half = sum(need is not None and need <= step / 2 for need in needs)
        typical = median(float("inf") if need is None else need for need in needs)
        said = "more than all" if typical == float("inf") else f"{typical:.0f}"
        lines.append(f"| {step} | {cold:.3f} | {warm:.3f} | {said} | {half} of {len(pairs)} |")
    return "\n".join(lines)


class Teaching:
    """Teaches, and remembers what is taught.

    Args:
        emoji: the pictures.
        out: where everything goes.
        steps: of textual inversion.
    """

    def __init__(self, emoji: Path, out: Path, steps: int) -> None:
        self._emoji, self._out, self._steps = emoji, out, steps

    def pair(self, subject: str, seed: int, rate: float) -> Pair:
        """A subject, taught both ways."""
        thing = concept(self._emoji, subject)
        place = self._out / subject.replace(" ", "-")
        rated = f"{rate:g}-{self._steps}".replace(".", "_")  # a run's folder has no suffix
        begun = self._trained("clip-inversion", thing, place / f"clip-{seed}", init=thing.like, seed=seed)
        options = {"steps": self._steps, "lr": rate, "validate_every": EVERY, "seed": seed}
        curves = []
        for name, init in (("cold", thing.like), ("warm", str(begun))):
            run = place / f"{name}-{seed}-{rated}"
            self._trained("textual-inversion", thing, run, init=init, **options)
            curves.append({int(each["step"]): float(each["loss"]) for each in read_log(run).validations})
        return Pair(*curves)

    def _trained(self, method: str, thing: Concept, run: Path, **options: Any) -> Path:
        result = run / f"{run.name}.safetensors"
        if not result.is_file():
            pictures = laid_out(thing.taught, run.parent / "taught", "{}")
            held_out = laid_out(thing.held_out, run.parent / "held-out", "{}")
            sdkit.train(method, BASE, pictures, run, validation=str(held_out), force=True, **SAME, **options)
        return result


def main() -> None:
    """Teach, and print a table for each learning rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emoji", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/warm-start"))
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-3, 2e-2], help="of textual inversion")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=100, help="of textual inversion")
    asked = parser.parse_args()
    teaching = Teaching(asked.emoji, asked.output, asked.steps)
    for rate in asked.rates:
        pairs = [teaching.pair(subject, seed, rate) for subject in (*TUNING, *SUBJECTS) for seed in asked.seeds]
        print(f"\nlr={rate:g}, {len(pairs)} pairs of runs\n\n{table(pairs)}", flush=True)


if __name__ == "__main__":
    main()
