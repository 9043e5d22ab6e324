"""What every merge method makes of two variants of the base `tiny`: one strip of pictures each, for docs/merging.md.

    python recipes/tiny-base/pictures.py runs/emoji && sdkit run recipes/tiny-variants.yaml
    python recipes/tiny-blends.py runs/tiny/noto runs/tiny/twemoji docs/pictures/blend
    SDKIT_WRITE_DOCS=1 pytest tests/merging/test_method_docs.py      # lets the page show them

A strip shows A, the result and B, of the same prompts and seeds. C, where a method takes it, and the base are `tiny`.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import PIL.Image

from sdkit.families.bases import TINY, resolve_base
from sdkit.generation.pictures import draw
from sdkit.generation.request import Request
from sdkit.jobs.blend import blend
from sdkit.jobs.inputs import Unwritten
from sdkit.merging.method import Method, load_method, methods
from sdkit.report.sheet import PAPER
from sdkit.runtime.load import load_backbone
from sdkit.weights import Weights
from sdkit.weights.atomic import write_file

PROMPTS = ("cat face", "strawberry", "crying face")
GAP = 4
COLOURS = 64
LARGEST = 20_000  # bytes of a picture

# Where the default shows little on models this small and this close.
OPTIONS: dict[str, dict[str, object]] = {
    "adjust": {"contrast": 10.0, "red": 10.0},
    "add-difference": {"alpha": 0.7},
    "cosine-a": {"scale": "model"},
    "cosine-b": {"scale": "model"},
    "extract": {"alpha": 0.5, "beta": 0.0},
    "nearswap": {"distance": 0.01},
    "plus-random": {"alpha": 0.01},
    "scale": {"alpha": 1.02},
    "subtraction": {"alpha": 0.3, "beta": 0.5},
    "task-arithmetic": {"alpha": 0.5},
}


def main() -> None:
    """Draw all strips, or those of the methods named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="some methods")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    ends = [drawn(chosen.a), drawn(chosen.b)]
    for name in chosen.only or methods():
        middle = result(load_method(name), chosen.a, chosen.b)
        data = png([ends[0], middle, ends[1]])
        write_file(chosen.folder / f"{name}.png", data, overwrite=True)
        print(f"{name}: {len(data):,} bytes", flush=True)


def result(method: Method, a: Path, b: Path) -> list[PIL.Image.Image]:
    """What the blend draws; nothing is written of it."""
    count = 2 if method.variadic else len(method.models)
    base = resolve_base(TINY) if method.needs_base else None
    with ExitStack() as stack:
        step = Unwritten("blend", stack)
        models = [a, b, resolve_base(TINY)][:count]
        blend(models, step, method=method.name, base=base, parameters=OPTIONS.get(method.name, {}))
        assert step.model is not None
        return drawn(step.model)


def drawn(model: Path | Weights) -> list[PIL.Image.Image]:
    """Each prompt once."""
    return draw(load_backbone(model), [Request(prompt, seed=number, cfg=3.0) for number, prompt in enumerate(PROMPTS)])


def png(groups: Sequence[Sequence[PIL.Image.Image]]) -> bytes:
    """The strip, small enough for the repository."""
    width, height = groups[0][0].size
    per, between = len(groups[0]) * (width + GAP), 4 * GAP
    strip = PIL.Image.new("RGB", (len(groups) * (per + between) - between - GAP, height), PAPER)
    for index, group in enumerate(groups):
        for number, picture in enumerate(group):
            strip.paste(picture.convert("RGB"), (index * (per + between) + number * (width + GAP), 0))
    for colours in (COLOURS, COLOURS // 2, COLOURS // 4):
        buffer = io.BytesIO()
        strip.quantize(colours, dither=PIL.Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= LARGEST:
            break
    return buffer.getvalue()


if __name__ == "__main__":
    main()
