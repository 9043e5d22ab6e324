"""Paths on the command line, in whose place the name of a registered model will do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    PathType = click.ParamType[Path]
else:
    PathType = click.ParamType  # which is generic to Python since click 8.4 only


class ModelPath(PathType):
    """A path, or the name of a registered model. A path that exists wins."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path that is meant."""
        return model_path(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names, and what lies here."""
        return complete_models(ctx, param, incomplete)


class BasePath(ModelPath):
    """The same; ``tiny`` names the base that comes with sdkit."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path that is meant, or ``tiny``."""
        from sdkit.families.bases import TINY

        return value if value == TINY else model_path(value)


MODEL, BASE = ModelPath(), BasePath()


def model_path(text: str | Path) -> Path:
    """The path that is meant; the registry is asked only for what is no path."""
    if Path(text).exists():
        return Path(text)
    from sdkit.registry.names import resolve

    return resolve(text)


def complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What may follow: names of models with the files here that begin so, or without names the shell's own files."""
    names = complete_names(ctx, param, incomplete)
    if not names:
        return [CompletionItem(incomplete, type="file")]
    path = Path(incomplete)
    try:
        here = sorted(entry.name for entry in Path().iterdir() if entry.name.startswith(path.name))
    except OSError:
        here = []
    return [*names, *(CompletionItem(name) for name in here if not name.startswith("."))]


def complete_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of registered models that begin so."""
    from sdkit.registry.names import known_names

    return [CompletionItem(name) for name in known_names(incomplete) if name.isprintable()]
