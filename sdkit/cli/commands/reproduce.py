"""Rebuild a model from the recipe it carries, and compare.

sdkit reproduce mix.safetensors --models ~/models
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdkit.cli.names import MODEL
from sdkit.cli.output import Output, output_options
from sdkit.core.human import plural


@click.command("reproduce", no_args_is_help=True)
@click.argument("model", type=MODEL)
@click.option(
    "--models",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder to search for inputs, beside MODEL's, the registry and hubs; may be given several times.",
)
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="Keep the rebuilt file here.")
@click.option("--threads", type=click.IntRange(1), help="Workers; never changes the result [default: one per core].")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@output_options
def command(output: Output, model: Path, folders: tuple[Path, ...], target: Path | None, **options: Any) -> None:
    """Find the inputs of MODEL by their content, make it again, and say whether the bytes agree.

    The exit code is 1 where they do not.
    """
    from sdkit.jobs.reproduce import reproduce

    with output.progress() as progress:
        report = reproduce(model, folders, target, progress=progress, **options)
    output.result(report.as_dict(), describe(report), ["identical" if report.identical else "different"])
    if not report.identical:
        raise click.exceptions.Exit(1)


def describe(report: Any) -> list[str]:
    """The report in lines for people."""
    lines = [f"{name}: {path}" for name, path in report.inputs.items()]
    if report.output:
        lines.append(f"wrote {report.output}")
    lines += [f"note: {note}" for note in report.notes]
    if report.identical:
        return [*lines, f"identical: every byte of {report.model} can be made again"]
    if not report.differing:
        return [*lines, "all tensors agree, but the headers differ"]
    return [*lines, f"different: {plural(len(report.differing), 'part')}, for example {report.differing[0]}"]
