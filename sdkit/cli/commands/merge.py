"""Merge adapters into a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdkit.cli.commands._algebra import combine_adapters
from sdkit.cli.names import WEIGHTED, Weighted
from sdkit.cli.output import Output, output_options, written_line
from sdkit.core.errors import UsageError
from sdkit.core.human import plural


@click.command("merge", no_args_is_help=True)
@click.argument("base", type=WEIGHTED)
@click.argument("adapters", nargs=-1, required=True, type=WEIGHTED, metavar="ADAPTER[=STRENGTH]...")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="[default: BASE+ADAPTER.safetensors]")
@click.option("--alpha", type=float, default=1.0, show_default=True, help="Strength of adapters given without one.")
@click.option("--unet-alpha", type=float, default=1.0, show_default=True, help="Multiplies strengths in the UNet.")
@click.option("--te-alpha", type=float, default=1.0, show_default=True, help="Multiplies strengths in text encoders.")
@click.option("--blocks", metavar="SPEC", help="Factors per block: 'IN04=0.5,OUT*=0.2', 12/17/20/26 numbers, or JSON.")
@click.option("--dtype", metavar="TYPE", help="fp16, bf16, fp32, fp8_e4m3 or fp8_e5m2 [default: keep each tensor's].")
@click.option("--stochastic", type=int, metavar="SEED", help="Round at random, in proportion, with this seed.")
@click.option("--undo", type=click.Path(path_type=Path), help="Also write what `sdkit unmerge` needs to restore BASE.")
@click.option(
    "--dora",
    type=click.Choice(["exact", "comfyui", "a1111"]),
    default="exact",
    show_default=True,
    help="DoRAs as trained, or as comfyui (Forge, too) or a1111 draw those of output features.",
)
@click.option("--allow-unmatched", is_flag=True, help="Merge the rest when parts of an adapter have no place in BASE.")
@click.option("--threads", type=click.IntRange(1), help="Workers; never changes the result [default: one per core].")
@click.option("--rank", type=click.IntRange(1), help="Adapters alone: cut their sum to this rank [default: exact].")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would happen; write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@output_options
def command(
    output: Output, base: Weighted, adapters: tuple[Weighted, ...], target: Path | None, **options: Any
) -> None:
    """Add ADAPTERs to the weights of BASE and write the result.

    BASE is a safetensors file, a .ckpt, or a diffusers folder. ADAPTER is a LoRA of any dialect. A STRENGTH behind `=`
    overrides --alpha; a negative one subtracts. Where BASE is an adapter too, the sum of all is written as one adapter.
    """
    from sdkit.jobs.inputs import is_adapter

    path, strength = base.pair(None)
    if path.exists() and is_adapter(path):
        combine_adapters(output, [Weighted(path, strength), *adapters], target, options)
        return
    if strength is not None:
        raise UsageError(f"{path}={strength:g}: only adapters have a strength, and this is the base", "leave it out")
    if options.pop("rank") is not None:
        raise UsageError("--rank cuts the sum of adapters, and BASE is a checkpoint", "leave it out")
    from sdkit.jobs.merge import merge

    alpha = options.pop("alpha")
    pairs = [adapter.pair(alpha) for adapter in adapters]
    with output.progress() as progress:
        report = merge(path, pairs, target, progress=progress, **options)
    output.result(report.as_dict(), [*_factors(options), *describe(report)], [report.output])


def _factors(options: dict[str, Any]) -> list[str]:
    """What strengths are multiplied by, where anything was asked for."""
    parts = {"the UNet": options["unet_alpha"], "text encoders": options["te_alpha"]}
    said = [f"{name} × {factor:g}" for name, factor in parts.items() if factor != 1.0]
    said += [f"blocks {options['blocks']}"] if options["blocks"] else []
    return [f"factors: {', '.join(said)}"] if said else []


def describe(report: Any) -> list[str]:
    """The report in lines for people."""
    verb = "would merge" if report.dry_run else "merged"
    lines = []
    for adapter in report.adapters:
        line = f"{verb} {adapter.name} ({adapter.format}) at {adapter.strength:g}: {plural(adapter.matched, 'weight')}"
        lines.append(line + (f", {len(adapter.unmatched)} unmatched" if adapter.unmatched else ""))
        lines.extend(f"  note: {note}" for note in adapter.notes)
    lines.extend(f"  note: {warning}" for warning in report.warnings)
    lines.extend(f"saved the token beside it: {path}" for path in report.saved)
    if report.undo:
        lines.append(f"saved the undo file: {report.undo}")
    lines.append(f"changed {report.changed:,} of {plural(report.tensors, 'tensor')}, copied the rest")
    return [*lines, written_line(report)]
