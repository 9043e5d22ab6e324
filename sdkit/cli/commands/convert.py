"""Convert a checkpoint or an adapter into another format, with proof."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import click

from sdkit.cli.names import BASE, MODEL
from sdkit.cli.output import Output, output_options, written_line
from sdkit.core.human import human_bytes, plural


@click.command("convert", no_args_is_help=True)
@click.argument("source", metavar="IN", type=MODEL)
@click.option("--to", required=True, metavar="WHAT", help="A format (`sdkit formats`) or a program: comfyui, a1111, …")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="[default: IN's name, here]")
@click.option("--only", metavar="COMPONENT", help="One component: unet or transformer, vae, text_encoder, …")
@click.option("--dtype", metavar="TYPE", help="fp16, bf16, fp32, fp8_e4m3 or fp8_e5m2 [default: keep each tensor's].")
@click.option("--prune", is_flag=True, help="Leave out what no pipeline reads: EMA copy, constants, a trainer's rests.")
@click.option("--ema", is_flag=True, help="Take the EMA copy of the U-Net in place of its weights.")
@click.option("--bake-vae", type=MODEL, help="A file or folder with another autoencoder.")
@click.option("--part", "parts", type=MODEL, multiple=True, help="A file with a text encoder or autoencoder to put in.")
@click.option("--prediction", metavar="KIND", help="epsilon or v_prediction, where IN does not say so.")
@click.option("--family", metavar="NAME", help="Of an autoencoder or an adapter: sd1, sd2, sdxl, …")
@click.option("--base", type=BASE, help="Adapters: the model, if of unusual sizes, or to work a change out on.")
@click.option("--network-alpha", type=float, metavar="ALPHA", help="Adapters: alpha, where IN does not state it.")
@click.option("--allow-lossy", is_flag=True, help="Adapters: let the nearest stand in for what WHAT cannot hold.")
@click.option("--rank", type=click.IntRange(1), help="Adapters: of what stands in [default: as 0.1 % error needs].")
@click.option("--keep-training-metadata", is_flag=True, help="Adapters: keep captions, folders and paths.")
@click.option("--configs", type=MODEL, help="A folder with configurations, where IN has none.")
@click.option("--tokenizer", type=MODEL, help="A folder with T5's tokenizer (SD3, FLUX.1).")
@click.option("--variant", metavar="NAME", help="Folders: what the names of the weights say: fp16, bf16, non_ema.")
@click.option("--shard-size", metavar="SIZE", help="Folders: the most a file holds, such as 10GB.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Read back and compare every parameter.")
@click.option("--threads", type=click.IntRange(1), help="Workers; never changes the result [default: one per core].")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would happen; write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@output_options
def command(output: Output, source: Path, to: str, target: Path | None, **options: Any) -> None:
    """Write the checkpoint or adapter IN in another format, and prove that nothing changed.

    A checkpoint (a safetensors file, a .ckpt, a diffusers folder or a component's) becomes a single file or a folder,
    bit for bit. An adapter (LoRA and its kin, an embedding, a hypernetwork) becomes what WHAT reads; what the format
    cannot hold is an error, or with --allow-lossy the nearest it can, with the error stated. `sdkit formats` lists
    formats and programs.
    """
    from sdkit.jobs.convert import convert

    with output.progress() as progress:
        report = convert(source, to, target, progress=progress, **options)
    lines = describe_adapter(report) if hasattr(report, "was") else describe(report)
    output.result(report.as_dict(), lines, [report.output, *getattr(report, "saved", ())])


def describe_adapter(report: Any) -> list[str]:
    """The report of an adapter in lines for people."""
    verb = "would convert" if report.dry_run else "converted"
    family = f" for {report.family}" if report.family else ""
    reads = "reads" if len(report.programs) == 1 else "read"
    readers = f", which {', '.join(report.programs)} {reads}" if report.programs else ""
    lines = [f"{verb} {report.source} ({report.was}{family}) to {report.to}{readers}"]
    changes = f"; {plural(report.changes, 'changed weight')}" if report.changes else ""  # an embedding has none
    renamed = f", {report.renamed} under other names" if report.renamed is not None else ""
    lines.append(f"{plural(report.consumed, 'tensor')} in{renamed}{changes}; unmatched: 0")
    lines.extend(_approximated(report.approximations))
    lines.extend(_dropped(report.dropped))
    if report.left_out:
        lines.append(f"left out of the metadata, as it tells of the training: {', '.join(report.left_out)}")
    lines.extend(f"  note: {note}" for note in report.notes)
    if report.proof:
        lines.append(_proven(report.proof))
    lines.extend(f"saved beside: {path}" for path in report.saved)
    return [*lines, written_line(report)]


def _dropped(entries: Sequence[Any]) -> list[str]:
    lines = []
    for drop in entries:
        names = shorten(", ".join(drop.names), 80, placeholder=" …")
        size = f" ({human_bytes(drop.bytes)})" if drop.bytes else ""
        lines.append(f"dropped {len(drop.names)}{size}: {drop.reason} ({names})")
    return lines


def _approximated(entries: Sequence[Any]) -> list[str]:
    if not entries:
        return []
    worst = max(entries, key=lambda entry: entry.error)
    kinds = ", ".join(sorted({entry.was for entry in entries}))
    ranks = [entry.rank for entry in entries]
    many = plural(len(entries), "changed weight")
    return [
        f"approximated {many} ({kinds}) at ranks {min(ranks)} to {max(ranks)}: up to {worst.error:.2%} "
        f"off ({worst.name})"
    ]


def _proven(proof: Any) -> str:
    parts = []
    if proof.changes:
        rest = f", the others within {proof.error:.1g} ({proof.worst})" if proof.exact < proof.changes else ""
        parts.append(f"{proof.exact:,} of {plural(proof.changes, 'changed weight')} the same number by number{rest}")
    if proof.words:
        parts.append(f"{plural(proof.words, 'word')} bit by bit")
    if proof.networks:
        parts.append(f"{plural(proof.networks, 'network')} bit by bit")
    return f"read back in {proof.seconds:.1f} s: {'; '.join(parts)}"


_PREDICTED = {"epsilon": "the noise", "v_prediction": "the velocity", "flow": "a flow"}


def describe(report: Any) -> list[str]:
    """The report in lines for people."""
    verb = "would convert" if report.dry_run else "converted"
    lines = [f"{verb} {report.source} ({report.family}: {', '.join(report.components)}) to {report.to}"]
    lines.append(
        f"{plural(report.consumed, 'tensor')} in, {report.renamed:,} under other names; {report.tensors:,} out"
    )
    if report.prediction:
        lines.append(f"it predicts {_PREDICTED[report.prediction]}")
    if report.kept_beside:
        lines.append(f"laid beside, for the way back: {plural(report.kept_beside, 'tensor')}")
    lines.extend(_dropped(report.dropped))
    lines.extend(f"  note: {warning}" for warning in report.warnings)
    if report.proof:
        same = "every bit is the same" if report.proof.exact else "each number is the source's, rounded once"
        lines.append(f"read back in {report.proof.seconds:.1f} s: {plural(report.proof.parameters, 'weight')}, {same}")
    return [*lines, written_line(report)]
