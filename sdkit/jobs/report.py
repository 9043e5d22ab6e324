"""A run's page, made from its log; `train` makes one whenever it ends."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.core.report import Report
from sdkit.report.log import read_log
from sdkit.weights.atomic import write_file

PathLike = str | os.PathLike[str]
PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class PageReport(Report):
    """What was written: the page, and the step the run has come to."""

    output: str
    step: int
    bytes: int


def report(run: PathLike, output: PathLike | None = None) -> PageReport:
    """Make the page of a training run, finished or not.

    Args:
        run: the run's folder, or its result.
        output: the file to write, replaced if it is there; default ``report.html`` in the run's folder.

    Raises:
        SdkitError: there is no log of a run, or the page cannot be written.
    """
    from sdkit.report.page import render

    log = read_log(Path(run))
    target = Path(output) if output is not None else log.folder / PAGE
    try:
        page = render(log).encode()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise SdkitError(f"{log.folder}: the log is not as a run writes it: {error!r}") from error
    write_file(target, page, overwrite=True)
    return PageReport(str(target), log.step, len(page))
