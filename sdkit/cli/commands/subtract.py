"""Take one adapter out of another.

sdkit subtract style-and-face.safetensors face.safetensors -o style.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdkit.cli.commands._algebra import algebra_options, describe, rank_options, take_rule
from sdkit.cli.names import MODEL, WEIGHTED, Weighted
from sdkit.cli.output import Output, output_options


@click.command("subtract", no_args_is_help=True)
@click.argument("first", type=MODEL)
@click.argument("second", type=WEIGHTED, metavar="SECOND[=STRENGTH]")
@rank_options
@algebra_options
@output_options
def command(output: Output, first: Path, second: Weighted, target: Path | None, **options: Any) -> None:
    """Write the adapter that does what FIRST does and SECOND does not: FIRST - STRENGTH x SECOND.

    The difference is exact, of the sum of both ranks; --rank or a rule cuts it.
    """
    rule = take_rule(options)
    from sdkit.jobs.combine import subtract

    with output.progress() as progress:
        other = second.pair(1.0)
        report = subtract(first, other, target, rank=rule, progress=progress, **options)
    output.result(report.as_dict(), describe(report), [report.output])
