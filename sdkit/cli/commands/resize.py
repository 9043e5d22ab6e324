"""Give an adapter a smaller rank, with the error stated.

sdkit resize lora.safetensors --rank 32
sdkit resize lora.safetensors --sv-fro 0.95 -o small.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdkit.cli.commands._algebra import algebra_options, describe, rank_options, take_rule
from sdkit.cli.names import MODEL
from sdkit.cli.output import Output, output_options
from sdkit.core.errors import UsageError


@click.command("resize", no_args_is_help=True)
@click.argument("adapter", type=MODEL)
@rank_options
@algebra_options
@output_options
def command(output: Output, adapter: Path, target: Path | None, **options: Any) -> None:
    """Approximate every module of ADAPTER by the best one of a smaller rank.

    LoHa and LoKr become LoRA. A rule (one of the --sv options) finds the smallest rank for each module that fulfils it.
    """
    rule = take_rule(options)
    if rule is None:
        raise UsageError("no rank was given", "write --rank 32, or a rule such as --sv-fro 0.95")
    from sdkit.jobs.combine import resize

    with output.progress() as progress:
        report = resize(adapter, target, rank=rule, progress=progress, **options)
    output.result(report.as_dict(), describe(report), [report.output])
