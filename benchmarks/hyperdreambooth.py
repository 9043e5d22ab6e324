"""``python -m benchmarks.hyperdreambooth runs/emoji``: does a predicted adapter know what it has never seen?

runs/emoji is what recipes/tiny-base/pictures.py makes. Drawings that the embedded base knows are the population, four
pictures each. Some of them are kept out: the network never sees those, though the base can draw them. Subjects that the
base does not know either are new. Each is shown once, and measured on other backgrounds. All are called alike, so that
only the weights can tell them apart. The network looks at them with the base's own image encoder,
and learns with min-SNR weighting. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

import sdkit
from sdkit.report.sheet import contact_sheet
from sdkit.runtime.losses import fall_interval

BASE, PROMPT = "tiny", "sks"
TAUGHT_ON, MEASURED_ON = ("white", "blue", "pink", "yellow"), ("black", "gray", "green")
CLIP = "tiny"
TRAINING: dict[str, Any] = {
    "identity_steps": 100,
    "steps": 2400,
    "batch": 16,
    "width": 128,
    "blocks": 2,
    "iterations": 1,
    "identity_lr": 5e-3,
    "lr": 1e-3,
    "schedule": "cosine",
    "beta": 0.0,  # in so few steps the identities learn what they have in common, and little of their own
    "encoder": "clip",
    "clip": CLIP,
    "snr_gamma": 1.0,
    "save_every": 500,
}
KEPT_OUT = 13  # one drawing of so many
RELAXED, PLAIN = 40, 400
RANK, LR = 4, 2e-3
DRAWN = 5  # subjects on the contact sheet


def divided(emoji: Path) -> tuple[list[str], list[str]]:
    """The base's drawings: those that are the population, and those the network never sees."""
    concepts = sorted({path.name.partition("--")[0] for path in (emoji / "base").glob("*--noto--white.png")})
    kept_out = concepts[KEPT_OUT - 1 :: KEPT_OUT]
    return [concept for concept in concepts if concept not in kept_out], kept_out


def population(emoji: Path, concepts: Sequence[str], out: Path) -> Path:
    """A folder of folders: drawings, each on four backgrounds."""
    for concept in concepts:
        _copy(emoji / "base", concept, TAUGHT_ON, out / concept)
    return out


