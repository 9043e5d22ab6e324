"""Reading YAML that a person wrote: plain values, and the line each of them stands in.

A recipe may come from a stranger, so nothing in it is more than text, numbers, lists and tables: no tags that make
objects, no aliases (a few lines of them can stand for gigabytes), and no key twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError, UsageError

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 200_000
MAX_DEPTH = 20
MAX_DIGITS = 20

# Where a value stands: the keys and indices that lead to it.
Where = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
# YAML 1.1 takes 1e-4 for text, because it has no point.
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d{1,3}")


@dataclass(frozen=True, slots=True)
class Document:
    """A recipe as it was written.

    Attributes:
        name: what messages call it.
        folder: what its relative paths are relative to.
        value: plain values: tables, lists, texts, numbers, true, false and none.
        lines: where each of them stands; empty for a recipe that comes from Python.
    """

    name: str
    folder: Path
    value: dict[str, Any]
    lines: Mapping[Where, int] = field(default_factory=dict)

    def error(self, where: Where, message: str, hint: str = "") -> UsageError:
        """What is wrong at a place, with file and line."""
        return UsageError(f"{self.place(where)}: {message}", hint)

    def place(self, where: Where) -> str:
        """File and line of a value; of what it stands in, where it has none of its own."""
        for length in range(len(where), -1, -1):
            if where[:length] in self.lines:
                return f"{self.name}:{self.lines[where[:length]]}"
        return self.name


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        SdkitError: there is no such file.
        UsageError: it is no YAML, or not a table of plain values.
    """
    import yaml

    if not path.is_file():
        raise SdkitError(f"{path}: no such recipe", "check the spelling; docs/recipes.md shows how one is written")
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path}: too large for a recipe")
    try:
        text = path.read_text(encoding="utf-8")
        _check_plain(path, text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{where}: no YAML: {getattr(error, 'problem', None) or error}") from None
    reader = _Reader(str(path))
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{path}: not a table of keys and values", "a recipe begins with `steps:` or `method:`")
    return Document(str(path), path.parent, reader.value(root, ()), reader.lines)


def _check_plain(path: Path, text: str) -> None:
    """Refuse what could grow: aliases, and a depth at which YAML's reader takes quadratic time."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UsageError(f"{path}:{line}: nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(f"{path}:{line}: aliases (*{event.anchor}) are not read", "write the value out")


def read_value(text: str) -> Any:
    """One value as a recipe would have it, from a command line.

    Raises:
        UsageError: it is no YAML.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{text!r}: no YAML: {getattr(error, 'problem', error)}") from None
    return None if root is None else _Reader(repr(text)).value(root, ())


class _Reader:
    """Makes plain values of YAML's nodes, and notes their lines."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.lines: dict[Where, int] = {}

    def value(self, node: yaml.Node, where: Where) -> Any:
        import yaml

        self.lines.setdefault(where, node.start_mark.line + 1)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            raise self._error(node, f"{node.tag} is no plain value")
        if isinstance(node, yaml.MappingNode):
            return self._table(node, where)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(entry, (*where, index)) for index, entry in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node)

    def _table(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        import yaml

        table: dict[str, Any] = {}
        for key, entry in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a key must be a word")
            if key.value in table:
                raise self._error(key, f"the key {key.value!r} comes twice")
            self.lines[(*where, key.value)] = key.start_mark.line + 1
            table[key.value] = self.value(entry, (*where, key.value))
        return table

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        import yaml

        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "timestamp" or (kind == "int" and len(text) > MAX_DIGITS):  # a hash may have digits only
            return text
        if kind == "str" and node.style is None and _EXPONENT.fullmatch(text):
            return float(text)
        if kind not in ("str", "int", "float", "bool", "null"):
            raise self._error(node, f"{node.tag} is no plain value")
        try:
            return text if kind == "str" else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError) as error:
            raise self._error(node, f"{text!r}: {error}") from None

    def _error(self, node: yaml.Node, message: str) -> UsageError:
        return UsageError(f"{self._name}:{node.start_mark.line + 1}: {message}")
