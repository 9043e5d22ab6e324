"""Identities drawn with PIL: simple faces, told apart by their colours and features, on backgrounds that vary."""

from __future__ import annotations

import io
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

COLOURS = ("red", "orange", "gold", "green", "teal", "blue", "purple", "brown", "pink", "gray")
BACKGROUNDS = ("white", "lightblue", "lightyellow", "lightgray")


def draw_identities(folder: Path, count: int, *, pictures: int = 2, first: int = 0, side: int = 16) -> Path:
    """A folder with a folder of pictures for each of `count` identities, the same for the same numbers."""
    for number in range(first, first + count):
        place = folder / f"person-{number:03d}"
        place.mkdir(parents=True)
        for index in range(pictures):
            draw_face(number, index, side).save(place / f"{index}.png")
    return folder


def picture(format: str, side: int = 8) -> bytes:
    """A small picture as a file of this format."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(buffer, format)
    return buffer.getvalue()


def draw_face(number: int, index: int, side: int) -> Image.Image:
    """Picture `index` of identity `number`: the same face, elsewhere and before something else."""
    who, shown = Random(f"who {number}"), Random(f"shown {number} {index}")
    skin, hair, eyes = (who.choice(COLOURS) for _ in range(3))
    width, fringe, smiles = who.uniform(0.5, 0.8), who.uniform(0.15, 0.4), who.random() < 0.5
    image = Image.new("RGB", (256, 256), BACKGROUNDS[index % len(BACKGROUNDS)])
    draw = ImageDraw.Draw(image)
    x, y = (shown.uniform(108, 148) for _ in range(2))
    left, right, top, bottom = x - 128 * width, x + 128 * width, y - 100, y + 100
    draw.ellipse((left, top, right, bottom), fill=skin)
    draw.chord((left, top, right, bottom), 180 + 90 * fringe, 360 - 90 * fringe, fill=hair)
    for eye in (x - 40, x + 40):
        draw.ellipse((eye - 14, y - 24, eye + 14, y + 4), fill=eyes, outline="black")
    draw.arc((x - 45, y + 20, x + 45, y + 70), *((0, 180) if smiles else (180, 360)), fill="black", width=8)
    return image.resize((side, side), Image.Resampling.LANCZOS)
