"""Find out what nameless files are: names, trigger words, terms and pictures by their hashes.

sdkit identify downloads/
sdkit identify 00012.safetensors --dry-run
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdkit.cli.names import MODEL
from sdkit.cli.output import Output, columns, output_options

if TYPE_CHECKING:
    from sdkit.jobs.identify import Identified, IdentifyReport


@click.command("identify", no_args_is_help=True)
@click.argument("paths", nargs=-1, required=True, type=MODEL, metavar="FILE|DIR|NAME...")
@click.option("--dry-run", is_flag=True, help="Ask, and write nothing down.")
@click.option("--previews/--no-previews", default=True, help="Keep a picture of each, if anybody may see it.")
@output_options
def command(output: Output, paths: tuple[Path, ...], dry_run: bool, previews: bool) -> None:
    """Ask Civitai what files are, and put it into the registry.

    The files are read whole, and only their sha256 is sent. Names and words that you have given stay. With -q: the
    references of those that are known.
    """
    from sdkit.jobs.identify import identify

    with output.progress() as progress:
        report = identify(paths, dry_run=dry_run, previews=previews, progress=progress)
    known = [one.reference for one in report.files if one.state == "known"]
    output.result(report.as_dict(), _lines(report), known)


def _lines(report: IdentifyReport) -> Iterator[str]:
    for one in report.files:
        yield f"{one.path}: {one.name or one.state}"
        yield from columns([row for row in _rows(one) if row[1]] or [("", "")], "  ") if one.state != "unknown" else ()
    known = sum(one.state == "known" for one in report.files)
    yield f"{known:,} of {len(report.files):,} are known to Civitai" + (
        "; nothing was written down" if report.dry_run else ""
    )


def _rows(one: Identified) -> list[tuple[str, str]]:
    return [
        ("base", one.base),
        ("triggers", ", ".join(one.triggers)),
        ("licence", one.licence),
        ("page", one.page),
        ("preview", one.preview),
        ("note", one.reason),
    ]
