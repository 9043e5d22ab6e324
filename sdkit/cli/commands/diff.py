"""Compare checkpoints: how far apart they are, where, and which may come from which.

sdkit diff a.safetensors b.safetensors
sdkit diff base.safetensors tuned.safetensors mix.safetensors --image heat.png
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdkit.cli.names import MODEL
from sdkit.cli.output import Output, columns, output_options
from sdkit.core.human import plural

if TYPE_CHECKING:
    from sdkit.jobs.diff import Comparison, Difference, DiffReport

_BAR = 24


@click.command("diff", no_args_is_help=True)
@click.argument("models", nargs=-1, type=MODEL, metavar="A B [C ...]")
@click.option("--image", type=click.Path(path_type=Path), metavar="PNG", help="Draw a heat map of the distances.")
@click.option("--threads", type=click.IntRange(1), help="Workers; never changes a number [default: one per core].")
@click.option("--force", is_flag=True, help="Replace an existing picture.")
@output_options
def command(output: Output, models: tuple[Path, ...], image: Path | None, threads: int | None, force: bool) -> None:
    """Compare models of one family with A, by component and block, whatever their names, types and containers.

    A distance is ‖B − A‖ / ‖A‖. With more than two models: which lies between which. With -q: the distance of each.
    """
    from sdkit.jobs.diff import diff

    with output.progress() as progress:
        report = diff(models, image=image, force=force, threads=threads, progress=progress)
    brief = [f"{comparison.whole.distance:.6g}" for comparison in report.comparisons]
    output.result(report.as_dict(), describe(report), brief)


def describe(report: DiffReport) -> list[str]:
    """The report in lines for people."""
    lines: list[str] = []
    for comparison in report.comparisons:
        lines += [*_beside(report.models[0], comparison), ""]
    lines += report.relations
    if report.image:
        lines.append(f"wrote {report.image}")
    return lines if lines[-1] else lines[:-1]


def _beside(first: str, comparison: Comparison) -> Iterator[str]:
    yield f"{comparison.model} beside {first}"
    rows: list[tuple[str, ...]] = [("", "distance", "cosine", "changed", "")]
    rows += [_row(part, 0.0) for part in (comparison.whole, *comparison.components)]
    largest = max(part.distance for part in comparison.blocks)
    rows += [("", "", "", "", ""), *(_row(part, largest) for part in comparison.blocks)]
    yield from columns(rows, "  ")
    for names, who in ((comparison.only_a, first), (comparison.only_other, comparison.model)):
        if names:
            yield f"  {plural(len(names), 'weight')} only in {who}, or of another shape there (for example {names[0]})"


def _row(part: Difference, largest: float) -> tuple[str, ...]:
    if not part.changed:
        return (part.name, "identical", "", f"0 of {part.parameters}", "")
    bar = "#" * max(1, round(_BAR * part.distance / largest)) if largest else ""
    return (part.name, f"{part.distance:.5f}", f"{part.cosine:.6f}", f"{part.changed} of {part.parameters}", bar)
