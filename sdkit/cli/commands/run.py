"""Run a recipe: blends, merges and trainings in one file.

sdkit run mix.yaml --dry-run
sdkit run mix.yaml -o models/ --set mix.alpha=0.5
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdkit.cli.errors import INTERRUPTED
from sdkit.cli.output import Output, columns, output_options
from sdkit.core.human import human_bytes


@click.command("run", no_args_is_help=True)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), help="Folder of outputs [default: RECIPE's]."
)
@click.option("--set", "settings", multiple=True, metavar="STEP.OPTION=VALUE", help="Change an option of a step.")
@click.option("--threads", type=click.IntRange(1), help="Workers; never changes the result [default: one per core].")
@click.option("--dry-run", is_flag=True, help="Check everything and show the plan; write nothing.")
@click.option("--force", is_flag=True, help="Make every output anew, and replace what no recipe has made.")
@output_options
def command(output: Output, recipe: Path, target: Path | None, settings: tuple[str, ...], **options: Any) -> None:
    """Do what RECIPE, a YAML file, says: its steps in order, and of those only what has changed since the last time.

    docs/recipes.md explains how one is written.
    """
    from sdkit.cli.commands.train import split_settings
    from sdkit.cli.training import show_training
    from sdkit.jobs.run import run
    from sdkit.jobs.stop import StopRequest

    stop = StopRequest()
    with stop.on_signals(), show_training(output) as watch, output.progress() as progress:
        report = run(
            recipe,
            target,
            settings=split_settings(settings),
            progress=progress,
            watch=watch,
            should_stop=stop,
            **options,
        )
    output.result(report.as_dict(), describe(report), [step.output for step in report.steps if step.output])
    if not report.finished and not report.dry_run:
        raise click.exceptions.Exit(INTERRUPTED)


def describe(report: Any) -> list[str]:
    """The report in lines for people."""
    lines = columns([(step.state, step.name, _action(step)) for step in report.steps])
    lines += [f"note: {step.name}: {note}" for step in report.steps for note in _notes(step)]
    for step in report.steps:
        if report.dry_run and hasattr(step.report, "plan"):
            lines += [f"{step.name}:", *(f"  {line}" for line in _plan(step.report.plan))]
    if report.dry_run:
        return [*lines, "nothing was written"]
    if not report.finished:
        return [*lines, "interrupted; the state is saved. The same command goes on."]
    return [*lines, f"done in {report.seconds:.1f} s"]


def _action(step: Any) -> str:
    """What a step does, in a few words."""
    what = f"{step.verb} of {', '.join(step.needs)}" if step.needs else step.verb
    if not step.output:
        return what
    size = getattr(step.report, "bytes", 0) or getattr(step.report, "output_bytes", 0)
    older = ", in place of an older one" if step.replaces else ""
    about = "about " if getattr(step.report, "dry_run", False) else ""
    return f"{what} -> {step.output}" + (f" ({about}{human_bytes(size)}{older})" if size else older)


def _notes(step: Any) -> tuple[str, ...]:
    return (*getattr(step.report, "warnings", ()), *getattr(step.report, "notes", ()))


def _plan(plan: Any) -> list[str]:
    from sdkit.cli.commands.train import plan_lines

    return plan_lines(plan)
