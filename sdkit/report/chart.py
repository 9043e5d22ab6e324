"""Line charts as SVG text. Colours are CSS variables of the page around them, so that it can be light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

Point = tuple[float, float]

LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 30  # room around the plot, in pixels
COLUMNS = 600  # a line of more points than this is drawn by the least and greatest of each column


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart.

    Attributes:
        points: (x, y) in order of x; where y is NaN the line is broken.
        style: class of the line: ``raw``, ``main``, ``second`` or ``dashed``.
        label: for the legend; empty for none.
        dots: whether each point is marked, with its value in a tooltip.
    """

    points: Sequence[Point]
    style: str
    label: str = ""
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """An area between two lines: (x, low, high) in order of x."""

    points: Sequence[tuple[float, float, float]]
    label: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn over one pair of axes.

    Attributes:
        title: read aloud where the picture cannot be seen.
        lines: the later above the earlier.
        bands: below the lines.
        width: in pixels, as is `height`; the page may scale the picture.
        end: where the x axis ends at least.
    """

    title: str
    lines: Sequence[Line]
    bands: Sequence[Band] = field(default=())
    width: int = 860
    height: int = 280
    end: float = 1.0

    def svg(self) -> str:
        """The chart as an ``<svg>`` element."""
        scale = _Scale.around(self)
        parts = [
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.title)}">',
            *_axes(scale),
            _window(self),  # what leaves the axes is cut off
            *(_area(band, scale) for band in self.bands if band.points),
            *(_path(line, scale) for line in self.lines if line.points),
            "</svg>",
            *(dot for line in self.lines if line.dots for dot in _dots(line, scale)),
            "</svg>",
        ]
        return "\n".join(parts)

    @property
    def legend(self) -> list[tuple[str, str]]:
        """(style, label) of everything that has a label."""
        bands = [("band", band.label) for band in self.bands if band.label]
        return [*((line.style, line.label) for line in self.lines if line.label), *bands]


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels."""

    chart: Chart
    right: float
    bottom: float
    top: float

    @classmethod
    def around(cls, chart: Chart) -> _Scale:
        """Room for everything but the wildest hundredth of the raw values, which would flatten the rest."""
        raw = sorted(y for line in chart.lines if line.style == "raw" for _, y in line.points if y == y)
        cut = len(raw) // 100
        values = raw[cut : len(raw) - cut]
        values += [y for line in chart.lines if line.style != "raw" for _, y in line.points if y == y]
        values += [y for band in chart.bands for _, low, high in band.points for y in (low, high)]
        low, high = min(values, default=0.0), max(values, default=1.0)
        margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        bottom = 0.0 if 0 <= low < 0.3 * high or 0 < low == high else low - margin
        ends = [line.points[-1][0] for line in chart.lines if line.points]
        return cls(chart, max([chart.end, *ends]), bottom, high + margin)

    def x(self, value: float) -> float:
        return LEFT + value / self.right * (self.chart.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        height = self.chart.height - TOP - BOTTOM
        return TOP + height * (self.top - value) / (self.top - self.bottom)


def smoothed(points: Sequence[Point], window: int) -> list[Point]:
    """The mean of the `window` values around each point (fewer at the ends); NaN is left out."""
    sums, counts = [0.0], [0]
    for _, y in points:
        sums.append(sums[-1] + (y if y == y else 0.0))
        counts.append(counts[-1] + (y == y))
    half, means = window // 2, []
    for index, (x, _) in enumerate(points):
        first, last = max(0, index - half), min(len(points), index + half + 1)
        count = counts[last] - counts[first]
        means.append((x, (sums[last] - sums[first]) / count if count else math.nan))
    return means


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in `low` … `high`: multiples of 1, 2 or 5 times a power of ten."""
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= min((factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= count), default=10)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number as an axis shows it: ``0.125``, ``2,000``, ``1e-4``."""
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else f"{value:.3g}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _window(chart: Chart) -> str:
    width, height = chart.width - LEFT - RIGHT, chart.height - BOTTOM
    return f'<svg x="{LEFT}" width="{width}" height="{height}" viewBox="{LEFT} 0 {width} {height}">'


def _axes(scale: _Scale) -> list[str]:
    chart = scale.chart
    right, bottom = chart.width - RIGHT, chart.height - BOTTOM
    parts = []
    for value in ticks(scale.bottom, scale.top, 5):
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in ticks(0.0, scale.right, max(2, chart.width // 110)):
        if not value.is_integer():
            continue  # there are no half steps
        x = scale.x(value)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    return parts


def _path(line: Line, scale: _Scale) -> str:
    words, pen_up = [], True
    for x, y in _thinned(line.points):
        if y != y:
            pen_up = True
            continue
        words.append(f"{'M' if pen_up else 'L'}{scale.x(x):.1f} {scale.y(y):.1f}")
        pen_up = False
    return f'<path class="line {line.style}" d="{"".join(words)}"/>'


def _area(band: Band, scale: _Scale) -> str:
    there = [f"{scale.x(x):.1f},{scale.y(high):.1f}" for x, _, high in band.points]
    back = [f"{scale.x(x):.1f},{scale.y(low):.1f}" for x, low, _ in reversed(band.points)]
    return f'<polygon class="band" points="{" ".join(there + back)}"/>'


def _dots(line: Line, scale: _Scale) -> list[str]:
    return [
        f'<circle class="dot {line.style}" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="3.5">'
        f"<title>step {number(x)}: {y:.4g}</title></circle>"
        for x, y in line.points
        if y == y
    ]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most two points a column, its least and its greatest, in their order."""
    if len(points) <= 2 * COLUMNS:
        return list(points)
    size = -(-len(points) // COLUMNS)
    kept = []
    for start in range(0, len(points), size):
        column = [point for point in points[start : start + size] if point[1] == point[1]]
        if column:
            ends = {min(column, key=lambda point: point[1]), max(column, key=lambda point: point[1])}
            kept += sorted(ends)
    return kept
