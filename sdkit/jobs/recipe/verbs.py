"""What a step may do: the jobs, with the options they have as functions.

A step is written as its command line is: the words behind the verb, and the options by their names. Which those are is
read from the signature of the job, so a job that `sdkit.jobs` gains is a step without a line here, as long as it is a
function named like its module, what it writes is called ``output``, and its paths are annotated as paths.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from sdkit.core.plugins import canonical
from sdkit.training.options import Key

# Verbs whose steps fuse into one expression, and those that live in a module of another name.
TENSOR_VERBS = frozenset({"blend", "merge"})
_MODULES = {"resize": "combine", "scale": "combine", "subtract": "combine"}
_NOT_STEPS = frozenset({"inspect", "hash", "quickstart", "run", "reproduce", "compare"})

# What the executor decides and a recipe does not.
_CONTROLS = frozenset("output dry_run force resume progress watch should_stop threads".split())
# A merge that is to be undone is one command; a blend's parameters stand beside its other options.
_LEFT_OUT = {"merge": {"undo"}, "blend": {"parameters"}}
_PATHS = re.compile(r"\b(PathLike|Path|Input|ModelInput|Adapters)\b")
_SEVERAL = re.compile(r"\b(Sequence|Adapters)\b")
_WEIGHTED = re.compile(r"\b(tuple|Adapters)\b")
_RANK_RULE = frozenset({"rank", "sv_ratio", "sv_fro", "sv_cumulative"})  # what makes a RankRule


@dataclass(frozen=True, slots=True)
class Verb:
    """A job as a step sees it.

    Attributes:
        name: as on the command line.
        function: the job.
        words: parameters that the words behind the verb are for, in order.
        required: parameters without a default.
        options: every parameter a recipe may give.
        paths: those that name files, folders or steps.
        several: those that take a list of them; the words behind the verb end with such a one.
        weighted: those that take a number with each of them.
        controls: what the executor may pass besides.
    """

    name: str
    function: Callable[..., Any]
    words: tuple[str, ...]
    required: tuple[str, ...]
    options: frozenset[str]
    paths: frozenset[str]
    several: frozenset[str]
    weighted: frozenset[str]
    controls: frozenset[str]

    @property
    def fuses(self) -> bool:
        """Whether its result can stay an expression."""
        return self.name in TENSOR_VERBS

    def more_options(self, given: Mapping[str, Any]) -> tuple[frozenset[str], Mapping[str, Key]]:
        """Options that depend on those given, and which of them may name files: those of a merge or training method.

        Raises:
            UsageError: there is no such method.
        """
        if self.name == "blend":
            from sdkit.merging.method import load_method

            return frozenset(load_method(str(given.get("method", "weighted_sum"))).parameters), {}
        if self.name == "train":
            from sdkit.training.method import load_method as load_training_method

            _, method = load_training_method(str(given.get("method")))
            files = {word: key for word, key in method.keys.items() if key.declaration.names_file is not None}
            return frozenset(method.keys), files
        return frozenset(), {}


def load_verb(name: str) -> Verb | None:
    """The job called `name`, with hyphens or underscores; None where there is none a step could do."""
    name = canonical(name)
    word = name.replace("-", "_")
    module = f"sdkit.jobs.{_MODULES.get(word, word)}"
    if word in _NOT_STEPS or not word.isidentifier() or importlib.util.find_spec(module) is None:
        return None
    function = getattr(importlib.import_module(module), word, None)
    return _verb(name, function) if inspect.isfunction(function) else None


@cache
def verb_names() -> tuple[str, ...]:
    """Every verb a step may have."""
    import pkgutil

    import sdkit.jobs

    modules = {entry.name for entry in pkgutil.iter_modules(sdkit.jobs.__path__)} | _MODULES.keys()
    return tuple(sorted(canonical(name) for name in modules if load_verb(name) is not None))


def _verb(name: str, function: Callable[..., Any]) -> Verb | None:
    parameters = inspect.signature(function).parameters
    if "output" not in parameters:
        return None
    plain = {key: entry for key, entry in parameters.items() if entry.kind is not inspect.Parameter.VAR_KEYWORD}
    own = {key: entry for key, entry in plain.items() if key not in _CONTROLS | _LEFT_OUT.get(name, set())}
    notes = {key: str(entry.annotation) for key, entry in own.items()} | _unpacked(function)
    required = [key for key, entry in own.items() if entry.default is inspect.Parameter.empty]
    if "RankRule" in notes.get("rank", ""):
        notes |= dict.fromkeys(_RANK_RULE, "")
        required = [key for key in required if key != "rank"]
    if name == "merge":
        notes["rank"] = ""  # of adapters alone
    return Verb(
        name,
        function,
        words=tuple(key for key, entry in own.items() if entry.kind is not inspect.Parameter.KEYWORD_ONLY),
        required=tuple(required),
        options=frozenset(notes.keys() - _CONTROLS),
        paths=frozenset(key for key, note in notes.items() if _PATHS.search(note)),
        several=frozenset(key for key, note in notes.items() if _SEVERAL.search(note) and _PATHS.search(note)),
        weighted=frozenset(key for key, note in notes.items() if _WEIGHTED.search(note)),
        controls=frozenset({*plain, *notes} & _CONTROLS),
    )


def _unpacked(function: Callable[..., Any]) -> dict[str, str]:
    """The keys of a signature's ``**options: Unpack[Options]`` with their annotations."""
    last = list(inspect.signature(function).parameters.values())[-1]
    if last.kind is not inspect.Parameter.VAR_KEYWORD or "Unpack" not in str(last.annotation):
        return {}
    options = get_args(get_type_hints(function)[last.name])[0]
    return {key: str(note) for key, note in options.__annotations__.items()}


def bound(values: Mapping[str, Any], verb: Verb) -> dict[str, Any]:
    """The arguments for the function: the words of a rank rule are put together."""
    rule = {key: value for key, value in values.items() if key in _RANK_RULE}
    rank = inspect.signature(verb.function).parameters.get("rank")
    if not rule or rank is None or "RankRule" not in str(rank.annotation):
        return dict(values)
    from sdkit.adapters.ranks import RankRule

    rest = {key: value for key, value in values.items() if key not in rule}
    return {**rest, "rank": RankRule(**rule)}
