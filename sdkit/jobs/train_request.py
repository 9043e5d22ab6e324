"""A request to train: what was asked for, with what a run that is resumed was begun with."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.hashing import quick_id
from sdkit.families.bases import base_word
from sdkit.jobs.pull import local_path, local_paths
from sdkit.training.folder import RunFolder
from sdkit.training.method import Method, load_method
from sdkit.training.options import TrainOptions, keys, spelled
from sdkit.training.state import RunState, complete_states
from sdkit.weights import open_weights

PathLike = str | os.PathLike[str]
NAMED = 3  # options that a note names before it counts the others


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One call of `train`, checked as far as it can be without looking at pictures.

    Attributes:
        name: of the method.
        method: in the form the options ask for.
        base: the base's file or folder.
        data: the folder of pictures.
        folder: where the run's files lie.
        options: the run's; of a resumed run, the saved ones with what was given now.
        given: keys and values of the person.
        output: what ``-o`` says.
        saved: the state a resumed run goes on from.
        notes: what a resume changes.
    """

    name: str
    method: Method[Any]
    base: Path
    data: Path
    folder: RunFolder
    options: TrainOptions
    given: Mapping[str, Any]
    output: Path
    saved: RunState | None
    notes: tuple[str, ...]

    @property
    def beside(self) -> tuple[Path, ...]:
        """Further files of the result."""
        return tuple(self.method.beside(self.folder.result, self.options))

    @property
    def resume_line(self) -> str:
        """The command that goes on with the run, or begins it where nothing is saved that would know the options."""
        base = base_word(self.base)
        if complete_states(self.folder.states):
            return f"{_train_line(self.name, base, self.data, self.output, {})} --resume"
        replaces = any(path.exists() for path in (self.folder.result, *self.beside))
        return _train_line(self.name, base, self.data, self.output, self.given) + (" --force" if replaces else "")


def read_request(
    method: str,
    base: PathLike,
    data: PathLike,
    output: PathLike | None,
    given: Mapping[str, Any],
    *,
    resume: bool | Literal["must"],
) -> TrainRequest:
    """What is to be done.

    Raises:
        UsageError: an option is wrong, or would make another run of a saved one.
        SdkitError: there is no such method or base, the saved run is of another base, or nothing is saved and `resume`
            is "must".
    """
    name, kind = load_method(method)
    target = Path(output) if output is not None else Path("runs") / f"{_name_of(Path(data))}-{name}"
    saved = RunFolder.saved(target) if resume else None
    if resume == "must" and saved is None:
        raise SdkitError(
            f"{target}: no run is saved here that --resume could continue",
            f"begin one: {_train_line(name, str(base), Path(data), target, given)}",
        )
    if saved is not None and saved.settings["method"] != name:
        raise UsageError(f"the saved run is {saved.settings['method']}, not {name}")
    kind, parsed = kind.resolve(name, given, saved.settings["options"] if saved is not None else None)
    found = local_path(base)  # all that can be wrong without it is known to be right
    parsed = parsed.with_models(local_paths)
    if saved is not None:
        _check_same_base(saved, found)
    notes = _changes(saved, parsed, name)
    suffix = kind.suffix(parsed)
    if suffix is None:
        suffix = "" if found.is_dir() else ".safetensors"
    folder = RunFolder.of(target, suffix)
    options = kind.settle(parsed, folder.result.stem)
    return TrainRequest(name, kind, found, Path(data), folder, options, dict(given), target, saved, tuple(notes))


def _train_line(name: str, base: str, data: Path, output: Path, given: Mapping[str, Any]) -> str:
    words = ["sdkit", "train", name, "--base", base, "--data", str(data), "-o", str(output)]
    return shlex.join([*words, *(f"{spelled(key)}={value}" for key, value in given.items())])


def _name_of(data: Path) -> str:
    """What people call a folder of pictures, or a picture."""
    return data.stem if data.is_file() else data.absolute().name


def _check_same_base(saved: RunState, base: Path) -> None:
    with open_weights(base) as weights:
        base_id = quick_id(*weights.files)
    if saved.settings["base"] != base_id:
        raise SdkitError("the saved run was begun on another base", f"it was {saved.settings['base_name']}")


def _changes(saved: RunState | None, options: TrainOptions, name: str) -> list[str]:
    """What a resume changes, in words.

    Raises:
        UsageError: it would make another run of it.
    """
    before = saved.settings["options"] if saved is not None else {}
    known, now = keys(type(options)), options.as_dict()
    changed = [word for word, old in before.items() if word in known and now[word] != old]
    frozen = next((word for word in changed if not known[word].declaration.late), None)
    if frozen is not None:
        raise UsageError(
            f"{frozen}={now[frozen]}: the saved run has {frozen}={before[frozen]}",
            "leave it out to go on, or begin a new run with --force",
        )
    notes = [f"{word}={now[word]} in place of {word}={before[word]}" for word in changed]
    strange = [word for word in before if word not in known]
    if strange:
        more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
        notes.append(
            f"options of the saved run that {name} does not have are left out: {', '.join(strange[:NAMED])}{more}"
        )
    return notes
