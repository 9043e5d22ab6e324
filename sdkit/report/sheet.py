"""A contact sheet: pictures in rows and columns with their labels, as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

CELL = 256  # pixels of a picture's longer side: larger ones are reduced, much smaller ones enlarged
GAP, LABEL, HEAD = 8, 180, 34  # labels have this much room at most; where all are short, the column is narrower
PAPER, INK = "#fbfaf8", "#1f2328"
FONT_SIZE = 15


def contact_sheet(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Image | None]]]) -> Image:
    """The sheet.

    Args:
        heads: what stands above the columns.
        rows: what stands left of a row, and its pictures, as many as there are heads.
    """
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    small = [(label, [None if picture is None else _scaled(picture) for picture in row]) for label, row in rows]
    width = max((picture.width for _, row in small for picture in row if picture), default=CELL)
    height = max((picture.height for _, row in small for picture in row if picture), default=CELL)
    font = PIL.ImageFont.load_default(FONT_SIZE)
    labels = [_wrapped(label, font, height) for label, _ in rows]
    margin = _margin(labels, font)
    size = (margin + len(heads) * (width + GAP) + GAP, HEAD + len(rows) * (height + GAP))
    sheet = PIL.Image.new("RGB", size, PAPER)
    pen = PIL.ImageDraw.Draw(sheet)
    lefts = [margin + GAP + column * (width + GAP) for column in range(len(heads))]
    for left, head in zip(lefts, heads, strict=True):
        pen.text((left, HEAD // 2), head, INK, font, anchor="lm")
    for number, (label, (_, row)) in enumerate(zip(labels, small, strict=True)):
        top = HEAD + number * (height + GAP)
        pen.multiline_text((GAP, top), label, INK, font)
        for left, picture in zip(lefts, row, strict=True):
            if picture is not None:
                sheet.paste(picture, (left, top))
    return sheet


def _scaled(picture: Image) -> Image:
    """At most `CELL` on its longer side; enlarged by a whole number, pixel by pixel, where that fits."""
    import PIL.Image

    side = max(picture.size)
    if side > CELL:
        size = (max(1, picture.width * CELL // side), max(1, picture.height * CELL // side))
        return picture.convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS)
    factor = max(1, CELL // 2 // side)
    size = (picture.width * factor, picture.height * factor)
    return picture.convert("RGB").resize(size, PIL.Image.Resampling.NEAREST)


def _margin(labels: Sequence[str], font: FreeTypeFont | ImageFont) -> int:
    """How much room the labels take: that of the longest line, none where there are none."""
    longest = max((math.ceil(font.getlength(line)) for label in labels for line in label.split("\n")), default=0)
    return min(LABEL, longest + GAP) if longest else 0


def _wrapped(text: str, font: FreeTypeFont | ImageFont, height: int) -> str:
    """The text in lines that fit beside a row; what does not fit ends in dots."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > LABEL - GAP:
            lines.append(word)
        else:
            lines[-1] = longer
    room = max(1, height // (FONT_SIZE + 6))
    return "\n".join(lines) if len(lines) <= room else "\n".join([*lines[: room - 1], "…"])
