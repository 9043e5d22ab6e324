"""``sdkit models show`` and ``sdkit models lineage``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdkit.cli.names import NAME
from sdkit.cli.output import Output, columns, output_options
from sdkit.core.human import human_bytes

if TYPE_CHECKING:
    from sdkit.jobs.models.show import Shown
    from sdkit.registry.rows import File


@click.command("show", no_args_is_help=True)
@click.argument("name", type=NAME)
@output_options
def show(output: Output, name: str) -> None:
    """Say what is known of the model NAME: files, trigger words, lineage, what loads it. With -q: its path."""
    from sdkit.jobs.models.show import show_model

    shown = show_model(name)
    output.result(shown.as_dict(), describe(shown), [shown.model.entry.path])


def describe(shown: Shown) -> Iterator[str]:
    """A model in lines for people."""
    model, entry = shown.model, shown.model.entry
    yield f"{entry.name}  (@{entry.id})"
    rows = [
        ("kind", " ".join(word for word in (entry.kind, entry.family, entry.format) if word)),
        *((key, str(value)) for key, value in _facts(model.details)),
        ("size", human_bytes(entry.size) if entry.size else ""),
        ("triggers", ", ".join(entry.triggers)),
        ("tags", ", ".join(entry.tags)),
        ("licence", "; ".join(model.licences)),
        *(("note", note) for note in model.notes),
        *(("from", place) for place in model.origins),
        *(("published", one.url or one.reference) for one in model.published),
        *(("file", _file(file)) for file in model.files),
        *((scheme, value) for scheme, value in model.identities if scheme != "quick"),
        *(("preview", picture) for picture in shown.previews),
        ("loaded by", ", ".join(shown.loaded_by)),
    ]
    yield from columns([row for row in rows if row[1]], "  ")
    if len(shown.tree) > 1:
        yield "lineage"
        yield from (f"  {line}" for line in shown.tree)


def _facts(details: object) -> Iterator[tuple[str, object]]:
    assert isinstance(details, dict)
    for key in ("title", "author", "variant", "prediction", "rank", "dtype"):
        if details.get(key):
            yield key, details[key]


def _file(file: File) -> str:
    state = "missing" if file.missing else "stored" if file.stored else "" if file.sha256 else "not verified"
    return f"{file.path} ({state})" if state else file.path


@click.command("lineage", no_args_is_help=True)
@click.argument("name", type=NAME)
@click.option("--dot", "as_dot", is_flag=True, help="Write the graph in Graphviz's language.")
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Draw it into this file.")
@click.option("--force", is_flag=True, help="Replace the file of --png.")
@output_options
def lineage(output: Output, name: str, as_dot: bool, png: Path | None, force: bool) -> None:
    """Show what NAME was made from, and what was made from it."""
    from sdkit.jobs.models.show import draw_lineage, model_lineage
    from sdkit.registry.lineage import dot, tree

    if png is not None:
        found = draw_lineage(name, png, force=force)
        output.result({**found.as_dict(), "output": str(png)}, [f"wrote {png}"], [str(png)])
        return
    found = model_lineage(name)
    lines = dot(found) if as_dot else tree(found)
    output.result(found.as_dict(), lines, lines)
