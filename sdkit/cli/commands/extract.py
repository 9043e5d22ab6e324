"""Extract the difference of two checkpoints as an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdkit.cli.commands._algebra import describe
from sdkit.cli.names import MODEL
from sdkit.cli.output import Output, output_options


@click.command("extract", no_args_is_help=True)
@click.argument("tuned", type=MODEL)
@click.argument("base", type=MODEL)
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="[default: TUNED-lora.safetensors]")
@click.option(
    "--rank", type=click.IntRange(1), help="Rank of every module [default: 32], or the largest allowed [128]."
)
@click.option("--ratio", type=float, help="Keep singular values above each module's largest divided by this.")
@click.option("--error", type=float, help="Find the rank that leaves at most this relative error in each module.")
@click.option(
    "--conv-rank", type=click.IntRange(0), help="Rank of convolutions; 0 leaves them out [default: as --rank]."
)
@click.option(
    "--tucker", is_flag=True, help="Write convolutions with a Tucker core (smaller; not every program reads it)."
)
@click.option("--diffs", is_flag=True, help="Add the differences of biases and normalisations, whole.")
@click.option("--format", default="kohya", show_default=True, help="kohya, peft, diffusers, … (`sdkit formats`).")
@click.option("--dtype", default="fp16", show_default=True, help="fp16, bf16 or fp32.")
@click.option("--threads", type=click.IntRange(1), help="Workers; never changes the result [default: one per core].")
@click.option("--dry-run", is_flag=True, help="Calculate and report; write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@output_options
def command(output: Output, tuned: Path, base: Path, target: Path | None, **options: Any) -> None:
    """Write the adapter that turns BASE into TUNED, as well as its ranks allow.

    The two may be single files or diffusers folders of one family. What is equal in both is left out; what changed and
    cannot be in an adapter (the VAE, embeddings) is counted in a warning.
    """
    from sdkit.jobs.extract import extract

    with output.progress() as progress:
        report = extract(tuned, base, target, progress=progress, **options)
    output.result(report.as_dict(), describe(report), [report.output])
