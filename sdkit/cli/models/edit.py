"""What a person says of a model: ``rename``, ``tag``, ``note``, ``remove``."""

from __future__ import annotations

import click

from sdkit.cli.names import NAME
from sdkit.cli.output import Output, output_options
from sdkit.core.errors import UsageError


@click.command("rename", no_args_is_help=True)
@click.argument("name", type=NAME)
@click.argument("new")
@output_options
def rename(output: Output, name: str, new: str) -> None:
    """Call the model NAME NEW. Its files keep their names."""
    from sdkit.jobs.models.edit import rename_model

    entry = rename_model(name, new)
    output.result({"id": entry.id, "name": entry.name}, [f"@{entry.id} is called {entry.name} now"], [entry.name])


@click.command("tag", no_args_is_help=True)
@click.argument("name", type=NAME)
@click.argument("tags", nargs=-1, required=True)
@click.option("--trigger", "table", flag_value="triggers", help="All TAGS are trigger words, not tags.")
@click.option("--licence", "table", flag_value="licences", help="All TAGS are its licences, not tags.")
@click.option("--remove", is_flag=True, help="Take these TAGS away.")
@output_options
def tag(output: Output, name: str, tags: tuple[str, ...], table: str | None, remove: bool) -> None:
    """Give the model NAME one or more TAGS, or with an option trigger words or licences in their place.

    An option counts for every word of the line, wherever it stands: `sdkit models tag fox "sks fox" --trigger`.
    """
    from sdkit.jobs.models.edit import change_words

    model = change_words(table or "tags", name, tags, remove=remove)  # type: ignore[arg-type]
    entry = model.entry
    said = {"tags": list(entry.tags), "triggers": list(entry.triggers), "licences": list(model.licences)}
    lines = [f"{key}: {', '.join(words) or '-'}" for key, words in said.items()]
    output.result({"name": entry.name, **said}, lines, list(entry.tags))


@click.command("note", no_args_is_help=True)
@click.argument("name", type=NAME)
@click.argument("text", nargs=-1)
@click.option("--remove", is_flag=True, help="Take this note away.")
@output_options
def note(output: Output, name: str, text: tuple[str, ...], remove: bool) -> None:
    """Write TEXT down about the model NAME."""
    from sdkit.jobs.models.edit import change_words

    if not text:
        raise UsageError("there is no text", f"sdkit models note {name} 'best at strength 0.7'")
    model = change_words("notes", name, [" ".join(text)], remove=remove)
    output.result({"name": model.entry.name, "notes": list(model.notes)}, model.notes, model.notes)


@click.command("remove", no_args_is_help=True)
@click.argument("names", nargs=-1, required=True, type=NAME)
@click.option("--delete", is_flag=True, help="Delete their files as well.")
@output_options
def remove(output: Output, names: tuple[str, ...], delete: bool) -> None:
    """Forget models. Their files stay, unless --delete says otherwise."""
    from sdkit.jobs.models.edit import remove_models

    report = remove_models(names, delete=delete)
    lines = [*(f"forgot {name}" for name in report.names), *(f"deleted {path}" for path in report.deleted)]
    output.result(report.as_dict(), lines, list(report.names))
