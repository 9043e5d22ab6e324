"""The tree of a lineage as a picture: a box for each model, below and to the right of what it went into."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from sdkit.core.errors import SdkitError
from sdkit.registry.lineage import Lineage, Row, became, kind_and_state, rows

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

_SCALE = 2  # pixels of the picture for each of the measures below: sharp on fine screens
_WIDTH, _HEIGHT, _PITCH = 300, 46, 58  # of a box, and from one to the next
_INDENT, _MARGIN, _BESIDE = 36, 20, 190  # of a level, around all, and for the words beside a box
_NAME, _SMALL = 15, 11
_MOST_ROWS = 150  # about as high as a picture can be looked at
_PAPER, _INK, _PALE, _LINE = "#ffffff", "#1d2733", "#5d6b7a", "#8b98a6"
_BOX, _START, _ABSENT = "#eef3f8", "#ffe9c7", "#f7f7f7"


def draw(found: Lineage) -> bytes:
    """The picture of a lineage, as a PNG.

    Raises:
        SdkitError: there are too many models for a picture that could be looked at.
    """
    from PIL import Image, ImageDraw

    drawn, below = rows(found), became(found)
    if len(drawn) > _MOST_ROWS:
        raise SdkitError(f"{len(drawn)} models are too many for a picture", "--dot writes them for Graphviz")
    width = 2 * _MARGIN + max(len(row.open) for row in drawn) * _INDENT + _WIDTH + _BESIDE
    height = 2 * _MARGIN + (len(drawn) + len(below)) * _PITCH
    picture = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAPER)
    pen = ImageDraw.Draw(picture)
    for number, row in enumerate(drawn):
        _draw_branches(pen, row, _MARGIN + number * _PITCH)
        _draw_box(pen, row, _MARGIN + number * _PITCH)
    for number, line in enumerate(below, len(drawn)):
        top = _MARGIN + number * _PITCH + _PITCH // 2
        _write(pen, line, _SMALL, _PALE, (_MARGIN, top), width - 2 * _MARGIN)
    data = BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def _draw_branches(pen: ImageDraw, row: Row, top: int) -> None:
    """The lines that lead to a box, and past it to those that follow."""
    middle = top + _HEIGHT // 2
    for level, follows in enumerate(row.open):
        x, is_own = _MARGIN + level * _INDENT + 14, level == len(row.open) - 1
        if follows or is_own:
            end = top + _PITCH if follows else middle
            _line(pen, (x, top - (_PITCH - _HEIGHT), x, end))
        if is_own:
            _line(pen, (x, middle, _left(row), middle))


def _draw_box(pen: ImageDraw, row: Row, top: int) -> None:
    left, entry = _left(row), row.entry
    here = bool(entry.path) and not entry.missing
    fill = _START if not row.open else _BOX if here else _ABSENT
    box = [side * _SCALE for side in (left, top, left + _WIDTH, top + _HEIGHT)]
    pen.rounded_rectangle(box, 7 * _SCALE, fill, _INK if here else _LINE, _SCALE)
    told = "see above" if row.repeated else kind_and_state(entry)
    _write(pen, entry.name, _NAME, _INK, (left + 10, top + 6), _WIDTH - 20)
    _write(pen, told, _SMALL, _PALE, (left + 10, top + 27), _WIDTH - 20)
    _write(pen, row.edge, _SMALL, _INK, (left + _WIDTH + 10, top + 9), _BESIDE - 20)
    made = f"made by {row.verbs}" if row.verbs else ""
    _write(pen, made, _SMALL, _PALE, (left + _WIDTH + 10, top + 25), _BESIDE - 20)


def _left(row: Row) -> int:
    return _MARGIN + len(row.open) * _INDENT


def _line(pen: ImageDraw, ends: tuple[int, int, int, int]) -> None:
    pen.line([end * _SCALE for end in ends], fill=_LINE, width=_SCALE)


def _write(pen: ImageDraw, text: str, size: int, colour: str, place: tuple[int, int], width: int) -> None:
    """Write a line; where it is too long its middle is left out, for the ends of file names tell them apart."""
    from PIL import ImageFont

    font: Font = ImageFont.load_default(size * _SCALE)
    shown = fitted = "".join(sign if sign.isprintable() else "?" for sign in text)
    kept = len(shown)
    while pen.textlength(fitted, font=font) > width * _SCALE:
        kept -= 1
        fitted = f"{shown[: (kept + 1) // 2]}…{shown[len(shown) - kept // 2 :]}"
    pen.text((place[0] * _SCALE, place[1] * _SCALE), fitted, fill=colour, font=font)
