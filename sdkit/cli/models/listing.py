"""``sdkit models list``."""

from __future__ import annotations

import difflib
from typing import Any

import click

from sdkit.cli.output import Mode, Output, columns, output_options
from sdkit.core.human import human_bytes

_SHOWN = 100


@click.command("list")
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--kind", default="", help="checkpoint, component, lora, textual-inversion, hypernetwork, …")
@click.option("--family", default="", help="sd1, sd2, sdxl, …")
@click.option("--tag", default="", help="Only with this tag.")
@click.option("--missing", is_flag=True, help="Only those whose files are gone.")
@click.option("--all", "everything", is_flag=True, help="Also models that are only known as parents of others.")
@click.option("-n", "--limit", type=click.IntRange(0), help=f"How many to show; 0 is all [default: {_SHOWN}].")
@output_options
def list_(
    output: Output,
    words: tuple[str, ...],
    kind: str,
    family: str,
    tag: str,
    missing: bool,
    everything: bool,
    limit: int | None,
) -> None:
    """List models, the newest first. With -q: their names; with --json: all that match."""
    from sdkit.jobs.models.listing import list_models

    few = _SHOWN if output.mode is Mode.TEXT else 0
    filters: dict[str, Any] = {"kind": kind, "family": family, "tag": tag, "missing": missing, "everything": everything}
    found = list_models(words, **filters, limit=(few if limit is None else limit) or None)
    models = found.models
    if output.mode is not Mode.TEXT:
        table = [_as_dict(model) for model in models] if output.mode is Mode.JSON else []
        output.result({"models": table, "total": found.total}, brief=[model.name for model in models])
        return
    rows = [
        (
            model.name,
            model.kind or "parent",
            model.family,
            human_bytes(model.size) if model.size else "-",
            "missing" if model.missing else "",
            ", ".join((*model.triggers, *(f"#{tag}" for tag in model.tags)))[:60],
        )
        for model in models
    ]
    output.result({}, columns(rows) if rows else [])
    if len(models) < found.total:
        output.say(f"{found.total - len(models):,} more; --limit 0 shows all, words and --kind show fewer")
    elif not models:
        output.say(f"no model matches{_meant(words)}" if words or kind or family or tag or missing else _EMPTY)


_EMPTY = "nothing is registered yet: `sdkit models scan DIR` registers what lies in a folder"


def _meant(words: tuple[str, ...]) -> str:
    """What a first word may have been meant as: words that are no command of `sdkit models` are looked for."""
    group = click.get_current_context().parent
    commands = group.command.list_commands(group) if group and isinstance(group.command, click.Group) else []
    near = difflib.get_close_matches(words[0], commands, n=1) if words else []
    return f"; did you mean `sdkit models {near[0]}`?" if near else ""


def _as_dict(model: object) -> dict[str, object]:
    """`dataclasses.asdict` copies deeply, which takes as long as everything else together."""
    return {name: getattr(model, name) for name in model.__slots__}  # type: ignore[attr-defined]
