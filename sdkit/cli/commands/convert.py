"""Convert a checkpoint: single file, diffusers folder, parts, types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdkit.cli.names import MODEL
from sdkit.cli.output import Output, output_options, written_line
from sdkit.core.human import human_bytes


@click.command("convert", no_args_is_help=True)
@click.argument("source", metavar="IN", type=MODEL)
@click.option("--to", required=True, metavar="WHAT", help="single, diffusers, or a program: comfyui, a1111, forge, …")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="[default: IN's name, here]")
@click.option("--only", metavar="COMPONENT", help="One component: unet, vae, text_encoder or text_encoder_2.")
@click.option("--dtype", metavar="TYPE", help="fp16, bf16, fp32, fp8_e4m3 or fp8_e5m2 [default: keep each tensor's].")
@click.option("--prune", is_flag=True, help="Leave out what no pipeline reads: EMA copy, constants, a trainer's rests.")
@click.option("--ema", is_flag=True, help="Take the EMA copy of the U-Net in place of its weights.")
@click.option("--bake-vae", type=MODEL, help="A file or folder with another autoencoder.")
@click.option("--prediction", metavar="KIND", help="epsilon or v_prediction, where IN does not say so.")
@click.option("--family", metavar="NAME", help="Whose autoencoder IN is: sd1, sd2 or sdxl.")
@click.option("--configs", type=click.Path(path_type=Path), help="A folder with configurations, where IN has none.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Read back and compare every parameter.")
@click.option("--threads", type=click.IntRange(1), help="Workers; never changes the result [default: one per core].")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would happen; write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@output_options
def command(output: Output, source: Path, to: str, target: Path | None, **options: Any) -> None:
    """Write the checkpoint IN in another layout, bit for bit, and prove it.

    IN is a safetensors file, a .ckpt, a diffusers folder or a component's folder. A folder gets configurations,
    scheduler and tokenizers; a single file keeps them in its metadata. What the model predicts is kept both ways.
    """
    from sdkit.jobs.convert import convert

    with output.progress() as progress:
        report = convert(source, to, target, progress=progress, **options)
    output.result(report.as_dict(), describe(report), [report.output])


def describe(report: Any) -> list[str]:
    """The report in lines for people."""
    verb = "would convert" if report.dry_run else "converted"
    lines = [f"{verb} {report.source} ({report.family}: {', '.join(report.components)}) to {report.to}"]
    lines.append(f"{report.consumed} tensors go in, {report.renamed} under other names; {report.tensors} are written")
    if report.prediction:
        lines.append(f"it predicts {'the velocity' if report.prediction == 'v_prediction' else 'the noise'}")
    if report.kept_beside:
        lines.append(f"laid beside, for the way back: {report.kept_beside} tensors")
    lines.extend(f"dropped {len(drop.names)} ({human_bytes(drop.bytes)}): {drop.reason}" for drop in report.dropped)
    lines.extend(f"  note: {warning}" for warning in report.warnings)
    if report.proof:
        same = "every bit is the same" if report.proof.exact else "each number is the source's, rounded once"
        lines.append(f"read back in {report.proof.seconds:.1f} s: {report.proof.parameters} parameters, {same}")
    return [*lines, written_line(report)]
