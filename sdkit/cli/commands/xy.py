"""Draw what a blend makes of the same prompts at several strengths.

sdkit xy a.safetensors b.safetensors --alpha 0:1:0.25 --prompt "a cat" -o xy.png
sdkit xy mix.yaml --step mix --alpha 0,0.5,1 --prompt "a cat"
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from sdkit.cli.names import MODEL
from sdkit.cli.output import Output, output_options
from sdkit.core.errors import UsageError
from sdkit.core.human import human_seconds


@click.command("xy", no_args_is_help=True)
@click.argument("models", nargs=-1, required=True, type=MODEL, metavar="A B [C] | RECIPE")
@click.option("--alpha", required=True, metavar="FROM:TO:STEP", help="Strengths: 0:1:0.25, or 0,0.3,1.")
@click.option("-p", "--prompt", "prompts", multiple=True, required=True, help="What to draw; each is a row.")
@click.option("-n", "--negative", help="What not to draw.")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), default="xy.png", show_default=True)
@click.option("-m", "--method", default="weighted-sum", show_default=True, help="The merge method; see `sdkit blend`.")
@click.option("--base", type=MODEL, help="What differences are taken from.")
@click.option("--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="Another option of the method.")
@click.option("--step", default="", help="Of RECIPE: the step whose alpha it is [default: the only one].")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="Seeds of every prompt; rows too.")
@click.option("--seed", type=int, help="The first seed [default: 0].")
@click.option("--steps", type=int, help="Steps of the sampler [default: 25].")
@click.option("--cfg", type=float, help="Guidance; 1 is none [default: 7].")
@click.option("--width", type=int, help="[default: what the models were made for]")
@click.option("--height", type=int, help="[default: what the models were made for]")
@click.option("--sampler", help="See `sdkit generate --list` [default: DPM++ 2M Karras].")
@click.option("--clip-skip", type=int, help="Layer of the text encoder, from the end [default: 1].")
@click.option("--device", default="auto", show_default=True, help="cuda, mps, xpu, cpu, or auto.")
@click.option("--precision", default="auto", show_default=True, help="fp32, bf16, fp16, or auto.")
@click.option("--dry-run", is_flag=True, help="Check everything; draw nothing.")
@click.option("--force", is_flag=True, help="Replace an existing picture.")
@output_options
def command(
    output: Output,
    models: tuple[Path, ...],
    alpha: str,
    prompts: tuple[str, ...],
    target: Path,
    method: str,
    parameters: tuple[str, ...],
    **options: Any,
) -> None:
    """Draw the same prompts with a blend of A and B, or what RECIPE makes, at several strengths of it.

    One labelled picture: strengths are columns, prompts and seeds are rows. No blended model is written.
    """
    from sdkit.cli.commands.blend import named_values, parsed
    from sdkit.cli.progress import show_drawing
    from sdkit.jobs.xy import xy

    given = {name: value for name, value in options.items() if value is not None}
    with show_drawing(output) as watch:
        report = xy(
            models,
            prompts,
            target,
            alphas=strengths(alpha),
            method=method,
            parameters=parsed(method, named_values(parameters)),
            watch=watch,
            **given,
        )
    verb = "would draw" if report.dry_run else "drew"
    columns = ", ".join(f"{value:g}" for value in report.alphas)
    lines = [f"{verb} {' + '.join(report.models)} by {report.method} at alpha {columns}"]
    lines += [] if report.dry_run else [f"wrote {report.output} in {human_seconds(report.seconds)}"]
    output.result(report.as_dict(), lines, [report.output])


def strengths(text: str) -> list[float]:
    """``0:1:0.25`` as 0, 0.25, 0.5, 0.75, 1; ``0,0.3,1`` as these.

    Raises:
        UsageError: it is neither, or leads nowhere.
    """
    try:
        if ":" not in text:
            return [float(part) for part in text.split(",")]
        first, last, step = (float(part) for part in text.split(":"))
        count = math.floor((last - first) / step + 1e-9)
        if not 0 <= count < 1000:
            raise ValueError
        return [round(first + number * step, 9) for number in range(count + 1)]
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UsageError(f"--alpha {text}: no strengths", "write FROM:TO:STEP like 0:1:0.25, or 0,0.3,1") from None
