"""Names of models: what may be one, and which one a file gets."""

from __future__ import annotations

from pathlib import Path

from sdkit.core.errors import UsageError

_LONGEST_NAME = 120
_SUFFIXES = frozenset({".safetensors", ".ckpt", ".pt", ".pth", ".bin"})
_FORBIDDEN = frozenset("/\\=\0")
_NO_BEGINNING = "-@."  # of an option, an id, a hidden file


def check_name(name: str) -> None:
    """Refuse names that would be taken for something else.

    Raises:
        UsageError: it is empty or too long, looks like a path, an option or an id, or holds control characters.
    """
    taken = name.startswith(tuple(_NO_BEGINNING)) or bool(_FORBIDDEN & set(name)) or name != name.strip()
    if not name or len(name) > _LONGEST_NAME or taken or not name.isprintable():
        raise UsageError(
            f"{name[:_LONGEST_NAME]!r} cannot be a name",
            "a name is not empty, has no / \\ =, control characters or spaces at an end, and begins with none of - @ .",
        )


def safe_name(text: str) -> str:
    """The nearest name that `check_name` takes, of a file's or a hub's: what could not be typed or shown is a ``_``."""
    typed = "".join("_" if sign in _FORBIDDEN or not sign.isprintable() else sign for sign in text)
    return typed.lstrip(f"{_NO_BEGINNING} ")[:_LONGEST_NAME].strip() or "unnamed"


def name_of(path: Path) -> str:
    """What a file's model is called until a person says otherwise."""
    return safe_name(path.stem if path.suffix in _SUFFIXES else path.name)
