"""Take adapters out of a merged checkpoint again."""

from __future__ import annotations

from pathlib import Path

import click

from sdkit.cli.names import MODEL, WEIGHTED, Weighted
from sdkit.cli.output import Output, memory_note, output_options
from sdkit.core.human import human_bytes


@click.command("unmerge", no_args_is_help=True)
@click.argument("merged", type=MODEL)
@click.argument("adapters", nargs=-1, type=WEIGHTED, metavar="[ADAPTER[=STRENGTH]]...")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="[default: MERGED-unmerged]")
@click.option("--undo", type=MODEL, help="What `sdkit merge --undo` wrote: restores every bit.")
@click.option("--threads", type=click.IntRange(1), help="Workers; never changes the result [default: one per core].")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@output_options
def command(
    output: Output,
    merged: Path,
    adapters: tuple[Weighted, ...],
    target: Path | None,
    undo: Path | None,
    threads: int | None,
    force: bool,
) -> None:
    """Restore the base that MERGED was made from.

    With --undo every bit comes back. Without it ADAPTERs are subtracted, with the strengths that MERGED's metadata
    remember (or those given), which is as exact as the merge's rounding lets it be.
    """
    from sdkit.jobs.unmerge import unmerge

    pairs = [adapter.pair(None) for adapter in adapters]
    with output.progress() as progress:
        report = unmerge(merged, pairs, target, undo=undo, force=force, threads=threads, progress=progress)
    memory = memory_note(report)
    lines = [
        report.exactness,
        f"wrote {report.output} ({human_bytes(Path(report.output).stat().st_size)}) in {report.seconds:.1f} s{memory}",
    ]
    output.result(report.as_dict(), lines, [report.output])
