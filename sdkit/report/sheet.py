"""A contact sheet: pictures in rows and columns with their labels, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

CELL = 256  # pixels of a picture's longer side: larger ones are reduced, much smaller ones enlarged
GAP, LABEL, HEAD = 8, 180, 34
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
    size = (LABEL + len(heads) * (width + GAP) + GAP, HEAD + len(rows) * (height + GAP))
    sheet = PIL.Image.new("RGB", size, PAPER)
    pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(FONT_SIZE)
    lefts = [LABEL + GAP + column * (width + GAP) for column in range(len(heads))]
    for left, head in zip(lefts, heads, strict=True):
        pen.text((left, HEAD // 2), head, INK, font, anchor="lm")
    for number, (label, row) in enumerate(small):
        top = HEAD + number * (height + GAP)
        pen.multiline_text((GAP, top), _wrapped(label, pen, font, height), INK, font)
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


def _wrapped(text: str, pen: ImageDraw, font: FreeTypeFont | ImageFont, height: int) -> str:
    """The text in lines that fit beside a row; what does not fit ends in dots."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font) > LABEL - GAP:
            lines.append(word)
        else:
            lines[-1] = longer
    room = max(1, height // (FONT_SIZE + 6))
    return "\n".join(lines) if len(lines) <= room else "\n".join([*lines[: room - 1], "…"])
