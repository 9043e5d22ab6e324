"""Make a base with random weights from configurations."""

from __future__ import annotations

from pathlib import Path

import click

from sdkit.cli.output import Output, output_options


@click.command("new-base")
@click.argument("configs", type=click.Path(path_type=Path))
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--seed", type=int, default=0, show_default=True, help="The weights follow from it.")
@click.option("--dtype", default="fp32", show_default=True, help="fp32, fp16 or bf16.")
@click.option("--force", is_flag=True, help="Replace an existing folder.")
@output_options
def command(output: Output, configs: Path, target: Path, seed: int, dtype: str, force: bool) -> None:
    """Make a diffusers folder with random weights from CONFIGS, a folder of configurations and a tokenizer.

    `sdkit train autoencoder` and `sdkit train fine-tune` make a model of it.
    """
    from sdkit.jobs.new_base import new_base

    made = new_base(configs, target, seed=seed, dtype=dtype, force=force)
    output.result(made.as_dict(), [f"wrote {made.output}: {made.parameters:,} random parameters"], [made.output])
