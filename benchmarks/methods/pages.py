"""The measured tables and contact sheets, put into the documentation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
from PIL.Image import Image

from benchmarks.merge import machine
from benchmarks.methods import settings
from benchmarks.methods.concepts import Concept
from benchmarks.methods.plot import falls_plot
from benchmarks.methods.summary import (
    Line,
    apart_table,
    cost_table,
    falls,
    prior_sentence,
    settings_table,
    teaching_table,
)
from sdkit.report.sheet import contact_sheet

BEGIN, END = "<!-- measured by benchmarks.methods: begin -->", "<!-- measured by benchmarks.methods: end -->"
PLOT = "methods-falls.svg"
MAX_BYTES = 200_000


def tables(bases: Sequence[Line], runs: Sequence[Line]) -> str:
    """Everything that was measured, as Markdown.

    Args:
        bases: what the base does by itself, a line for each concept; of subjects it has the losses of another drawing.
        runs: all runs of these concepts.
    """
    subjects = _subjects(bases)
    styles = [base for base in bases if base not in subjects]
    everything = settings.conditions(style=False)
    seeds = len({run["seed"] for run in runs})
    parts = [f"Base {bases[0]['base_id']}; {machine()}; one thread."]
    for kind, some in (("subjects", subjects), ("style", styles)):
        names = [base["concept"] for base in some]
        taught = [run for run in runs if run["concept"] in names]
        conditions = settings.conditions(style=kind == "style")
        parts.append(f"**The {kind}** ({', '.join(names)}), {seeds} seeds each:")
        parts.append("\n".join(teaching_table(some, taught, conditions, settings.REFERENCE)))
        if kind == "subjects":
            parts.append(prior_sentence(some, taught, settings.REFERENCE, settings.PRIOR))
            parts.append(f"![how far each run's loss fell](pictures/{PLOT})")
        parts += [f"![{name}: what each method draws](pictures/{sheet_name(name)})" for name in names]
        if len(some) > 1:
            parts += ["Each of them apart:", "\n".join(apart_table(some, taught, conditions))]
    drawn = sum(base["class_drawn"] for base in bases)
    seconds = sum(base["class_cpu_seconds"] for base in bases) / drawn if drawn else 0
    parts.append("**The cost of a run** (medians; of the peaks the largest):")
    parts.append("\n".join(cost_table(runs, everything)))
    if drawn:
        parts.append(
            f"The base draws the {settings.CLASS_IMAGES} pictures of a class before, once: {seconds:.1f} s each."
        )
    choice = settings.choice()
    parts.append(f"**The hyper-parameters**, chosen on another subject ({choice['concept']}):")
    parts.append("\n".join(settings_table(choice["methods"])))
    return "\n\n".join(parts)


def sheet_name(concept: str) -> str:
    """The file name of a concept's contact sheet."""
    return f"methods-{concept.replace(' ', '-')}.png"


def write_tables(page: Path, text: str) -> None:
    """Put the tables between the marks of a page.

    Raises:
        ValueError: it has no marks.
    """
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{text.strip()}\n{END}{after}", "utf-8")


def write_plot(path: Path, bases: Sequence[Line], runs: Sequence[Line]) -> None:
    """Every run's fall of the subjects' held-out loss."""
    conditions = settings.conditions(style=False)
    found = [falls(condition, "held_out", _subjects(bases), runs) for condition in conditions]
    title = "fall of the held-out loss: a dot is a run, a bar the 95 % interval of the mean"
    path.write_text(falls_plot(title, [each for each in found if each is not None]), "utf-8")


def write_sheet(path: Path, thing: Concept, drawn: Sequence[tuple[str, Path]]) -> None:
    """A contact sheet: the pictures trained on, and what each model draws from the same noise.

    Args:
        drawn: what stands beside a row, and the folder of its pictures.

    Raises:
        ValueError: it is larger than a page should load.
    """
    places = range(len(thing.drawn))
    taught = [_open(picture.file) for picture in thing.taught[: len(places)]]
    rows: list[tuple[str, Sequence[Image | None]]]
    rows = [("trained on (other captions)", [*taught, *[None] * (len(places) - len(taught))])]
    rows += [(label, [_open(folder / f"{place}.png") for place in places]) for label, folder in drawn]
    data = io.BytesIO()
    sheet = contact_sheet(_heads(thing), rows)
    sheet.quantize(256, dither=PIL.Image.Dither.NONE).save(data, "PNG", optimize=True)
    if data.tell() > MAX_BYTES:
        raise ValueError(f"{path}: {data.tell()} bytes are more than {MAX_BYTES}")
    path.write_bytes(data.getvalue())


def _open(path: Path) -> Image:
    with PIL.Image.open(path) as picture:
        return picture.convert("RGB")


def _subjects(bases: Sequence[Line]) -> list[Line]:
    return [base for base in bases if "other" in base["losses"]]


def _heads(thing: Concept) -> list[str]:
    """What distinguishes the captions: a subject's style and background, a style's concept."""
    return [
        picture.concept if thing.is_style else ", ".join(picture.file.stem.split("--")[1:]) for picture in thing.drawn
    ]
