"""The samples of a run as a page shows them: small, and inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sdkit.report.log import Record, RunLog

T = TypeVar("T")

SAMPLES = "samples"
SIDE = 256  # pixels of the longer side
COLUMNS = 8


@dataclass(frozen=True, slots=True)
class SampleSheet:
    """Prompts by steps.

    Attributes:
        steps: heads of the columns.
        rows: each prompt, and its pictures as ``data:`` addresses; None where there is none.
    """

    steps: list[str]
    rows: list[tuple[str, list[str | None]]]


def sample_sheet(log: RunLog) -> SampleSheet:
    """The samples of at most eight steps, spread over the run, the first and the last among them."""
    records = spread(log.samples, COLUMNS)
    prompts = records[-1]["prompts"]
    rows = [
        (prompt, [data_address(_picture(log.folder, record, row)) for record in records])
        for row, prompt in enumerate(prompts)
    ]
    return SampleSheet([step_name(record["step"]) for record in records], rows)


def step_name(step: int) -> str:
    """What a column is called."""
    return f"step {step:,}" if step else "base"


def spread(entries: Sequence[T], count: int) -> list[T]:
    """At most `count` of the entries, evenly spread, with both ends."""
    if len(entries) <= count:
        return list(entries)
    return [entries[round(index * (len(entries) - 1) / (count - 1))] for index in range(count)]


def _picture(folder: Path, record: Record, row: int) -> Path | None:
    """A sample's file, where the log names one within the run's folder."""
    names = record["files"]
    if row >= len(names) or Path(names[row]).name != names[row]:
        return None
    path = folder / SAMPLES / names[row]
    return path if path.is_file() else None


def data_address(path: Path | None) -> str | None:
    """A picture file, made small, as a ``data:`` address; None for none."""
    if path is None:
        return None
    import PIL.Image

    with PIL.Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE), PIL.Image.Resampling.LANCZOS)
        data = io.BytesIO()
        small.save(data, "WEBP", quality=90, method=4)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
