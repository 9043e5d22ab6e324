"""List formats of adapters and layouts of checkpoints: what is read, what is written, which programs read it."""

from __future__ import annotations

import click

from sdkit.cli.output import Output, fitted, output_options


@click.command("formats")
@output_options
def command(output: Output) -> None:
    """List the formats of adapters and the layouts of checkpoints, as `sdkit convert --to` knows them.

    Every program named is another name of the formats it reads; `FORMAT:DIALECT` names a special way of writing one.
    """
    from sdkit.jobs.formats import NOTE, formats

    found = formats()
    lines = [*fitted(found.table(), headed=True), "", NOTE, "", *fitted(found.layout_table(), headed=True)]
    output.result(found.as_dict(), lines, [format.name for format in found.formats])