def _copy(source: Path, concept: str, backgrounds: tuple[str, ...], place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for background in backgrounds:
        shutil.copy(source / f"{concept}--noto--{background}.png", place)
    return place


class Measuring:
    """Measures what the network has never seen, and remembers what it has measured.

    Args:
        folders: name of a subject → where its pictures are.
        out: where everything goes.
        network: the hypernetwork.
    """

    def __init__(self, folders: Mapping[str, Path], out: Path, network: str) -> None:
        self._out, self._network = out, network
        self._file = out / "results.json"
        self.results: dict[str, dict[str, float]] = json.loads(self._file.read_text()) if self._file.is_file() else {}
        for subject, folder in folders.items():
            _copy(folder, subject, ("white",), out / "one" / subject)
            _copy(folder, subject, MEASURED_ON, out / "other" / subject)

    def predictions(self, subjects: Sequence[str]) -> list[dict[str, float]]:
        """The held-out losses of each with its own prediction, and with that of the one before it."""
        for stranger, subject in zip([subjects[-1], *subjects], subjects, strict=False):
            if subject not in self.results:
                own = self._run(subject, subject, "predicted", steps=0)
                other = self._run(stranger, subject, "stranger", steps=0)
                self._remember(subject, {"another's prediction": other.validation, "prediction": own.validation})
        return [self.results[subject] for subject in subjects]

    def trained(self, subject: str) -> dict[str, float]:
        """The held-out losses of one whose predictions are measured, with those after some steps."""
        if "base" not in self.results[subject]:
            relaxed = self._run(subject, subject, "relaxed", steps=RELAXED, lr=LR, rank=RANK)
            short = self._lora(subject, RELAXED)
            plain = self._lora(subject, PLAIN)
            after = {
                f"prediction and {RELAXED} steps": relaxed.validation,
                f"LoRA, {RELAXED} steps": short.validation,
                f"LoRA, {PLAIN} steps": plain.validation,
            }
            self._remember(subject, {"base": plain.validation_before, **self.results[subject], **after})
        return self.results[subject]

    def _remember(self, subject: str, losses: dict[str, float]) -> None:
        self.results[subject] = losses
        self._file.write_text(json.dumps(self.results, indent=1))

    def _run(self, shown: str, measured: str, name: str, **options: Any) -> Any:
        given = {"as": "identity", "init": self._network, "clip": CLIP, **options}
        return self._train("hyperdreambooth", shown, measured, name, given)

    def _lora(self, subject: str, steps: int) -> Any:
        given = {"steps": steps, "lr": LR, "rank": RANK, "targets": "attention", "text_encoder": True}
        return self._train("lora", subject, subject, f"lora-{steps}", given)

    def _train(self, method: str, shown: str, measured: str, name: str, given: Mapping[str, Any]) -> Any:
        out = self._out / "runs" / f"{measured}-{name}.safetensors"
        folder, validation = self._out / "one" / shown, str(self._out / "other" / measured)
        return sdkit.train(
            method, BASE, folder, out.with_suffix(""), caption=PROMPT, validation=validation, force=True, **given
        )

    def drawn(self, subject: str) -> list[Image.Image]:
        """The picture that was shown, and what base, prediction, short run and LoRA draw."""
        shown = Image.open(next((self._out / "one" / subject).iterdir())).convert("RGB")
        pictures = [shown]
        for name in ("", "predicted", "relaxed", f"lora-{PLAIN}"):
            run = self._out / "runs" / f"{subject}-{name}"
            adapters = [run / f"{run.name}.safetensors"] if name else []
            place = self._out / "drawn" / f"{subject}-{name or 'base'}.png"
            place.parent.mkdir(exist_ok=True)
            sdkit.generate(BASE, PROMPT, place, adapters=adapters, seed=3, steps=20, cfg=2.5, force=True)
            pictures.append(Image.open(place).convert("RGB"))
        return pictures


def _told_apart(results: Sequence[Mapping[str, float]]) -> str:
    """How much better a subject's own prediction is than another's, with the 95 % interval over the subjects."""
    import torch

    other = torch.tensor([[result["another's prediction"]] for result in results])
    own = torch.tensor([[result["prediction"]] for result in results])
    low, high = fall_interval(other, own)
    better = int((own < other).sum())
    return (
        f"own prediction {float(own.mean()):.4f}, another's {float(other.mean()):.4f}: better by "
        f"{float((other - own).mean()):.4f} (95 %: {low:.4f} to {high:.4f}), for {better} of {len(results)}."
    )


def main() -> None:
    """Train, measure, and print a table; draw a contact sheet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hyperdreambooth")
    parser.add_argument("emoji", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/hyperdreambooth"))
    parser.add_argument("--subjects", type=int, default=6, help="how many are trained for some steps, too")
    asked = parser.parse_args()
    taught, kept_out = divided(asked.emoji)
    people, network = population(asked.emoji, taught, asked.output / "population"), asked.output / "network"
    trained = sdkit.train("hyperdreambooth", BASE, people, network, caption=PROMPT, resume=True, **TRAINING)
    new = {path.name: path for path in sorted((asked.emoji / "subjects").iterdir()) if path.is_dir()}
    folders = {**dict.fromkeys(kept_out, asked.emoji / "base"), **new}
    measuring, names = Measuring(folders, asked.output, trained.output), kept_out[: asked.subjects]
    print(f"Drawings the base knows: {_told_apart(measuring.predictions(kept_out))}")
    print(f"Subjects it does not know: {_told_apart(measuring.predictions(list(new)))}\n")
    results = [measuring.trained(name) for name in names]
    print("| held-out loss | mean | better than the base |\n|---|---|---|")
    for row in results[0]:
        better = sum(result[row] < result["base"] for result in results)
        print(f"| {row} | {fmean(result[row] for result in results):.4f} | {better} of {len(results)} |")
    heads = ["shown", "base", "predicted", f"{RELAXED} steps more", f"LoRA, {PLAIN} steps"]
    sheet = contact_sheet(heads, [(name, measuring.drawn(name)) for name in names[:DRAWN]])
    sheet.save(asked.output / "hyperdreambooth.png", optimize=True)


if __name__ == "__main__":
    main()
