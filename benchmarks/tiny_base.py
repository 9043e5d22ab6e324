"""How well the embedded base draws: reconstruction, the concept, the background and the style it was asked for.

    python -m benchmarks.tiny_base runs/emoji [--base tiny] [--pictures 200]

takes the folder that recipes/tiny-base/pictures.py made, and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import PIL.Image

from sdkit.families.bases import resolve_base
from sdkit.generation.pictures import draw
from sdkit.generation.request import Request
from sdkit.report.nearest import background_of, by_distance
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.load import load_backbone
from sdkit.runtime.losses import psnr
from sdkit.runtime.rng import StepRNG
from sdkit.training.images import fit, open_picture, pixels

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny-base"))
from pictures import BACKGROUNDS, HERE, concepts

STYLES = ("noto", "twemoji")


def reconstruction(backbone: Backbone, folder: Path) -> float:
    """Mean peak signal to noise ratio of a folder's pictures, in decibels."""
    ratios = []
    for file in sorted(folder.glob("*.png")):
        picture = pixels(fit(open_picture(file, "white"), (64, 64)))[None]
        decoded = backbone.decode(backbone.encode_image(picture).mean).clamp(-1, 1)
        ratios.append(psnr(float((decoded - picture).square().mean())))
    return sum(ratios) / len(ratios)


def asks(count: int) -> Iterator[tuple[str, str, str]]:
    """Concept, style and background of captions the base was trained on, chosen by number."""
    known, colours = sorted(concepts(HERE / "concepts.txt").values()), list(BACKGROUNDS)
    for number in range(count):
        rng = StepRNG(0, number)
        yield (
            known[rng.integer(len(known), "concept")],
            STYLES[rng.integer(len(STYLES), "style")],
            colours[rng.integer(len(colours), "background")],
        )


def references(data: Path) -> tuple[list[str], list[str], list[PIL.Image.Image]]:
    """Concept, style and drawing of everything the base knows."""
    known = set(concepts(HERE / "concepts.txt").values())
    lines = [json.loads(line) for line in (data / "reference" / "metadata.jsonl").read_text("utf-8").splitlines()]
    styles = [Path(line["file_name"]).stem.rpartition("--")[2] for line in lines]
    kept = [
        (line, style) for line, style in zip(lines, styles, strict=True) if line["text"] in known and style in STYLES
    ]
    drawings = [PIL.Image.open(data / "reference" / line["file_name"]).convert("RGBA") for line, _ in kept]
    return [line["text"] for line, _ in kept], [style for _, style in kept], drawings


def nearest_colour(picture: PIL.Image.Image) -> str:
    """The name of the background nearest to the picture's."""
    seen = background_of(picture)
    return min(BACKGROUNDS, key=lambda name: sum((a - b) ** 2 for a, b in zip(BACKGROUNDS[name], seen, strict=True)))


def measure(base: Path, data: Path, count: int, steps: int, cfg: float, sheet: Path | None) -> dict[str, float]:
    """All figures."""
    backbone = load_backbone(base)
    began = time.perf_counter()
    wanted = list(asks(count))
    prompts = [f"{concept}, {style} style, on a {colour} background" for concept, style, colour in wanted]
    requests = [Request(prompt, seed=number, steps=steps, cfg=cfg) for number, prompt in enumerate(prompts)]
    drawn = draw(backbone, requests, batch=50)
    names, styles, drawings = references(data)
    first = top = colours = style_right = 0
    for (concept, style, colour), picture in zip(wanted, drawn, strict=True):
        order = by_distance(picture, drawings)
        distinct = list(dict.fromkeys(names[place] for place in order))
        first += distinct[0] == concept
        top += concept in distinct[:5]
        style_right += styles[order[0]] == style
        colours += nearest_colour(picture) == colour
    if sheet is not None:
        _save_sheet(drawn[:64], sheet)
    return {
        "psnr_held_out": round(reconstruction(backbone, data / "autoencoder-held-out"), 2),
        "psnr_unseen_style": round(reconstruction(backbone, data / "fluent"), 2),
        "nearest_is_asked": first / count,
        "asked_in_top_5": top / count,
        "background_right": colours / count,
        "style_right": style_right / count,
        "seconds": round(time.perf_counter() - began, 1),
    }


def _save_sheet(pictures: list[PIL.Image.Image], path: Path) -> None:
    """Pictures eight in a row."""
    width, height = pictures[0].size
    sheet = PIL.Image.new("RGB", (8 * width, -(-len(pictures) // 8) * height))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % 8 * width, number // 8 * height))
    sheet.resize((sheet.width * 2, sheet.height * 2), PIL.Image.Resampling.LANCZOS).save(path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--sheet", type=Path, help="write the first 64 pictures here")
    given = parser.parse_args()
    figures = measure(resolve_base(given.base), given.data, given.pictures, given.steps, given.cfg, given.sheet)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
