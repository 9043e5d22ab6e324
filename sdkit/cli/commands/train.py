"""Train an adapter on a folder of pictures.

sdkit train lora --base sd15.safetensors --data photos/ steps=800 rank=8
sdkit train recipe.yaml
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import click

from sdkit.cli.errors import INTERRUPTED
from sdkit.cli.names import BASE
from sdkit.cli.output import Mode, Output, fitted, memory_note, output_options
from sdkit.core.errors import UsageError
from sdkit.core.human import human_bytes, human_seconds, plural
from sdkit.core.plugins import choose
from sdkit.training.method import load_method, methods
from sdkit.training.options import option_help

_RECIPE_SUFFIXES = (".yaml", ".yml")


class Methods(click.Group):
    """A group whose commands are the training methods, and recipe files."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the methods; nothing is imported."""
        return sorted(methods())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of a method or of a recipe."""
        if name.endswith(_RECIPE_SUFFIXES):
            return _recipe_command(Path(name))
        plugin = choose(name, methods(), "training method")
        return _method_command(plugin.name, plugin.summary)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the methods with the first line of each module's docstring."""
        with formatter.section("Methods"):
            formatter.write_dl([(name, plugin.summary) for name, plugin in methods().items()])


@click.command(
    "train", cls=Methods, invoke_without_command=True, subcommand_metavar="METHOD|RECIPE.yaml [OPTIONS] [KEY=VALUE]..."
)
@click.option("--list", "show_list", is_flag=True, help="List the methods and stop, as without a method.")
@output_options
@click.pass_context
def command(ctx: click.Context, output: Output, show_list: bool) -> None:
    """Train an adapter on a folder of pictures.

    `sdkit train METHOD --help` lists the keys of a method.
    """
    name = ctx.invoked_subcommand
    if name is None:
        list_methods(output)
    elif show_list or output.mode is not Mode.TEXT:
        raise UsageError(f"an option stands before {name}", f"--json and -q stand behind it: sdkit train {name} --json")


def list_methods(output: Output) -> None:
    """Every training method with what it does; nothing is imported."""
    found = methods()
    data = {name: {"summary": plugin.summary} for name, plugin in found.items()}
    rows = [(name, plugin.summary) for name, plugin in found.items()]
    output.result({"methods": data}, fitted(rows), list(found))


class _MethodCommand(click.Command):
    """A method's command, whose help lists its keys."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the keys."""
        _, method = load_method(str(self.name))
        with formatter.section("Keys"):
            formatter.write_dl(option_help(method.keys, method.defaults))


def _method_command(name: str, summary: str) -> click.Command:
    parameters = [
        click.Option(["--base"], type=BASE, required=True, help="Checkpoint, diffusers folder, or tiny."),
        click.Option(
            ["--data"],
            type=click.Path(path_type=Path),
            required=True,
            help="Folder of pictures with captions, or one picture.",
        ),
        *_common(),
    ]

    @output_options
    def run(output: Output, settings: tuple[str, ...], **options: Any) -> None:
        _run(output, name, {**options, **split_settings(settings)})

    own: list[click.Parameter] = [click.Argument(["settings"], nargs=-1, metavar="[KEY=VALUE]..."), *parameters]
    return _MethodCommand(name, callback=run, params=own + _flags(run), help=f"{summary}.")


def _recipe_command(path: Path) -> click.Command:
    parameters = [
        click.Option(["--base"], type=BASE, help="Instead of the recipe's base."),
        click.Option(["--data"], type=click.Path(path_type=Path), help="Instead of the recipe's data."),
        *_common(),
    ]

    @output_options
    def run(output: Output, settings: tuple[str, ...], **options: Any) -> None:
        from sdkit.jobs.train_recipe import read_recipe

        given = {key: value for key, value in options.items() if value is not None}
        recipe = {**read_recipe(path), **given, **split_settings(settings)}
        _run(output, recipe.pop("method"), recipe)

    own: list[click.Parameter] = [click.Argument(["settings"], nargs=-1, metavar="[KEY=VALUE]..."), *parameters]
    return click.Command(str(path), callback=run, params=own + _flags(run), help=f"Train as {path} says.")


def _common() -> list[click.Option]:
    return [
        click.Option(
            ["-o", "--output", "target"],
            type=click.Path(path_type=Path),
            help="Folder of the run, or file of its result [default: runs/DATA-METHOD].",
        ),
        click.Option(["--resume"], is_flag=True, help="Continue from the newest saved state, which must be there."),
        click.Option(["--force"], is_flag=True, help="Replace what an earlier run left there."),
        click.Option(["--dry-run"], is_flag=True, help="Show the plan and stop."),
    ]


