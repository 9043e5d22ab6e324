"""Heat maps: numbers in rows and columns as one picture, dark for the small ones, bright for the large ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdkit.report.sheet import INK, PAPER

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

Number = float | None
Row = tuple[str, Sequence[Sequence[Number]]]
CELL_WIDTH, CELL_HEIGHT, GAP = 54, 18, 12
FONT_SIZE = 12
NOTHING, EQUAL = "#eeece7", "#b5d3c4"
# From a dark violet over a warm red to a light yellow: even in lightness, and clear to the colour-blind.
COLOURS = ((34, 20, 66), (104, 28, 110), (176, 49, 91), (231, 98, 63), (251, 167, 82), (252, 240, 176))


def heat_map(heads: Sequence[str], rows: Sequence[Row], names: Sequence[str]) -> Image:
    """The picture: one map beside the other, on one scale.

    Args:
        heads: what stands above the columns of each map.
        rows: what stands left of a row, and for each map its numbers, as many as there are heads; None is an empty
            cell, and 0 has a colour of its own.
        names: what stands above each map.
    """
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    font = PIL.ImageFont.load_default(FONT_SIZE)
    side = 2 * GAP + max(int(font.getlength(label)) for label, _ in rows)
    wide, top = len(heads) * CELL_WIDTH + GAP, 5 * GAP
    numbers = [number for _, maps in rows for row in maps for number in row if number]
    low, high = (min(numbers), max(numbers)) if numbers else (1.0, 1.0)
    bottom = top + len(rows) * CELL_HEIGHT
    picture = PIL.Image.new("RGB", (side + len(names) * wide, bottom + 4 * GAP), PAPER)
    pen = PIL.ImageDraw.Draw(picture)
    for number, name in enumerate(names):
        pen.text((side + number * wide, GAP), name, INK, font)
        for column, head in enumerate(heads):
            x = side + number * wide + column * CELL_WIDTH
            pen.text((x + CELL_WIDTH // 2, top - GAP), head, INK, font, anchor="mm")
    for line, (label, maps) in enumerate(rows):
        y = top + line * CELL_HEIGHT
        pen.text((side - GAP // 2, y + CELL_HEIGHT // 2), label, INK, font, anchor="rm")
        for number, row in enumerate(maps):
            for column, value in enumerate(row):
                x = side + number * wide + column * CELL_WIDTH
                pen.rectangle((x, y, x + CELL_WIDTH - 2, y + CELL_HEIGHT - 2), _fill(value, low, high))
    _legend(pen, font, (side, bottom + GAP), (low, high))
    return picture


def _fill(value: Number, low: float, high: float) -> str | tuple[int, int, int]:
    if value is None:
        return NOTHING
    return colour(value, low, high) if value else EQUAL


def colour(number: float, low: float, high: float) -> tuple[int, int, int]:
    """The colour of a positive number on a logarithmic scale."""
    if high <= low:
        return COLOURS[-1]
    place = math.log(number / low) / math.log(high / low) * (len(COLOURS) - 1)
    below = min(int(place), len(COLOURS) - 2)
    share = place - below
    one, other = COLOURS[below], COLOURS[below + 1]
    red, green, blue = (round((1 - share) * x + share * y) for x, y in zip(one, other, strict=True))
    return red, green, blue


def _legend(
    pen: ImageDraw, font: FreeTypeFont | ImageFont, corner: tuple[int, int], limits: tuple[float, float]
) -> None:
    """The scale, from the smallest to the largest number."""
    x, y = corner
    steps, (low, high) = 120, limits
    for step in range(steps):
        number = low * (high / low) ** (step / (steps - 1))
        pen.line((x + step, y, x + step, y + GAP - 2), colour(number, low, high))
    pen.rectangle((x + steps + GAP, y, x + steps + 2 * GAP, y + GAP - 2), EQUAL)
    pen.text((x + steps + 3 * GAP, y), "equal", INK, font)
    pen.text((x, y + GAP), f"{low:.2g}", INK, font)
    pen.text((x + steps, y + GAP), f"{high:.2g}", INK, font, anchor="ra")
