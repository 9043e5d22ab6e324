"""Bring a model from a hub: Hugging Face, Civitai, an address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdkit.cli.output import Output, columns, output_options
from sdkit.core.human import human_bytes, plural

if TYPE_CHECKING:
    from sdkit.jobs.pull import PullReport

_LISTED = 6


@click.command("pull", no_args_is_help=True)
@click.argument("reference")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="[default: the hub's own place]")
@click.option("--name", default="", help="What to call it here [default: as the hub does].")
@click.option("--dry-run", is_flag=True, help="Look at its header and say what would come.")
@output_options
def command(output: Output, reference: str, target: Path | None, name: str, dry_run: bool) -> None:
    """Download what REFERENCE names, verify and register it. What is here already is not downloaded again.

    REFERENCE is `hf:org/repo`, `hf:org/repo/file@revision`, `civitai:123@456` or an `https://` address; with
    `#sha256=…` behind it, it must be that file. Every command takes references in place of files. With -q: the path.
    """
    from sdkit.jobs.pull import pull

    with output.progress() as progress:
        report = pull(reference, target, name=name, dry_run=dry_run, progress=progress)
    output.result(report.as_dict(), describe(report), [report.output or report.pinned])


def describe(report: PullReport) -> Iterator[str]:
    """The report in lines for people."""
    size = f", {human_bytes(report.bytes)}" if report.bytes else ""
    files = report.files[0] if len(report.files) == 1 else plural(len(report.files), "file")
    rows = [
        ("what", " ".join(word for word in (report.kind, report.family) if word)),
        ("files", files + size),
        ("because", report.why),
        ("others", ", ".join(report.others[:_LISTED]) + (", …" if len(report.others) > _LISTED else "")),
        ("licence", report.licence),
        ("base", ", ".join(report.base_model)),
        ("triggers", ", ".join(report.triggers)),
        ("sha256", report.sha256),
        ("page", report.page),
        ("preview", report.preview),
        ("pinned", report.pinned),
        *(("note", note) for note in report.notes),
    ]
    yield {"planned": "would pull", "here": "is here already:", "pulled": "pulled"}[report.state] + f" {report.name}"
    yield from columns([row for row in rows if row[1]], "  ")
    yield f"it is at {report.output}" if not report.dry_run else "nothing was downloaded"
