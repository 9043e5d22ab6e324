"""Dots with names over two axes, the horizontal one logarithmic, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from sdkit.report.chart import number, ticks

LEFT, RIGHT, TOP, BOTTOM = 62, 24, 14, 44  # room around the plot, in pixels
LETTER, LINE = 6.7, 15  # about the width and height of a letter of a name
# For a picture that stands by itself; within a page the page's own style holds.
STYLE = (
    "text{font:12px sans-serif;fill:#57606a}.grid,.axis{stroke:#8c959f;stroke-opacity:.35}"
    ".span{stroke:#0b6bcb;stroke-width:2;stroke-opacity:.45}.spot{fill:#0b6bcb}"
    "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}.spot{fill:#58a6ff}.span{stroke:#58a6ff}}"
)


@dataclass(frozen=True, slots=True)
class Spot:
    """A dot with a name.

    Attributes:
        label: its name.
        x: above 0.
        y: its height.
        low: lower end of the interval of y.
        high: upper end.
    """

    label: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Scatter:
    """The picture.

    Attributes:
        title: read aloud where it cannot be seen.
        x_name: below the horizontal axis.
        y_name: above the vertical axis.
        spots: the dots.
        said: a value of x in words, for the axis.
        width: in pixels, as is `height`.
    """

    title: str
    x_name: str
    y_name: str
    spots: Sequence[Spot]
    said: Callable[[float], str] = number
    width: int = 620
    height: int = 340

    def svg(self, *, alone: bool = False) -> str:
        """The picture.

        Args:
            alone: in a file of its own, with a style of its own.
        """
        scale = _Scale.around(self)
        head = f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.title)}"'
        opening = f'{head} xmlns="http://www.w3.org/2000/svg">\n<style>{STYLE}</style>' if alone else f"{head}>"
        return "\n".join([opening, *_axes(self, scale), *_spots(self, scale), "</svg>", ""])


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels."""

    chart: Scatter
    left: float
    right: float
    bottom: float
    top: float

    @classmethod
    def around(cls, chart: Scatter) -> _Scale:
        """Room for every dot and its interval, and for no change at all."""
        logs = [math.log10(spot.x) for spot in chart.spots]
        room = max(0.15, 0.08 * (max(logs) - min(logs)))
        low, high = min(0.0, *(spot.low for spot in chart.spots)), max(0.0, *(spot.high for spot in chart.spots))
        margin = 0.08 * (high - low) or 1.0
        return cls(chart, min(logs) - room, max(logs) + room, low - (margin if low < 0 else 0), high + margin)

    def x(self, value: float) -> float:
        return LEFT + (math.log10(value) - self.left) / (self.right - self.left) * (self.chart.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self.top - value) / (self.top - self.bottom) * (self.chart.height - TOP - BOTTOM)


def _axes(chart: Scatter, scale: _Scale) -> list[str]:
    right, bottom = chart.width - RIGHT, chart.height - BOTTOM
    parts = []
    for value in ticks(scale.bottom, scale.top, 5):
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in _decades(scale):
        parts.append(
            f'<text class="tick" x="{scale.x(value):.1f}" y="{bottom + 17}" text-anchor="middle">'
            f"{escape(chart.said(value))}</text>"
        )
    middle = (LEFT + right) / 2
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    parts.append(
        f'<text class="tick" x="{middle:.0f}" y="{chart.height - 6}" text-anchor="middle">{escape(chart.x_name)}</text>'
    )
    parts.append(
        f'<text class="tick" transform="translate(12 {(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(chart.y_name)}</text>"
    )
    return parts


def _decades(scale: _Scale) -> list[float]:
    """Round numbers of the horizontal axis: powers of ten, with twos and fives, or all, where there are few of them."""
    if scale.right - scale.left < 1:
        return ticks(10**scale.left, 10**scale.right, 6)
    factors = (1, 2, 5) if scale.right - scale.left < 2.5 else (1,)
    powers = range(math.floor(scale.left), math.ceil(scale.right) + 1)
    values = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in values if scale.left <= math.log10(value) <= scale.right]


def _spots(chart: Scatter, scale: _Scale) -> list[str]:
    """Dots and intervals, then the names, each where it covers no other."""
    parts, taken = [], []
    for spot in chart.spots:
        x = scale.x(spot.x)
        parts.append(
            f'<line class="span" x1="{x:.1f}" x2="{x:.1f}" y1="{scale.y(spot.low):.1f}" y2="{scale.y(spot.high):.1f}"/>'
        )
        taken.append((x - 5, scale.y(spot.y) - 5, x + 5, scale.y(spot.y) + 5))
        taken.append((x - 1, scale.y(spot.high), x + 1, scale.y(spot.low)))
        parts.append(
            f'<circle class="spot" cx="{x:.1f}" cy="{scale.y(spot.y):.1f}" r="4.5">'
            f"<title>{escape(spot.label)}: {spot.y:.4g}</title></circle>"
        )
    for spot in sorted(chart.spots, key=lambda each: -each.y):
        box = _place(spot, chart, scale, taken)
        taken.append(box)
        parts.append(f'<text class="tick" x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{escape(spot.label)}</text>')
    return parts


_Box = tuple[float, float, float, float]  # left, top, right, bottom


def _place(spot: Spot, chart: Scatter, scale: _Scale, taken: Sequence[_Box]) -> _Box:
    """Where a name stands: beside its dot, right or left, higher or lower, as near as it covers nothing."""
    x, y, width = scale.x(spot.x), scale.y(spot.y), LETTER * len(spot.label)
    shifts = [sign * step * LINE / 2 for step in range(10) for sign in (1, -1)]
    boxes = [
        (left, y - LINE / 2 + shift, left + width, y + LINE / 2 + shift)
        for shift in shifts
        for left in (x + 9, x - 9 - width)
    ]
    inside = [box for box in boxes if box[0] >= LEFT and box[2] <= chart.width and box[1] >= 0]
    free = (box for box in inside if not any(_cover(box, other) for other in taken))
    return next(free, (inside or boxes)[0])


def _cover(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
