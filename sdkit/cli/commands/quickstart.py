"""Train a LoRA on the embedded base, merge it, and draw before and after."""

from __future__ import annotations

from pathlib import Path

import click

from sdkit.cli.output import Output, output_options
from sdkit.core.human import human_bytes, plural


@click.command("quickstart")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("quickstart"),
    show_default=True,
    help="Folder for the files.",
)
@click.option("--steps", type=click.IntRange(1), help="Steps of the training; fewer are faster and show less.")
@output_options
def command(output: Output, folder: Path, steps: int | None) -> None:
    """Teach a small embedded model six subjects it has never seen, merge the LoRA into it, and draw before and after.

    Nothing is downloaded, and no GPU is needed.
    """
    from sdkit.cli.training import show_training
    from sdkit.jobs.quickstart import STEPS, quickstart

    with show_training(output) as watch:
        made = quickstart(folder, steps=steps or STEPS, say=output.say, watch=watch)
    output.result(
        made.as_dict(),
        [
            f"base    {made.base}  {_size(made.base)}, a small Stable Diffusion 1 that draws emoji",
            f"lora    {made.lora}  {_size(made.lora)}, kohya format",
            f"merged  {made.merged}  {plural(made.modules, 'changed weight')} in {made.merge_seconds:.2f} s",
            f"before  {made.nearest_before:.0%} of {made.drawn} pictures look most like what was asked for",
            f"after   {made.nearest_after:.0%}",
            f"look at {made.sheet} and {made.report}",
            f'draw    sdkit generate --base {made.merged} --prompt "owl, noto style, on a pink background" --cfg 3',
        ],
        [made.sheet],
    )


def _size(path: str) -> str:
    return human_bytes(Path(path).stat().st_size)
