"""Look through downloads: what is damaged, mislabelled, a pickle, NaN, falsely hashed, or there twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdkit.cli.names import MODEL
from sdkit.cli.output import Output, output_options
from sdkit.core.human import human_bytes, plural


@click.command("verify", no_args_is_help=True)
@click.argument("paths", metavar="FILE|FOLDER...", nargs=-1, required=True, type=MODEL)
@output_options
def command(output: Output, paths: tuple[Path, ...]) -> None:
    """Read weight files whole and say what is wrong with them. Nothing in them is run, nothing is changed.

    The exit code is 1 where a file has a problem; pickles and duplicates are warnings. With -q: the bad files.
    """
    from sdkit.jobs.verify import verify

    with output.progress() as progress:
        report = verify(paths, progress)
    output.result(report.as_dict(), describe(report), [file.path for file in report.files if file.problems])
    if report.bad:
        raise click.exceptions.Exit(1)


def describe(report: Any) -> list[str]:
    """The report in lines for people: problems first in each file, and a sum."""
    lines = []
    for file in report.files:
        lines.append(f"{file.path}: {'BAD' if file.problems else 'ok'}, {file.what}, {human_bytes(file.size)}")
        lines.extend(f"  problem: {text}" for text in file.problems)
        lines.extend(f"  note: {text}" for text in file.warnings)
    twice = f", {len(report.duplicates)} there more than once" if report.duplicates else ""
    return [*lines, f"{plural(len(report.files), 'file')}, {report.bad} with problems{twice}"]
