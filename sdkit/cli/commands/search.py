"""Search the hubs for models: Civitai and Hugging Face.

sdkit search "pixel art" --type lora --base sdxl
sdkit search "pixel art" --stats
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from sdkit.cli.output import Output, columns, output_options
from sdkit.core.civitai import BASE_MODELS, TYPES

if TYPE_CHECKING:
    from sdkit.jobs.search import SearchReport


@click.command("search", no_args_is_help=True)
@click.argument("words", nargs=-1, required=True)
@click.option("--type", "kind", type=click.Choice(list(TYPES)), help="Only models of this kind.")
@click.option("--base", "family", type=click.Choice(list(BASE_MODELS)), help="Only for this family.")
@click.option("--hub", "only", multiple=True, help="Only this hub [default: all that can be searched].")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Of each hub.")
@click.option("--stats", is_flag=True, help="Downloads and ratings by kind, of the models that were found.")
@output_options
def command(
    output: Output,
    words: tuple[str, ...],
    kind: str | None,
    family: str | None,
    only: tuple[str, ...],
    limit: int,
    stats: bool,
) -> None:
    """Search for models that match WORDS, the most downloaded first. With -q: what `sdkit pull` takes."""
    from sdkit.jobs.search import search

    report = search(" ".join(words), kind=kind or "", family=family or "", limit=limit, only=only)
    for note in report.notes:
        output.warn(note)
    lines = _stats(report) if stats else _models(report)
    output.result(report.as_dict(), lines, [one.reference for one in report.models])
    if not report.models:
        output.say("nothing matches; fewer words find more")


def _models(report: SearchReport) -> Iterator[str]:
    rows = [
        (one.reference, one.name[:48], one.kind, one.base[:24], f"{one.downloads:,}", f"{one.likes:,}")
        for one in report.models
    ]
    if rows:
        yield from columns([("reference", "name", "kind", "base", "downloads", "likes"), *rows])


def _stats(report: SearchReport) -> Iterator[str]:
    rows = [
        (
            one.hub,
            one.kind or "other",
            f"{one.models:,}",
            f"{one.downloads:,}",
            f"{one.median_downloads:,.0f}",
            f"{one.likes:,}",
            f"{one.approval:.0%}" if one.approval is not None else "-",
        )
        for one in report.stats
    ]
    if rows:
        yield from columns([("hub", "kind", "models", "downloads", "median", "likes", "liked by"), *rows])
