"""Every training method on the embedded base, compared: docs/which-method.md, made by one command.

    python -m benchmarks.which_method [--write docs] [--out runs/which-method] [--budget 200] [METHOD…]

It needs no data: a drawing of the quickstart, which the base has never seen, is laid on four colours to train on and on
four others to be measured on. `sdkit compare` does the rest, so what was measured stays when the command is stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import PIL.Image

import sdkit
from benchmarks.merge import machine
from sdkit.core.human import human_bytes, human_seconds
from sdkit.families import identify
from sdkit.families.family import Model
from sdkit.jobs.compare import CompareReport
from sdkit.jobs.quickstart import PICTURES
from sdkit.report.comparison import Rowed, plots
from sdkit.report.sheet import contact_sheet
from sdkit.training.method import load_method, methods
from sdkit.weights import DTYPES, open_weights
from sdkit.weights.header import build_header

THING, SUBJECT, STYLE = "rocket", "airplane", "noto"  # what is taught, and what the base knows that comes nearest
TRAINED_ON, HELD_OUT_ON = ("white", "blue", "pink", "yellow"), ("black", "gray", "green", "purple")
PROMPTS = (
    *(f"{{}}, {STYLE} style, on a {ground} background" for ground in HELD_OUT_ON),
    "{}, twemoji style, on a white background",
    "{}, twemoji style, on a blue background",
)
BUDGET, BATCH, CFG = 150, 4, 3.0
# Learning rates fit for a base of 6.7 million parameters; those of the first four were chosen on another subject
# (`python -m benchmarks.methods --tune`). Methods that are not named here are tried as they are.
SETTINGS = {
    "fine-tune": ["lr=3e-4:text_encoder=yes"],
    "dreambooth": ["lr=3e-4:text_encoder=yes", f"lr=3e-4:text_encoder=yes:class={SUBJECT}:class_images=24"],
    "lora": ["rank=16:lr=4e-3:text_encoder=yes:te_lr=5e-4", "rank=2:lr=4e-3:text_encoder=yes:te_lr=5e-4"],
    "hypernetwork": ["lr=3e-3:layer_structure=1,4,1:activation=mish"],
    "textual-inversion": ["lr=0.1:vectors=8"],
    "dreamartist": ["lr=0.1:vectors=8:guidance=3"],
    "pivotal": ["rank=16:lr=4e-3:token_lr=0.02"],
    "custom-diffusion": ["lr=5e-4:token_lr=0.02"],
}
# What papers and hubs say such files weigh for Stable Diffusion 1 … XL.
LITERATURE = {
    "fine-tune": "2–7 GB",
    "dreambooth": "2–7 GB",
    "lora": "5–300 MB",
    "hypernetwork": "100–200 MB (A1111's, widths of 4×)",
    "textual-inversion": "3–12 kB",
    "custom-diffusion": "75 MB",
    "hyperdreambooth": "100 kB (Lightweight DreamBooth)",
}
BEGIN, END = "<!-- measured by benchmarks.which_method: begin -->", "<!-- measured by benchmarks.which_method: end -->"
PAGE, SIZE_PLOT, TIME_PLOT, SHEET = "which-method.md", "which-size.svg", "which-time.svg", "which-method.png"
MAX_BYTES = 300_000  # of the contact sheet


def write_data(folder: Path) -> tuple[Path, Path]:
    """The pictures to train on and those to be measured on."""
    return _laid_on(folder / "trained-on", TRAINED_ON), _laid_on(folder / "held-out", HELD_OUT_ON)


def _laid_on(folder: Path, grounds: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    with PIL.Image.open(PICTURES / f"{THING}--{STYLE}.png") as image:
        drawing = image.convert("RGBA")
    for ground in grounds:
        picture = PIL.Image.new("RGBA", drawing.size, ground)
        picture.alpha_composite(drawing)
        name = f"{THING}--{ground}.png"
        picture.convert("RGB").save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"{{}}, {STYLE} style, on a {ground} background"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def words(names: Sequence[str]) -> list[str]:
    """What is compared, as `sdkit compare` takes it; of no names, every method there is."""
    chosen = names or list(dict.fromkeys([*SETTINGS, *methods()]))
    return [f"{name}:{settings}" if settings else name for name in chosen for settings in SETTINGS.get(name, [""])]


def measure(names: Sequence[str], out: Path, budget: str) -> CompareReport:
    """Compare, or take up what was measured."""
    trained_on, held_out = write_data(out / "pictures")
    report: CompareReport = sdkit.compare(
        words(names),
        "tiny",
        trained_on,
        out / "compared",
        subject=SUBJECT,
        held_out=str(held_out),
        prompts=PROMPTS,
        budget=budget,
        cfg=CFG,
        say=lambda line: print(line, file=sys.stderr),
        batch=BATCH,
        schedule="cosine",
        seed=1,
        save_every=0,
        device="cpu",
    )
    return report


def tables(report: CompareReport, out: Path, budget: str) -> str:
    """What was measured, as Markdown."""
    heads, *lines = report.table
    parts = [
        f"{report.advice}",
        _markdown(heads, [[_code(line[0], place), *line[1:]] for place, line in enumerate(lines)]),
        f"{budget} steps of {BATCH} pictures each; {machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads.",
        f"![size against quality](pictures/{SIZE_PLOT})",
        f"![time against quality](pictures/{TIME_PLOT})",
        f"![what each draws](pictures/{SHEET})",
    ]
    if report.left_out:
        reasons = {who: re.sub(r"\S*/", "", why) for who, why in report.left_out.items()}  # no places of this machine
        parts += ["Left out, and why:", "\n".join(f"- `{who}`: {why}" for who, why in reasons.items())]
    parts += ["**Sizes**, beside those the literature gives for Stable Diffusion 1 to XL:", sizes(report)]
    return "\n\n".join(parts)


def sizes(report: CompareReport) -> str:
    """The sizes of results: on the embedded base, planned for SD1.5, and what others say."""
    planned = sd15_sizes([entry.method for entry in report.rows])
    rows, seen = [], set()
    for entry in report.rows:
        if entry.method not in seen:
            said = LITERATURE.get(entry.method, "")
            rows.append([f"`{entry.method}`", human_bytes(entry.output_bytes), planned.get(entry.method, ""), said])
            seen.add(entry.method)
    return _markdown(["method", "here", "SD1.5, as its plan says", "literature"], rows)


def sd15_sizes(names: Sequence[str]) -> dict[str, str]:
    """What each method writes on Stable Diffusion 1.5 with its default options."""
    found = {}
    with sd15_model() as model:
        for name in dict.fromkeys(names):
            method, options = load_method(name)[1].resolve(name, {})
            found[name] = human_bytes(method.size(model, method.settle(options, "x")).output_bytes)
    return found


@contextmanager
def sd15_model() -> Iterator[Model]:
    """What the header of Stable Diffusion 1.5 says; the file has nothing else, and takes no space."""
    table = json.loads((Path(__file__).parents[1] / "tests" / "headers" / "sd1-ldm.json").read_text())
    rows = [(name, DTYPES[dtype], tuple(shape)) for name, (dtype, shape) in table.items()]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "sd15.safetensors"
        header = build_header(rows, {})
        with file.open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + sum(dtype.nbytes(math.prod(shape)) for _, dtype, shape in rows))
        with open_weights(file) as weights:
            yield identify(weights)


def _code(label: str, place: int) -> str:
    return f"`{label}`" if place else label


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write(docs: Path, report: CompareReport, out: Path, budget: str) -> None:
    """Put everything into the documentation.

    Raises:
        ValueError: the page lacks its marks, or the sheet is larger than a page should load.
    """
    page = docs / PAGE
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{tables(report, out, budget)}\n{END}{after}", "utf-8")
    rows = [Rowed(each.label, each.fall, each.fall_interval, each.output_bytes, each.seconds) for each in report.rows]
    for plot, name in zip(plots(rows), (SIZE_PLOT, TIME_PLOT), strict=True):
        (docs / "pictures" / name).write_text(plot.svg(alone=True), "utf-8")
    data = io.BytesIO()
    sheet(report, out).quantize(256, dither=PIL.Image.Dither.NONE).save(data, "PNG", optimize=True)
    if data.tell() > MAX_BYTES:
        raise ValueError(f"{SHEET}: {data.tell()} bytes are more than {MAX_BYTES}")
    (docs / "pictures" / SHEET).write_bytes(data.getvalue())


def sheet(report: CompareReport, out: Path) -> PIL.Image.Image:
    """What the base and each method draw, in columns of one prompt and noise."""
    folders = [("the base", out / "compared" / "base" / "drawn")]
    folders += [(entry.label, Path(report.output).parent / entry.folder / "drawn") for entry in report.rows]
    numbers = range(len(PROMPTS))
    trained_on = sorted((out / "pictures" / "trained-on").glob("*.png"))
    rows: list[tuple[str, list[PIL.Image.Image | None]]] = [
        (
            "trained on (other captions)",
            [_open(path) for path in trained_on] + [None] * (len(numbers) - len(trained_on)),
        )
    ]
    rows += [(who, [_open(folder / f"{number}.png") for number in numbers]) for who, folder in folders]
    heads = [
        prompt.removeprefix("{}, ").replace(" background", "").replace(" style, on a ", ", ") for prompt in PROMPTS
    ]
    return contact_sheet(heads, rows)


def _open(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as picture:
        return picture.convert("RGB")


def main() -> None:
    """Compare, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="[default: all]")
    parser.add_argument("--out", type=Path, default=Path("runs/which-method"))
    parser.add_argument("--budget", default=str(BUDGET), help="steps of each training")
    parser.add_argument("--write", type=Path, metavar="DOCS", help="the folder of which-method.md")
    given = parser.parse_args()
    os.environ["SDKIT_HOME"] = str(given.out.absolute() / "home")  # its caches, and no registry of a person's
    report = measure(given.methods, given.out, given.budget)
    print(tables(report, given.out, given.budget))
    print(f"{human_seconds(report.seconds)} in all", file=sys.stderr)
    if given.write is not None:
        write(given.write, report, given.out, given.budget)


if __name__ == "__main__":
    main()
