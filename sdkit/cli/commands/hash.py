"""Print the hashes by which hubs and web UIs know a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sdkit.cli.names import MODEL
from sdkit.cli.output import Output, columns, output_options
from sdkit.weights.hashes import FileHashes


@click.command("hash")
@click.argument("files", nargs=-1, required=True, type=MODEL, metavar="FILE...")
@output_options
def command(output: Output, files: tuple[Path, ...]) -> None:
    """Print every hash by which hubs and web UIs know each FILE, reading it once.

    With -q: the sha256 and the name, as `sha256sum` writes them.
    """
    from sdkit.jobs.hash import hash

    with output.progress() as progress:
        results = [hash(file, progress) for file in files]
    for result in results:
        if result.problem:
            output.warn(f"{result.path} is no sound safetensors file: {result.problem}")
    output.result(
        {"files": [asdict(result) for result in results]},
        [line for result in results for line in _lines(result)],
        [f"{result.sha256}  {result.path}" for result in results],
    )


def _lines(result: FileHashes) -> list[str]:
    hashes = {name: value for name, value in asdict(result).items() if name not in ("path", "size", "problem")}
    rows = [("size", f"{result.size:,} bytes"), *((name, value or "-") for name, value in hashes.items())]
    return [result.path, *columns(rows, indent="  ")]
