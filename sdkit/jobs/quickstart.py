"""Teach the embedded base subjects it has never seen, merge them into it, and draw before and after; all offline."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.events import Event
from sdkit.core.report import Report
from sdkit.families.bases import TINY, resolve_base
from sdkit.generation.request import Request
from sdkit.jobs.convert import convert
from sdkit.jobs.merge import merge
from sdkit.jobs.train import train
from sdkit.report.nearest import by_distance
from sdkit.report.sheet import contact_sheet
from sdkit.runtime.load import load_backbone
from sdkit.weights.atomic import write_file

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = Path(__file__).parents[1] / "assets" / "quickstart"
STEPS = 300
OPTIONS: dict[str, Any] = {
    "batch": 6,
    "rank": 16,
    "lr": 2e-3,
    "te_lr": 5e-4,
    "text_encoder": True,
    "schedule": "cosine",
    "seed": 1,
}
BACKGROUNDS = ("white", "blue", "pink", "yellow")
SEEDS = 2
GUIDANCE = 3.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Quickstart(Report):
    """What a quickstart made.

    Attributes:
        base: the embedded base as a single file in the layout of Stable Diffusion 1.
        lora: what was trained, in kohya's format.
        merged: the base with the LoRA in it.
        sheet: pictures of the base and of the merged model, from the same noise.
        report: the page about the training.
        modules: modules of the base the merge changed.
        merge_seconds: wall time of the merge.
        nearest_before: share of the base's pictures that are nearest to a drawing of what was asked for.
        nearest_after: the same of the merged model.
        drawn: pictures of each.
        seconds: wall time of everything.
    """

    base: str
    lora: str
    merged: str
    sheet: str
    report: str
    modules: int
    merge_seconds: float
    nearest_before: float
    nearest_after: float
    drawn: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Subject:
    """A drawing the base has not seen, and its caption without the background."""

    name: str
    caption: str
    drawing: Image


def quickstart(
    folder: Path | str,
    *,
    steps: int = STEPS,
    say: Say = lambda line: None,
    watch: Callable[[Event], None] | None = None,
) -> Quickstart:
    """Train a LoRA on the twelve pictures that come with sdkit, merge it, and draw with both models.

    Files of an earlier quickstart are replaced; the folder is made if need be.

    Args:
        folder: where ``base``, ``lora`` and ``merged.safetensors``, ``before-after.png`` and the run's files go.
        steps: of the training.
        say: told what begins.
        watch: called with every event of the training.

    Raises:
        SdkitError: the folder cannot be written.
    """
    began = time.perf_counter()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    base, lora, merged = (folder / f"{name}.safetensors" for name in ("base", "lora", "merged"))
    convert(resolve_base(TINY), "single", base, force=True, verify=False)
    subjects = _subjects()
    say(f"training a LoRA on {len(subjects)} pictures of subjects the base has never seen")
    train("lora", base, PICTURES, lora, force=True, watch=watch, steps=steps, **OPTIONS)
    say("merging it into the base, and drawing with both from the same noise")
    report = merge(base, lora, merged, force=True)
    before, after = (_draw(model, subjects) for model in (base, merged))
    sheet = folder / "before-after.png"
    write_file(sheet, _sheet(subjects, before, after), overwrite=True)
    return Quickstart(
        base=str(base),
        lora=str(lora),
        merged=str(merged),
        sheet=str(sheet),
        report=str(folder / "report.html"),
        modules=report.matched,
        merge_seconds=report.seconds,
        nearest_before=_nearest(subjects, before),
        nearest_after=_nearest(subjects, after),
        drawn=len(before),
        seconds=time.perf_counter() - began,
    )


def _subjects() -> list[_Subject]:
    import PIL.Image

    lines = [json.loads(line) for line in (PICTURES / "metadata.jsonl").read_text("utf-8").splitlines()]
    return [
        _Subject(
            line["file_name"].partition("--")[0],
            line["text"].rpartition(", ")[0],
            PIL.Image.open(PICTURES / line["file_name"]).convert("RGBA"),
        )
        for line in lines
    ]


def _draw(model: Path, subjects: Sequence[_Subject]) -> list[Image]:
    """Every subject with `SEEDS` seeds, each on a background of its own: of those, training showed only white."""
    from sdkit.generation.pictures import draw

    prompts = [
        f"{subject.caption}, on a {BACKGROUNDS[(number + seed) % len(BACKGROUNDS)]} background"
        for seed in range(SEEDS)
        for number, subject in enumerate(subjects)
    ]
    requests = [Request(prompt, seed=number, cfg=GUIDANCE) for number, prompt in enumerate(prompts)]
    return draw(load_backbone(model), requests, batch=len(subjects))


def _nearest(subjects: Sequence[_Subject], pictures: Sequence[Image]) -> float:
    """Share of the pictures whose nearest drawing, of all, is of the subject asked for."""
    drawings = [subject.drawing for subject in subjects]
    asked = [subjects[number % len(subjects)].name for number in range(len(pictures))]
    found = [subjects[by_distance(picture, drawings)[0]].name for picture in pictures]
    return sum(one == other for one, other in zip(asked, found, strict=True)) / len(pictures)


def _sheet(subjects: Sequence[_Subject], before: Sequence[Image], after: Sequence[Image]) -> bytes:
    import io

    import PIL.Image

    count = len(subjects)
    white = PIL.Image.new("RGBA", subjects[0].drawing.size, "white")
    rows = [
        ("trained on", [PIL.Image.alpha_composite(white, subject.drawing) for subject in subjects]),
        *((f"before, seed {seed}", before[seed * count : (seed + 1) * count]) for seed in range(SEEDS)),
        *((f"after, seed {seed}", after[seed * count : (seed + 1) * count]) for seed in range(SEEDS)),
    ]
    buffer = io.BytesIO()
    contact_sheet([subject.caption.partition(" style")[0] for subject in subjects], rows).save(buffer, "PNG")
    return buffer.getvalue()
