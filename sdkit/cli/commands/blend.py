"""Blend checkpoints by any merge method.

sdkit blend a.safetensors b.safetensors --alpha 0.3 -o mix.safetensors
sdkit blend a.safetensors b.safetensors c.safetensors --method add-difference --alpha 0.7 -o mix.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdkit.cli.names import MODEL, WEIGHTED, Weighted
from sdkit.cli.output import Output, fitted, output_options, written_line
from sdkit.core.errors import UsageError
from sdkit.core.human import plural


@click.command("blend", no_args_is_help=True)
@click.argument("models", nargs=-1, type=WEIGHTED, metavar="A[=WEIGHT] B[=WEIGHT] ...")
@click.option("-m", "--method", default="weighted-sum", show_default=True, help="The merge method; see --list.")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="File to write.")
@click.option("--base", type=MODEL, help="What differences are taken from (TIES, DARE, …).")
@click.option("--alpha", metavar="NUMBER", help="Strength; 0,0.5,1 is a gradient over depth.")
@click.option("--beta", metavar="NUMBER", help="Second strength of methods that have one.")
@click.option(
    "-p", "--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="Another option of the method."
)
@click.option("--blocks", metavar="SPEC", help="Alpha per block: 'IN04=0.5,OUT*=0.2', 19/20/25/26 numbers, or JSON.")
@click.option(
    "--rule", "rules", multiple=True, metavar="REGEX=VALUE", help="Alpha (or =beta:VALUE) by name; later wins."
)
@click.option("--unet-alpha", type=float, default=1.0, show_default=True, help="Multiplies alpha in the UNet.")
@click.option("--te-alpha", type=float, default=1.0, show_default=True, help="Multiplies alpha in text encoders.")
@click.option("--vae", type=MODEL, help="Take the autoencoder from this file [default: A's].")
@click.option("--blend-vae", is_flag=True, help="Blend the autoencoders too.")
@click.option(
    "--missing",
    type=click.Choice(["error", "from-a", "skip"]),
    default="error",
    show_default=True,
    help="Weights a model lacks.",
)
@click.option(
    "--ema",
    type=click.Choice(["drop", "keep", "use"]),
    default="drop",
    show_default=True,
    help="Averaged copies inside the files.",
)
@click.option("--allow-prediction-mix", is_flag=True, help="Mix noise-predicting and velocity-predicting models.")
@click.option("--dtype", metavar="TYPE", help="fp16, bf16, fp32, fp8_e4m3 or fp8_e5m2 [default: keep each tensor's].")
@click.option("--stochastic", type=int, metavar="SEED", help="Round at random, in proportion, with this seed.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of methods that draw random numbers.")
@click.option("--threads", type=click.IntRange(1), help="Workers; never changes the result [default: one per core].")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would happen; write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--list", "show_list", is_flag=True, help="List the merge methods and stop.")
@output_options
def command(
    output: Output,
    models: tuple[Weighted, ...],
    target: Path | None,
    method: str,
    alpha: str | None,
    beta: str | None,
    parameters: tuple[str, ...],
    show_list: bool,
    **options: Any,
) -> None:
    """Blend models of one family: A gives the layout, the autoencoder and everything that is no weight.

    Models are safetensors files, .ckpt files or diffusers folders. A WEIGHT behind `=` is for methods with weights.
    """
    if show_list:
        list_methods(output)
        return
    if not models or target is None:
        raise UsageError("models and an output are needed", "sdkit blend A B --alpha 0.5 -o OUT.safetensors")
    from sdkit.jobs.blend import blend

    texts = {
        **named_values(parameters),
        **{name: text for name, text in (("alpha", alpha), ("beta", beta)) if text is not None},
    }
    pairs = [model.pair(None) for model in models]
    with output.progress() as progress:
        report = blend(
            [path if weight is None else (path, weight) for path, weight in pairs],
            target,
            method=method,
            parameters=parsed(method, texts),
            progress=progress,
            **options,
        )
    output.result(report.as_dict(), describe(report), [report.output])


def parsed(method: str, texts: dict[str, str]) -> dict[str, Any]:
    """The options' texts as values, in the types the method gives them."""
    from sdkit.merging.method import load_method

    known = load_method(method).parameters
    # A name the method does not know stays text; the job refuses it and names the nearest.
    return {name: known[name].parse(text) if name in known else text for name, text in texts.items()}


def named_values(parameters: tuple[str, ...]) -> dict[str, str]:
    """``density=0.3`` and the like as a table."""
    pairs = [text.partition("=") for text in parameters]
    for name, sign, _ in pairs:
        if not sign:
            raise UsageError(f"-p {name}: a value is missing", "write -p density=0.3")
    return {name.strip().replace("-", "_"): value.strip() for name, _, value in pairs}


def list_methods(output: Output) -> None:
    """Every merge method with what it takes."""
    from sdkit.merging.method import load_method, methods

    plugins = methods()
    contracts = {name: load_method(name) for name in plugins}
    data = {
        name: {
            "summary": plugins[name].summary,
            "models": contracts[name].describe_models(),
            "needs_base": contracts[name].needs_base,
            "parameters": {
                entry.name: {"default": entry.default, "allowed": entry.describe()}
                for entry in contracts[name].parameters.values()
            },
        }
        for name in plugins
    }
    rows = [(name, _takes(contracts[name]), plugins[name].summary) for name in plugins]
    output.result({"methods": data}, fitted(rows), list(plugins))


def _takes(method: Any) -> str:
    options = " ".join(f"{entry.name}={_short(entry.default)}" for entry in method.parameters.values())
    base = " + base" if method.needs_base else ""
    return f"{method.describe_models()}{base}{'; ' if options else ''}{options}"


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "equal" if value == () else str(value)


def describe(report: Any) -> list[str]:
    """The report in lines for people."""
    options = ", ".join(f"{name} {_short(value)}" for name, value in report.parameters.items())
    verb = "would blend" if report.dry_run else "blended"
    lines = [f"{verb} {', '.join(report.models)} by {report.method}" + (f" ({options})" if options else "")]
    lines.extend(f"  note: {warning}" for warning in report.warnings)
    lines.append(f"{plural(report.blended, 'tensor')} computed, {report.copied:,} copied")
    return [*lines, written_line(report)]
