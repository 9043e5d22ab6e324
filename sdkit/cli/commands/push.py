"""Publish a model to a hub, with a card made from what is known of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdkit.cli.names import MODEL
from sdkit.cli.output import Output, columns, output_options
from sdkit.core.human import human_bytes

if TYPE_CHECKING:
    from sdkit.jobs.push import PushReport


@click.command("push", no_args_is_help=True)
@click.argument("model", type=MODEL)
@click.argument("reference")
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), help="Folder for `civitai:` [default: NAME-civitai]."
)
@click.option("--to", "to", multiple=True, metavar="FORMAT", help="Convert to this format first; may be repeated.")
@click.option("--licence", default="", help="Such as openrail or apache-2.0 [default: what the registry knows].")
@click.option(
    "--base-model", multiple=True, metavar="ORG/REPO", help="What it was made for [default: as its recipe says]."
)
@click.option(
    "--sample", "samples", multiple=True, type=click.Path(path_type=Path), help="A picture to show; may be repeated."
)
@click.option("--private", is_flag=True, help="Make the repository private, if there is none yet.")
@click.option("--create-pr", is_flag=True, help="Propose the files as a pull request.")
@click.option("--replace-card", is_flag=True, help="Also replace a card that somebody has written.")
@click.option("--message", default="", help="Of the commit.")
@click.option("--dry-run", is_flag=True, help="Show the files and the card; upload nothing.")
@output_options
def command(output: Output, model: Path, reference: str, target: Path | None, **options: Any) -> None:
    """Publish MODEL, a file, folder or name, to REFERENCE, such as `hf:user/repo`. With -q: its page.

    All files go up in one commit. The token is huggingface_hub's: `hf auth login`, or HF_TOKEN. Civitai lets no program
    publish, so `civitai:` prepares a folder with everything and says what to do with it.
    """
    from sdkit.jobs.push import push

    with output.progress() as progress:
        report = push(model, reference, target, progress=progress, **options)
    output.result(report.as_dict(), describe(report), [report.page or report.output])


def describe(report: PushReport) -> Iterator[str]:
    """The report in lines for people."""
    done = ("would prepare", "prepared") if report.output else ("would push", "pushed")
    yield f"{done[not report.dry_run]} {report.model} {'for' if report.output else 'to'} {report.reference}"
    yield from columns([(file.name, human_bytes(file.bytes)) for file in report.files], "  ")
    yield from (f"  note: {note}" for note in report.notes)
    if report.output:
        yield f"{'it would be' if report.dry_run else 'it is'} in {report.output}"
    elif report.dry_run:
        yield ""
        yield from (f"  {line}" for line in report.card.splitlines())
        yield "nothing was uploaded"
    else:
        yield f"see {report.page}"