def _flags(function: Any) -> list[click.Parameter]:
    """The options `output_options` has given to a function."""
    return list(reversed(function.__click_params__))


def split_settings(settings: tuple[str, ...]) -> dict[str, str]:
    """``key=value`` words as a table.

    Raises:
        UsageError: a word has no ``=``, or a key comes twice.
    """
    table: dict[str, str] = {}
    for word in settings:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise UsageError(f"{word!r} is no KEY=VALUE", "options of the method are written like rank=8")
        if key in table:
            raise UsageError(f"{key}= is given twice")
        table[key] = value
    return table


def _run(output: Output, method: str, options: dict[str, Any]) -> None:
    from sdkit.cli.training import show_training
    from sdkit.jobs.stop import StopRequest
    from sdkit.jobs.train import train

    base, data, target = options.pop("base", None), options.pop("data", None), options.pop("target", None)
    for name, value in (("base", base), ("data", data)):
        if value is None:
            raise UsageError(f"no {name} is given", f"name one with --{name}, or as `{name}:` in the recipe")
    resume: bool | Literal["must"] = "must" if options.pop("resume", False) else False
    stop = StopRequest()
    with stop.on_signals(), show_training(output) if is_first_process() else nullcontext() as watch:
        report = train(method, base, data, target, resume=resume, watch=watch, should_stop=stop, **options)
    if watch is not None:  # of several processes one speaks
        output.result(report.as_dict(), describe(report, watch.told), [report.output])
    if not report.finished and not report.dry_run:
        raise click.exceptions.Exit(INTERRUPTED)


def is_first_process() -> bool:
    """Whether this is the only process, or the first of those ``accelerate launch`` or ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


def describe(report: Any, told: Collection[str]) -> list[str]:
    """The report in lines for people, without the notes that were `told` while it went on."""
    lines = plan_lines(report.plan) if report.dry_run else []
    of_plan = () if report.dry_run else report.plan.notes
    lines += [f"note: {note}" for note in report.notes if note not in told and note not in of_plan]
    if report.dry_run:
        return [*lines, "nothing was trained"]
    if not report.finished:
        kept = f"at step {report.step}; the state is saved" if report.step else "while drawing; what is drawn is kept"
        return [*lines, f"interrupted {kept}. Continue with:", f"  {report.resume}"]
    if report.validation is not None:
        lines.append(f"held-out loss {report.validation_before:.4f} -> {report.validation:.4f}{_fall(report)}")
    loss = f", loss {report.loss:.4f}" if report.loss is not None else ""
    memory = memory_note(report)
    size = human_bytes(report.output_bytes)
    lines.append(
        f"wrote {report.output} ({size}) after {plural(report.step, 'step')}{loss} in {report.seconds:.0f} s{memory}"
    )
    lines += [f"and {path}" for path in report.saved]
    return [*lines, f"look at {report.page}"] if report.page else lines


def _class_lines(prior: Any) -> list[str]:
    if prior is None:
        return []
    drawing = f", {prior.to_draw} to draw in about {human_seconds(prior.seconds)}" if prior.to_draw else ""
    return [f"class   {plural(prior.pictures, 'picture')} of {prior.prompt!r}{drawing}"]


def _fall(report: Any) -> str:
    if report.validation_fall is None:
        return ""
    fall = report.validation_before - report.validation
    how, sign = ("fell", 1) if fall >= 0 else ("rose", -1)
    low, high = sorted(sign * end for end in report.validation_fall)
    return f", {how} by {abs(fall):.4f} (95 %: {low:.4f} to {high:.4f})"


def plan_lines(plan: Any) -> list[str]:
    """The plan in lines for people."""
    sources = ", ".join(f"{count} from {source}" for source, count in plan.caption_sources.items())
    shapes = ", ".join(f"{count} of {size}" for size, count in plan.buckets.items())
    return [
        f"plan    {plan.method} on {plan.base} ({plan.family})",
        f"data    {plural(plan.pictures, 'picture')} ({shapes}); captions: {sources}",
        *(f"        {name}: {caption}" for name, caption in plan.examples.items()),
        *_class_lines(plan.class_pictures),
        f"trains  {plan.parameters:,} parameters in {plural(plan.modules, 'module')}",
        f"run     {plural(plan.steps, 'step')} of {plan.batch}, {plan.epochs:g} epochs, "
        f"about {human_seconds(plan.seconds)}, about {human_bytes(plan.memory_bytes)} of memory",
        f"output  {plan.output} (about {human_bytes(plan.output_bytes)}; {human_bytes(plan.disk_bytes)} of disk)",
    ]
