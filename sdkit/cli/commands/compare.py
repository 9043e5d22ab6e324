"""Train by several methods on the same pictures, and say which does what at what cost.

sdkit compare lora textual-inversion dreambooth:class=dog --data photos/ --base sd15.safetensors --subject dog
sdkit compare lora:rank=4 lora:rank=64 lora:algo=dora --data photos/ --base tiny --budget 10m batch=4
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from sdkit.cli.names import BASE
from sdkit.cli.output import Output, columns, output_options
from sdkit.core.errors import UsageError
from sdkit.core.human import human_bytes, human_seconds, plural

_KEY = re.compile(r"[\w-]+=")


@click.command("compare", no_args_is_help=True)
@click.argument("words", nargs=-1, required=True, metavar="METHOD[:KEY=VALUE]... [KEY=VALUE]...")
@click.option("--base", type=BASE, required=True, help="Checkpoint, diffusers folder, or tiny.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of pictures with captions.")
@click.option("--subject", default="", help="What they show, in a word the base knows: dog.")
@click.option("--budget", default="500", show_default=True, help="Of each training: steps, or a time like 90s or 10m.")
@click.option("--held-out", default="0.2", show_default=True, help="Share of the pictures, or a folder of others.")
@click.option("-p", "--prompt", "prompts", multiple=True, help="What to draw, {} for the subject [default: captions].")
@click.option("--prior", multiple=True, help="What the base should still know [default: the subject's class].")
@click.option("--cfg", type=float, default=7.0, show_default=True, help="Guidance of what is drawn.")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="Folder [default: runs/DATA-compare].")
@click.option("--force", is_flag=True, help="Measure everything anew.")
@click.option("--dry-run", is_flag=True, help="Show the plans and stop.")
@output_options
def command(output: Output, words: tuple[str, ...], target: Path | None, **options: Any) -> None:
    """Train by several METHODs on the same pictures, each in a process of its own, and measure them alike.

    Keys behind a colon are that method's, those by themselves are for all that know them. What is finished stays: the
    same command goes on after Ctrl-C, and with a further METHOD measures only that.
    """
    from sdkit.cli.commands.train import split_settings
    from sdkit.cli.errors import INTERRUPTED
    from sdkit.cli.training import show_training
    from sdkit.jobs.compare import compare
    from sdkit.jobs.stop import StopRequest

    methods = [word for word in words if not _KEY.match(word)]
    settings = split_settings(tuple(word for word in words if _KEY.match(word)))
    own = next((key for key in settings if key.replace("-", "_") in {"prompt", *options}), None)
    if own is not None:
        raise UsageError(f"{own}= is no key of a method", f"write --{own} {settings[own]}")
    base, data, stop = options.pop("base"), options.pop("data"), StopRequest()
    given: dict[str, Any] = {**options, **settings}
    with stop.on_signals(), show_training(output) as watch:
        report = compare(methods, base, data, target, say=output.say, watch=watch, should_stop=stop, **given)
    lines = _plan_lines(report) if report.dry_run else _lines(report)
    output.result(report.as_dict(), lines, [report.output] if report.rows else [])
    if not (report.finished or report.dry_run):
        click.get_current_context().exit(INTERRUPTED)


def _lines(report: Any) -> list[str]:
    lines = columns(report.table) if report.table else []
    lines += [f"{who} is left out: {reason}" for who, reason in report.left_out.items()]
    lines += [f"note: {note}" for note in report.notes]
    if not report.finished:
        return [*lines, "interrupted; the same command goes on"]
    return [*lines, report.advice, f"wrote {report.output} after {human_seconds(report.seconds)}"]


def _plan_lines(report: Any) -> list[str]:
    shown = f"{plural(report.pictures, 'picture')}, {report.held_out} held out"
    head = f"compare {plural(len(report.plans), 'method')} on {report.base}: {shown}"
    heads = ("", "trains", "steps", "about", "memory", "file")
    rows = [
        (
            label,
            f"{plan.parameters:,}",
            str(plan.steps or "by time"),
            human_seconds(plan.seconds),
            human_bytes(plan.memory_bytes),
            human_bytes(plan.output_bytes),
        )
        for label, plan in report.plans.items()
    ]
    prompts = [f"draws   {prompt}" for prompt in report.prompts]
    left_out = [f"{who} is left out: {reason}" for who, reason in report.left_out.items()]
    notes = [f"note: {note}" for note in report.notes]
    total = human_seconds(sum(plan.seconds for plan in report.plans.values()))
    return [head, *columns([heads, *rows]), *prompts, *left_out, *notes, f"about {total} in all; nothing was trained"]
