"""A picture of the falls, as SVG: a row for each method, a dot for each run, a bar for the interval of the mean."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.methods.summary import Falls
from sdkit.report.chart import number, ticks

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 760, 34, 170, 20, 34, 40
COLOURS = ("#3b6fb6", "#c2571a", "#3f8f4f", "#8a4fa3")
STYLE = (
    "text{font:13px sans-serif;fill:#57606a}.zero,.bar{stroke:#57606a}.grid{stroke:#8c959f;stroke-opacity:.3}"
    ".bar{stroke-width:3}@media(prefers-color-scheme:dark){text{fill:#c9d1d9}.zero,.bar{stroke:#c9d1d9}}"
)


def falls_plot(title: str, falls: Sequence[Falls]) -> str:
    """The plot.

    Args:
        title: below the axis, and read aloud where the picture cannot be seen.
        falls: of each method, from top to bottom.
    """
    runs = [float(run.mean()) for fall in falls for runs in fall.of.values() for run in runs]
    estimates = [fall.estimate() for fall in falls]
    low, high = min(0.0, *runs, *(each.low for each in estimates)), max(*runs, *(each.high for each in estimates))
    height = TOP + ROW * len(falls) + BOTTOM

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    names = list(dict.fromkeys(name for fall in falls for name in fall.of))
    parts = [_legend(names), *(_tick(x(value), height, value) for value in ticks(low, high, 6))]
    for row, (fall, estimate) in enumerate(zip(falls, estimates, strict=True)):
        y = TOP + ROW * (row + 0.5)
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(fall.condition)}</text>')
        parts.append(f'<path class="bar" d="M{x(estimate.low):.1f} {y + 9:.1f}H{x(estimate.high):.1f}"/>')
        parts += [
            _dot(x(float(run.mean())), y, _colour(names, name), opacity=0.75)
            for name, runs in fall.of.items()
            for run in runs
        ]
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 6}" text-anchor="middle">{escape(title)}</text>')
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
    head = f'<svg {box} role="img" aria-label="{escape(title)}">\n<style>{STYLE}</style>'
    return "\n".join([head, *parts, "</svg>", ""])


def _legend(names: Sequence[str]) -> str:
    return "\n".join(
        _dot(LEFT + 130 * place, 14, _colour(names, name))
        + f'<text x="{LEFT + 130 * place + 10}" y="18">{escape(name)}</text>'
        for place, name in enumerate(names)
    )


def _dot(x: float, y: float, colour: str, opacity: float = 1.0) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="{opacity:g}"/>'


def _tick(x: float, height: int, value: float) -> str:
    kind = "grid" if value else "zero"
    bottom = height - BOTTOM
    return (
        f'<path class="{kind}" d="M{x:.1f} {TOP}V{bottom}"/>'
        f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{number(value)}</text>'
    )


def _colour(names: Sequence[str], name: str) -> str:
    return COLOURS[names.index(name) % len(COLOURS)]
