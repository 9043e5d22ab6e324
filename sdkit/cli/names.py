"""Models on the command line: paths, in whose place a registered name or a reference to a hub will do.

Whatever names a model has one of the types `MODEL`, `BASE`, `REMOTE`, `WEIGHTED` and `NAME`, and is completed by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from sdkit.cli.output import current_output
from sdkit.core.errors import UsageError

if TYPE_CHECKING:
    PathType = click.ParamType[Path]
    TextType = click.ParamType[str]
else:
    PathType = TextType = click.ParamType  # which is generic to Python since click 8.4 only

Strength = TypeVar("Strength", float, None)


@dataclass(frozen=True, slots=True)
class Reference:
    """What lies on a hub, not pulled yet: that waits until the whole command line is known to be right."""

    text: str


class ModelPath(PathType):
    """A path, the name of a registered model, or a reference like ``hf:org/repo``. A path that exists wins."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path that is meant; a `Reference` becomes one in `with_paths`."""
        return Reference(str(value)) if _is_reference(str(value)) else model_path(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names, and what lies here."""
        return complete_models(incomplete)


class BasePath(ModelPath):
    """The same; ``tiny`` names the base that comes with sdkit."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path that is meant, or ``tiny``."""
        from sdkit.families.bases import TINY

        return value if value == TINY else super().convert(value, param, ctx)


class RemotePath(ModelPath):
    """The same, for commands that look at references from afar; these stay text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path that is meant, or the reference."""
        return str(value) if _is_reference(str(value)) else model_path(value)


@dataclass(frozen=True, slots=True)
class Weighted:
    """A model with a number behind it, as in ``lora.safetensors=0.8``; None where there is none."""

    model: Path | Reference
    strength: float | None

    def pair(self, default: Strength) -> tuple[Path, float | Strength]:
        """The path, pulled where it is a reference, and the strength."""
        path = model_path(self.model.text) if isinstance(self.model, Reference) else self.model
        return path, default if self.strength is None else self.strength


class WeightedPath(ModelPath):
    """The same with a strength behind ``=``; a file that has ``=`` in its name wins."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A `Weighted`.

        Raises:
            UsageError: what stands behind ``=`` is no number.
        """
        text = str(value)
        path, sign, number = text.rpartition("=")
        if not sign or path.endswith("#sha256") or Path(text).exists():
            return Weighted(super().convert(text, param, ctx), None)
        try:
            strength = float(number)
        except ValueError:
            raise UsageError(f"{text}: {number!r} is no strength", "write MODEL=0.8") from None
        return Weighted(super().convert(path, param, ctx), strength)


class ModelName(TextType):
    """How the registry knows a model: by name, ``@12``, path, the reference it came by, or ten digits of its sha256."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names of registered models that begin so."""
        return complete_names(incomplete)


MODEL, BASE, REMOTE, WEIGHTED, NAME = ModelPath(), BasePath(), RemotePath(), WeightedPath(), ModelName()


def model_path(text: str | Path) -> Path:
    """The path that is meant; the registry is asked only for what is no path, and a hub only for what is no name."""
    if Path(text).exists():
        return Path(text)
    from sdkit.jobs.pull import local_path

    output = current_output()
    with output.progress() as progress:
        return local_path(text, progress, output.say)


def with_paths(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a command, with what they refer to pulled."""
    return {key: _path(value) for key, value in options.items()}


def _path(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_path, value))
    return model_path(value.text) if isinstance(value, Reference) else value


def _is_reference(text: str) -> bool:
    if ":" not in text or Path(text).exists():
        return False
    from sdkit.hubs import is_reference

    return is_reference(text)


def complete_models(incomplete: str) -> list[CompletionItem]:
    """What may follow: names of models with the files here that begin so, or without names the shell's own files."""
    names = complete_names(incomplete)
    if not names:
        return [CompletionItem(incomplete, type="file")]
    path = Path(incomplete)
    try:
        here = sorted(entry.name for entry in Path().iterdir() if entry.name.startswith(path.name))
    except OSError:
        here = []
    return [*names, *(CompletionItem(name) for name in here if not name.startswith("."))]


def complete_names(incomplete: str) -> list[CompletionItem]:
    """The names of registered models that begin so."""
    from sdkit.registry.names import known_names

    return [CompletionItem(name) for name in known_names(incomplete) if name.isprintable()]
