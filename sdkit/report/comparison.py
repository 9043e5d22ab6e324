"""The page of a comparison of methods: one file of HTML with its figures, plots and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdkit.core.human import human_bytes, human_seconds
from sdkit.report.page import filled
from sdkit.report.scatter import Scatter, Spot
from sdkit.report.thumbnails import data_address

TEMPLATE = Path(__file__).with_name("comparison.html")
SHOWN = 8  # pictures trained on that are shown


@dataclass(frozen=True, slots=True)
class Rowed:
    """What the plots show of a method.

    Attributes:
        label: the method.
        fall: of the held-out loss.
        interval: 95 % of it.
        bytes: of what it wrote.
        seconds: that it took.
    """

    label: str
    fall: float
    interval: tuple[float, float]
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the page says.

    Attributes:
        title: its heading.
        subtitle: below.
        advice: what follows from the figures.
        table: cells; the first line has the heads.
        rows: for the plots.
        prompts: what was drawn.
        pictures: who drew, and the folder of what was drawn: the n-th prompt is ``n.png``.
        shown: pictures trained on.
        left_out: method → why it was not compared.
        notes: facts a person should see.
    """

    title: str
    subtitle: str
    advice: str
    table: Sequence[Sequence[str]]
    rows: Sequence[Rowed]
    prompts: Sequence[str]
    pictures: Sequence[tuple[str, Path]]
    shown: Sequence[Path]
    left_out: Mapping[str, str]
    notes: Sequence[str]


def plots(rows: Sequence[Rowed]) -> list[Scatter]:
    """Size against quality, and time against quality."""
    heights = "fall of the held-out loss"
    return [
        Scatter(
            "size against quality",
            "size of the result",
            heights,
            [Spot(each.label, max(each.bytes, 1), each.fall, *each.interval) for each in rows],
            human_bytes,
        ),
        Scatter(
            "time against quality",
            "wall time of the training",
            heights,
            [Spot(each.label, max(each.seconds, 0.1), each.fall, *each.interval) for each in rows],
            human_seconds,
        ),
    ]


def render(page: Comparison) -> str:
    """The page.

    Raises:
        OSError: a picture cannot be read.
    """
    numbers = range(len(page.prompts))
    sheet = [(who, [_picture(folder / f"{number}.png") for number in numbers]) for who, folder in page.pictures]
    return filled(
        TEMPLATE,
        page=page,
        plots=plots(page.rows),
        sheet=sheet,
        shown=[data_address(path) for path in page.shown[:SHOWN]],
    )


def _picture(path: Path) -> str | None:
    return data_address(path if path.is_file() else None)
