"""Draw pictures with a base and adapters.

sdkit generate --base sd15.safetensors --prompt "a (red:1.2) fox <lora:ink:0.8>" -o fox.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdkit.cli.names import BASE, MODEL, WEIGHTED, Weighted
from sdkit.cli.output import Output, output_options
from sdkit.core.errors import UsageError
from sdkit.core.human import human_seconds


@click.command("generate", no_args_is_help=True)
@click.option("--base", type=BASE, help="Checkpoint, diffusers folder, or tiny.")
@click.option("-p", "--prompt", "prompts", multiple=True, help="What to draw; several times for several prompts.")
@click.option("-n", "--negative", help="What not to draw.")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), default="picture.png", show_default=True)
@click.option("--seed", type=int, help="Of the first picture; the next has the next number [default: 0].")
@click.option("--steps", type=int, help="Steps of the sampler [default: 25].")
@click.option("--cfg", type=float, help="Guidance; 1 is none [default: 7].")
@click.option("--width", type=int, help="[default: what the base was made for]")
@click.option("--height", type=int, help="[default: what the base was made for]")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="Pictures of every prompt.")
@click.option("--sampler", help="As web UIs name them; see --list [default: DPM++ 2M Karras].")
@click.option("--clip-skip", type=int, help="Layer of the text encoder, from the end: 1 is the last [default: 1].")
@click.option("--like", type=click.Path(path_type=Path), help="Take prompt and settings from a picture.")
@click.option(
    "--lora",
    "--adapter",
    "adapters",
    type=WEIGHTED,
    multiple=True,
    metavar="FILE[=STRENGTH]",
    help="Put an adapter live.",
)
@click.option("--inversion", type=MODEL, help="Draw an inverted picture again, or edit it by --prompt.")
@click.option(
    "--cross-replace",
    type=click.FloatRange(0, 1),
    default=0.8,
    show_default=True,
    help="Of an edit: share of the steps that take over attention to the text, and so the layout.",
)
@click.option(
    "--self-replace",
    type=click.FloatRange(0, 1),
    default=0.4,
    show_default=True,
    help="Of an edit: share of the steps that take over attention within the picture, and so shapes.",
)
@click.option("--adapters", "folder", type=click.Path(path_type=Path), help="Folder of adapters that prompts name.")
@click.option("--image-encoder", default="", metavar="CLIP", help="What an aesthetic .pt was made with.")
@click.option("--grid", is_flag=True, help="Write one picture of all, with labels.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Pictures drawn at once.")
@click.option("--device", default="auto", show_default=True, help="cuda, mps, xpu, cpu, or auto.")
@click.option("--precision", default="auto", show_default=True, help="fp32, bf16, fp16, or auto.")
@click.option("--prediction", help="epsilon or v_prediction, where BASE does not say or says it wrongly.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be drawn; write nothing.")
@click.option("--force", is_flag=True, help="Replace existing pictures.")
@click.option("--list", "show_list", is_flag=True, help="List the samplers and stop.")
@output_options
def command(
    output: Output,
    base: Path | str | None,
    prompts: tuple[str, ...],
    target: Path,
    adapters: tuple[Weighted, ...],
    show_list: bool,
    **options: Any,
) -> None:
    """Draw pictures.

    A prompt may hold what people paste from web UIs: (word:1.2), [word], BREAK, <lora:name:0.8>, <hypernet:name:1>, and
    the names of embeddings; <aesthetic:name:0.9> steers it towards an aesthetic embedding. Pictures say what they were
    drawn with, as A1111's do.
    """
    if show_list:
        list_samplers(output)
        return
    if base is None:
        raise UsageError("no base is given", "name a checkpoint or a diffusers folder with --base")
    from sdkit.cli.progress import show_drawing
    from sdkit.jobs.generate import generate

    pairs = [adapter.pair(1.0) for adapter in adapters]
    with show_drawing(output) as watch:
        report = generate(base, prompts, target, adapters=pairs, watch=watch, **options)
    output.result(report.as_dict(), describe(report), report.outputs)


def list_samplers(output: Output) -> None:
    """Every sampler by its name."""
    from sdkit.generation.samplers import SAMPLERS

    output.result({"samplers": list(SAMPLERS)}, SAMPLERS, list(SAMPLERS))


def describe(report: Any) -> list[str]:
    """The report in lines for people."""
    verb = "would draw" if report.dry_run else "drew"
    lines = [f"note: {note}" for note in report.notes]
    for used in report.adapters:
        strengths = f"{used.unet:g}" if used.unet == used.text_encoder else f"{used.text_encoder:g}:{used.unet:g}"
        lines.append(f"with {used.path} ({used.kind}) at {strengths}")
    for prompt in dict.fromkeys(picture.prompt for picture in report.pictures):
        seeds = [picture.seed for picture in report.pictures if picture.prompt == prompt]
        span = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        lines.append(f"{verb} {prompt!r} on {report.base}, {span}")
    places = report.outputs[0] if len(report.outputs) == 1 else f"{report.outputs[0]} to {report.outputs[-1]}"
    if report.dry_run:
        return [*lines, f"would write {places}; nothing was written"]
    return [*lines, f"wrote {places} in {human_seconds(report.seconds)}"]
