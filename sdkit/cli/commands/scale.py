"""Make an adapter stronger or weaker for good.

sdkit scale lora.safetensors 0.6
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdkit.cli.commands._algebra import algebra_options, describe
from sdkit.cli.names import MODEL
from sdkit.cli.output import Output, output_options


@click.command("scale", no_args_is_help=True, context_settings={"ignore_unknown_options": True})
@click.argument("adapter", type=MODEL)
@click.argument("factor", type=float)
@algebra_options
@output_options
def command(output: Output, adapter: Path, factor: float, target: Path | None, **options: Any) -> None:
    """Write the adapter whose strength 1 is ADAPTER's strength FACTOR.

    Only alpha changes where there is one, so the factors keep every bit. A negative FACTOR turns the effect around.
    """
    from sdkit.jobs.combine import scale

    with output.progress() as progress:
        report = scale(adapter, factor, target, progress=progress, **options)
    output.result(report.as_dict(), describe(report), [report.output])
