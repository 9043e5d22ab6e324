"""Options and words that the commands for calculating with adapters share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from sdkit.cli.names import MODEL, Weighted
from sdkit.cli.output import Output, columns, written_line
from sdkit.core.errors import UsageError
from sdkit.core.human import plural

TOP = 8  # modules in the table; --json has them all


def algebra_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options every calculation has."""
    options = (
        click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="File to write."),
        click.option("--format", "format", help="kohya, peft or diffusers [default: as the first adapter]."),
        click.option("--dtype", metavar="TYPE", help="fp16, bf16 or fp32 [default: the widest of the inputs]."),
        click.option("--base", type=MODEL, help="The model, if the adapter does not tell its family."),
        click.option("--allow-unmatched", is_flag=True, help="Leave out tensors that belong to no module."),
        click.option(
            "--threads", type=click.IntRange(1), help="Workers; never changes the result [default: per core]."
        ),
        click.option("--dry-run", is_flag=True, help="Calculate and report; write nothing."),
        click.option("--force", is_flag=True, help="Replace an existing output."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def rank_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the rules that find a rank."""
    options = (
        click.option("--rank", type=int, help="The rank of every module, or with a rule the largest one allowed."),
        click.option("--sv-ratio", type=float, help="Keep singular values above the largest divided by this."),
        click.option("--sv-fro", type=float, help="Keep this share of each module's Frobenius norm (0.95)."),
        click.option("--sv-cumulative", type=float, help="Keep this share of the sum of singular values (0.9)."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def take_rule(options: dict[str, Any]) -> Any:
    """The rank rule among the options, taken out of them; None when none was given."""
    from sdkit.adapters.ranks import RankRule

    chosen = {name: options.pop(name) for name in ("rank", "sv_ratio", "sv_fro", "sv_cumulative")}
    return RankRule(**chosen) if any(value is not None for value in chosen.values()) else None


def describe(report: Any) -> list[str]:
    """The report in lines for people: what was done, the strongest modules, and how much was lost."""
    lines = [f"note: {note}" for note in report.notes]
    lines += [f"warning: {warning}" for warning in report.warnings]
    lines += table(report.modules)
    ranks = f"rank {_ranks(report.modules)}" if report.rank else "no ranks"
    lines.append(f"{plural(len(report.modules), 'changed weight')}, {ranks}, {_error(report.error)}")
    return [*lines, written_line(report, f"{report.format}, ")]


def table(modules: Iterable[Any]) -> list[str]:
    """The modules with the largest changes."""
    known = [module for module in modules if module.norm is not None]
    top = sorted(known, key=lambda module: -module.norm)[:TOP]
    if not top:
        return []
    total = sum(module.norm**2 for module in known) or 1.0
    rows = [("largest changes", "energy", "norm", "rank", "error")]
    for module in top:
        before = f"{module.rank_before}→" if module.rank_before not in (None, module.rank) else ""
        rank = f"{before}{module.rank}" if module.rank is not None else module.kind
        error = f"{module.error:.2%}" if module.error else "0"
        rows.append((module.name, f"{module.norm**2 / total:.1%}", f"{module.norm:.4g}", rank, error))
    return columns(rows, "  ")


def _ranks(modules: Iterable[Any]) -> str:
    ranks = [module.rank for module in modules if module.rank is not None]
    return str(ranks[0]) if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"


def _error(error: float) -> str:
    return f"relative error {error:.3%}" if error else "exact"


def combine_adapters(
    output: Output, adapters: Iterable[Weighted], target: Path | None, options: dict[str, Any]
) -> None:
    """What `sdkit merge` does when all its inputs are adapters."""
    plain = {"unet_alpha": 1.0, "te_alpha": 1.0, "blocks": None, "stochastic": None, "undo": None, "dora": "exact"}
    for name, value in plain.items():
        if options.pop(name) != value:
            raise UsageError(f"--{name.replace('_', '-')} is for merging into a checkpoint", "leave it out")
    from sdkit.jobs.combine import combine

    alpha, rank = options.pop("alpha"), options.pop("rank")
    pairs = [adapter.pair(alpha) for adapter in adapters]
    with output.progress() as progress:
        report = combine(pairs, target, rank=rank, progress=progress, **options)
    output.result(report.as_dict(), describe(report), [report.output])
