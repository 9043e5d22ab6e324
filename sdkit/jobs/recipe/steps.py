"""A recipe's steps: read from a document, checked as far as that goes without opening a model, and put in order."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.families.bases import TINY, resolve_base
from sdkit.hubs import is_reference
from sdkit.jobs.recipe.document import Document, Where
from sdkit.jobs.recipe.verbs import Verb, load_verb, verb_names
from sdkit.registry.names import resolve
from sdkit.training.options import init_file, may_be_adapter

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_][\w-]*")
_PIN = re.compile(r"@sha256:([0-9A-Fa-f]{64})$")
_SOURCE_KEYS = frozenset({"path", "step", "sha256", "strength", "weight"})


@dataclass(frozen=True, slots=True)
class Source:
    """An input: a file or folder, the result of a step, or what lies on a hub.

    Attributes:
        where: in the document.
        path: of the file or folder; None for a step, and for a reference until `pull_sources`.
        step: its name; None for a path.
        reference: to a hub; empty for others.
        sha256: what the file must have; empty where anything will do.
        strength: the number written with it.
    """

    where: Where
    path: Path | None = None
    step: str | None = None
    reference: str = ""
    sha256: str = ""
    strength: float | None = None


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        name: as the recipe calls it.
        verb: which job.
        arguments: its parameters; those that name inputs hold a `Source` or a list of them.
        output: what it writes; None where the result is only for other steps.
        where: in the document.
    """

    name: str
    verb: Verb
    arguments: Mapping[str, Any]
    output: Path | None
    where: Where

    @property
    def adds(self) -> bool:
        """Whether the step calculates so that nothing need be written before or after it."""
        return self.verb.fuses or self.verb.name in ("scale", "subtract")

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """Every input."""
        return tuple(_sources(self.arguments.values()))


