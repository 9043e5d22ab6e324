"""Make the page of a training run again.

sdkit report runs/dog
"""

from __future__ import annotations

from pathlib import Path

import click

from sdkit.cli.output import Output, output_options
from sdkit.core.human import human_bytes


@click.command("report", no_args_is_help=True)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), help="File to write [default: RUN/report.html]."
)
@output_options
def command(output: Output, run: Path, target: Path | None) -> None:
    """Make the page of RUN, a training run's folder, from its log: losses, samples, options, in one file of HTML.

    A run makes it by itself whenever it ends; use this while it goes on, or after it was killed.
    """
    from sdkit.jobs.report import report

    made = report(run, target)
    line = f"wrote {made.output} ({human_bytes(made.bytes)}), the run at step {made.step}"
    output.result(made.as_dict(), [line], [made.output])
