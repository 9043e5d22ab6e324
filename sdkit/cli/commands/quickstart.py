"""Make a small checkpoint and a LoRA, and merge them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sdkit.cli.output import Output, output_options
from sdkit.core.human import human_bytes


@click.command("quickstart")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("quickstart"),
    show_default=True,
    help="Folder for the three files.",
)
@output_options
def command(output: Output, folder: Path) -> None:
    """Make a small checkpoint in the layout of Stable Diffusion 1 and a LoRA, and merge them.

    Nothing is downloaded. The weights are random, so the pictures would be noise; the files are otherwise real.
    """
    from sdkit.jobs.quickstart import STRENGTH, quickstart

    made = quickstart(folder)
    output.result(
        {name: str(value) if isinstance(value, Path) else value for name, value in asdict(made).items()},
        [
            f"base    {made.base}  {human_bytes(made.base.stat().st_size)}, Stable Diffusion 1 in small",
            f"lora    {made.lora}  {human_bytes(made.lora.stat().st_size)}, kohya format",
            f"merged  {made.merged}  {made.modules} modules changed in {made.seconds:.2f} s",
            f"the same by hand: sdkit merge {made.base} {made.lora} --alpha {STRENGTH} -o mine.safetensors",
            f"look inside: sdkit inspect {made.merged}",
        ],
        [str(made.merged)],
    )