def _sources(values: Any) -> Iterator[Source]:
    for value in values:
        if isinstance(value, Source):
            yield value
        elif isinstance(value, list):
            yield from _sources(value)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps in the order in which they are done.

    Attributes:
        document: where they come from.
        steps: a step comes after those it needs.
        needs: step → the names of those.
    """

    document: Document
    steps: tuple[Step, ...]
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_recipe(document: Document, outputs: Path | None = None) -> Recipe:
    """The steps of a document.

    Args:
        document: a table with ``steps``, or with ``method``: one training run.
        outputs: the folder that outputs go to, in place of the document's.

    Raises:
        SdkitError: whatever is wrong with it, with file and line: unknown words, missing files, cycles.
    """
    return _Reader(document, outputs).read()


def pull_sources(recipe: Recipe, pull: Callable[[Source], Path]) -> Recipe:
    """The recipe with the paths that its references have once they are pulled, each once."""
    pulled: dict[str, Path] = {}

    def arrived(value: Any) -> Any:
        if isinstance(value, list):
            return [arrived(entry) for entry in value]
        if not isinstance(value, Source) or not value.reference:
            return value
        if value.reference not in pulled:
            pulled[value.reference] = pull(value)
        return replace(value, path=pulled[value.reference])

    steps = [
        replace(step, arguments={key: arrived(value) for key, value in step.arguments.items()}) for step in recipe.steps
    ]
    return replace(recipe, steps=tuple(steps))


class _Reader:
    """Reads the steps of one document."""

    def __init__(self, document: Document, outputs: Path | None) -> None:
        self._document, self._outputs = document, outputs
        self._tables: dict[str, Any] = {}

    def read(self) -> Recipe:
        self._tables = self._step_tables()
        steps = {name: self._step(name, table) for name, table in self._tables.items()}
        needs = {name: tuple(dict.fromkeys(self._needs(step, steps))) for name, step in steps.items()}
        self._check_outputs(steps, needs)
        return Recipe(self._document, tuple(steps[name] for name in self._order(steps, needs)), needs)

    def _order(self, steps: Mapping[str, Step], needs: Mapping[str, tuple[str, ...]]) -> list[str]:
        try:
            return list(TopologicalSorter(needs).static_order())
        except CycleError as error:
            circle = error.args[1][::-1]
            message = f"the steps form a circle: {' needs '.join(circle)}"
            raise self._error(steps[circle[0]].where, message) from None

    def _step_tables(self) -> dict[str, Any]:
        document, value = self._document, self._document.value
        unknown = next((key for key in value if key not in ("steps", "description")), None)
        if unknown is not None or not value.get("steps"):
            hint = "a recipe is a table `steps:`, or begins with `method:` for one training run"
            raise document.error((unknown or "steps",), f"unknown key {unknown!r}" if unknown else "no steps", hint)
        if not isinstance(value["steps"], dict):
            raise document.error(("steps",), "steps must be a table of names", "write `NAME:` before each step")
        return value["steps"]

    def _step(self, name: str, table: Any) -> Step:
        where: Where = ("steps", name)
        if not _NAME.fullmatch(name):
            raise self._error(where, f"{name!r} is no name for a step", "use letters, digits, _ and -")
        if not isinstance(table, dict) or not table:
            raise self._error(where, f"{name} is no step", "write `blend: [a.safetensors, b.safetensors]` below it")
        word = next(iter(table))
        verb = load_verb(word)
        if verb is None:
            problem = f"{word!r} is nothing a step can do; that comes first in each"
            raise self._error((*where, word), problem, nearest_hint(word, verb_names()))
        given = {key.replace("-", "_"): (value, (*where, key)) for key, value in table.items() if key != word}
        given = {**self._words(verb, table[word], (*where, word)), **given}
        return self._bind(name, verb, given, where)

    def _words(self, verb: Verb, value: Any, where: Where) -> dict[str, tuple[Any, Where]]:
        """What stands behind the verb, given to its parameters in their order."""
        table = isinstance(value, dict) and not (value.keys() <= _SOURCE_KEYS and verb.words[0] in verb.paths)
        if value is None or (table and verb.words[0] not in verb.several):
            raise self._error(where, f"{verb.name} needs a value", f"it takes {', '.join(verb.words)}")
        several = [key for key in verb.words if key in verb.several]
        if isinstance(value, list) and several and verb.words[0] in several:
            return {verb.words[0]: (value, where)}
        entries = value if isinstance(value, list) else [value]
        found: dict[str, tuple[Any, Where]] = {}
        for index, entry in enumerate(entries):
            place = (*where, index) if isinstance(value, list) else where
            if index >= len(verb.words):
                raise self._error(place, f"{verb.name} takes only {', '.join(verb.words)}")
            key = verb.words[index]
            if key in verb.several:
                return {**found, key: (entries[index:], (*where, index))}
            found[key] = (entry, place)
        return found

    def _bind(self, name: str, verb: Verb, given: dict[str, tuple[Any, Where]], where: Where) -> Step:
        output, place = given.pop("output", (None, where))
        try:
            more, more_paths = verb.more_options({key: value for key, (value, _) in given.items()})
        except SdkitError as error:
            raise self._error(given["method"][1] if "method" in given else where, error.message, error.hint) from None
        known = verb.options | more
        for key, (_, spot) in given.items():
            if key not in known:
                raise self._error(spot, f"{verb.name} has no option {key!r}", nearest_hint(key, known))
        missing = [key for key in verb.required if key not in given]
        if missing:
            raise self._error(where, f"{verb.name} needs {' and '.join(missing)}", f"it takes {', '.join(verb.words)}")
        arguments: dict[str, Any] = {}
        for key, (value, spot) in given.items():
            if key in more_paths and not self._names_file(key, value):
                arguments[key] = value
            elif key in verb.paths | more_paths and value is not None:
                arguments[key] = self._inputs(value, spot, verb, key)
            else:
                arguments[key] = _plain(key, value)
        path = self._output(output, place) if output is not None else None
        step = Step(name, verb, arguments, path, where)
        if path is None and not step.adds:
            raise self._error(where, f"{name}: a {verb.name} step writes files", "give it an `output:`")
        return step

    def _names_file(self, key: str, value: Any) -> bool:
        """Whether an option of a training that may be several things is a path here.

        `init` may be a word, `sample` prompts, and `validation` a share of the pictures.
        """
        if not isinstance(value, str):
            return isinstance(value, dict)
        if key == "sample":
            return value.endswith(".txt")
        if key != "init" or self._reference(value) is not None:
            return True
        return init_file(value) is not None or may_be_adapter(self._path(value))

    def _inputs(self, value: Any, where: Where, verb: Verb, key: str) -> Any:
        if key not in verb.several:
            return self._checked(self._source(value, where), verb, key)
        if isinstance(value, dict) and not value.keys() <= _SOURCE_KEYS:  # a table PATH: STRENGTH
            return [self._source({path: number}, (*where, path)) for path, number in value.items()]
        entries = value if isinstance(value, list) else [value]
        first = where[:-1] if isinstance(where[-1], int) else where
        shift = where[-1] if isinstance(where[-1], int) else 0
        found = [self._source(entry, (*first, index + shift)) for index, entry in enumerate(entries)]
        return [self._checked(source, verb, key) for source in found]

    def _checked(self, source: Source, verb: Verb, key: str) -> Source:
        if source.strength is not None and key not in verb.weighted and verb.name != "merge":
            raise self._error(source.where, f"{key} takes no strength", "leave out the number behind it")
        return source

    def _source(self, value: Any, where: Where) -> Source:
        """An input as it may be written: a word, or a table."""
        if isinstance(value, dict) and len(value) == 1 and not value.keys() <= _SOURCE_KEYS:
            ((word, strength),) = value.items()
            return self._word(word, where, self._number(strength, where))
        if isinstance(value, dict):
            return self._table(value, where)
        if not isinstance(value, str) or not value:
            raise self._error(where, f"{value!r} is no file and no step", "write a path, or the name of a step")
        word, strength = self._split(value, where)
        return self._word(word, where, strength)

    def _table(self, value: dict[str, Any], where: Where) -> Source:
        unknown = value.keys() - _SOURCE_KEYS
        if unknown or ("path" in value) == ("step" in value):
            problem = f"unknown key {sorted(unknown)[0]!r}" if unknown else "an input needs one of `path` and `step`"
            raise self._error(where, problem, "write {path: a.safetensors, sha256: …, strength: 0.5}")
        sha256 = str(value.get("sha256", ""))
        if sha256 and not _PIN.search(f"@sha256:{sha256}"):
            raise self._error(where, f"{sha256!r} is no sha256", "it has 64 hexadecimal digits")
        number = value.get("strength", value.get("weight"))
        strength = self._number(number, where) if number is not None else None
        if "path" in value:
            return replace(self._file(str(value["path"]), where), sha256=sha256.lower(), strength=strength)
        return replace(self._word(f"${{{value['step']}}}", where, strength), sha256=sha256)

    def _split(self, text: str, where: Where) -> tuple[str, float | None]:
        """``lora.safetensors=0.8``; a file that really has ``=`` in its name wins."""
        word, sign, number = text.rpartition("=")
        if not sign or word.endswith("#sha256") or (not is_reference(text) and self._path(text).exists()):
            return text, None
        try:
            return word, self._number(float(number), where)
        except ValueError:
            return text, None

    def _word(self, word: str, where: Where, strength: float | None) -> Source:
        name = self._reference(word)
        if name is not None:
            if name not in self._tables:
                raise self._error(where, f"there is no step {name!r}", nearest_hint(name, self._tables))
            return Source(where, step=name, strength=strength)
        pin = _PIN.search(word)
        source = self._file(word[: pin.start()] if pin else word, where)
        return replace(source, sha256=pin[1].lower() if pin else "", strength=strength)

    def _file(self, word: str, where: Where) -> Source:
        """A path, a name, or a reference to a hub."""
        if is_reference(word) and not (self._document.folder / word).exists():
            return Source(where, reference=word)
        return Source(where, self._path(word))

    def _reference(self, word: str) -> str | None:
        """The step a word names: ``${mix}``, or ``mix`` where there is a step of that name."""
        found = _REFERENCE.fullmatch(word)
        if found:
            return found[1].strip()
        return word if word in self._tables else None

    def _path(self, word: str) -> Path:
        """A path relative to the recipe; where nothing is or will be there, the file of the model of that name."""
        if word == TINY:
            return resolve_base(word)
        path = self._document.folder / word
        written = any(isinstance(table, dict) and table.get("output") == word for table in self._tables.values())
        if written or path.exists():
            return path
        found = resolve(word)
        return path if found == Path(word) else found

    def _number(self, value: Any, where: Where) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._error(where, f"{value!r} is no strength", "write a number like 0.8")
        return float(value)

    def _output(self, value: Any, where: Where) -> Path:
        if not isinstance(value, str) or not value:
            raise self._error(where, f"output: {value!r} is no path")
        if self._outputs is None:
            return self._document.folder / value
        path = self._outputs / value
        if not path.resolve().is_relative_to(self._outputs.resolve()):
            raise self._error(
                where, f"{value}: leaves the folder {self._outputs}", "name a path in it, or leave out -o"
            )
        return path

    def _needs(self, step: Step, steps: Mapping[str, Step]) -> Iterator[str]:
        """The steps whose results this one takes, by name or by the path of their output."""
        for source in step.sources:
            if source.step is not None:
                yield self._usable(step, source, steps[source.step])
                continue
            if source.reference:
                continue
            assert source.path is not None
            makers = [other.name for other in steps.values() if _holds(other.output, source.path)]
            if not makers and not source.path.exists():
                raise self._missing(source)
            yield from makers

    def _usable(self, step: Step, source: Source, other: Step) -> str:
        if source.sha256:
            raise self._error(source.where, f"{other.name} is a step, and only files have a sha256 beforehand")
        if other.output is None and not step.adds:
            problem = f"{step.verb.name} reads files, and {other.name} writes none"
            raise self._error(source.where, problem, f"give {other.name} an `output:`")
        return other.name

    def _missing(self, source: Source) -> UsageError:
        assert source.path is not None
        hint = ""
        names = [entry.name for entry in source.path.parent.iterdir()] if source.path.parent.is_dir() else []
        if names or self._tables:
            hint = nearest_hint(source.path.name, [*names, *self._tables]) if len(names) < 50 else ""
        return self._error(source.where, f"{source.path}: no such file or folder, and no step of that name", hint)

    def _check_outputs(self, steps: Mapping[str, Step], needs: Mapping[str, tuple[str, ...]]) -> None:
        used = {name for names in needs.values() for name in names}
        seen: dict[Path, str] = {}
        for step in steps.values():
            if step.output is None and step.name not in used:
                raise self._error(step.where, f"{step.name} writes nothing and no step uses it", "give it an `output:`")
            if step.output is not None:
                other = seen.setdefault(step.output.resolve(), step.name)
                if other != step.name:
                    raise self._error((*step.where, "output"), f"{step.output}: is what {other} writes already")

    def _error(self, where: Where, message: str, hint: str = "") -> UsageError:
        return self._document.error(where, message, hint)


def _plain(key: str, value: Any) -> Any:
    """An option's value as the job takes it: rules may be a table, a gradient is a tuple."""
    if key == "rules":
        if isinstance(value, dict):
            return [f"{pattern}={number}" for pattern, number in value.items()]
        return value if isinstance(value, list) else [str(value)]
    if isinstance(value, list) and key != "blocks":
        return tuple(value)
    return value


def _holds(output: Path | None, path: Path) -> bool:
    return output is not None and path.resolve().is_relative_to(output.resolve())
