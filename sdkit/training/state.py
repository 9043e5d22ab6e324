"""The state of a run on disk: everything a resume needs, whole or not at all, and never a pickle.

    state/step-00000250/tensors.safetensors    parameters, optimiser, moving average
    state/step-00000250/state.json             the step, numbers and settings
    state/step-00000250/COMPLETE               written last

The folder is filled under another name and renamed; the newest complete one is used.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError
from sdkit.runtime.tensors import read_tensors, write_tensors
from sdkit.weights.atomic import write_file
from sdkit.weights.atomic_folder import AtomicFolder
from sdkit.weights.folder import read_json

if TYPE_CHECKING:
    import torch

VERSION = 1
_NAME = re.compile(r"step-(\d{8,})")
_TENSOR = "__tensor__"
_PAIRS = "__pairs__"


@dataclass(frozen=True, slots=True)
class RunState:
    """A moment of a run.

    Attributes:
        step: finished steps.
        attempt: roll-backs so far.
        lr_scale: what roll-backs have made of the learning rate.
        settings: what the run was started with.
        contents: nested dictionaries and lists of tensors, numbers and text.
    """

    step: int
    attempt: int
    lr_scale: float
    settings: Mapping[str, Any]
    contents: Mapping[str, Any]

    def save(self, folder: Path, keep: int) -> Path:
        """Save below `folder`, and remove all but the newest `keep` states. A step that is saved already stays.

        Raises:
            SdkitError: the disk is full, or cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, torch.Tensor] = {}
        fields = {
            "version": VERSION,
            "step": self.step,
            "attempt": self.attempt,
            "lr_scale": self.lr_scale,
            "settings": dict(self.settings),
            "contents": _pack(self.contents, "", tensors),
        }
        path = folder / f"step-{self.step:08d}"
        if (path / "COMPLETE").is_file():
            return path
        shutil.rmtree(path, ignore_errors=True)
        with AtomicFolder(path) as work:
            write_tensors(work.work / "tensors.safetensors", tensors)
            write_file(work.work / "state.json", json.dumps(fields, indent=1).encode())
            write_file(work.work / "COMPLETE", b"")
            work.commit()
        for old in complete_states(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path


def complete_states(folder: Path) -> list[Path]:
    """The complete states below `folder`, the oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if (path / "COMPLETE").is_file()]


def load_newest(folder: Path) -> tuple[Path, RunState] | None:
    """The newest complete state below `folder`; None when there is none.

    Raises:
        SdkitError: it was saved by a version that means something else by it.
    """
    states = complete_states(folder)
    return (states[-1], load_state(states[-1])) if states else None


def load_state(path: Path) -> RunState:
    """One saved state.

    Raises:
        SdkitError: as `load_newest`; or it is damaged.
    """
    fields = read_json(path / "state.json")
    if fields.get("version") != VERSION:
        raise SdkitError(f"{path}: was saved by another version of sdkit", "finish the run with that version")
    tensors = read_tensors(path / "tensors.safetensors")
    try:
        contents = _unpack(fields["contents"], tensors)
        return RunState(fields["step"], fields["attempt"], fields["lr_scale"], fields["settings"], contents)
    except (KeyError, TypeError) as error:
        raise SdkitError(f"{path}: is damaged: {error}", "remove it; an older state is used then") from None


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON; its tensors go to `tensors` and leave their names."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu()
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _pack(entry, f"{name}/{key}", tensors) for key, entry in value.items()}
        pairs = [[key, _pack(entry, f"{name}/{key}", tensors)] for key, entry in value.items()]
        return {_PAIRS: pairs}  # JSON has no keys but text; an optimiser's state is numbered
    if isinstance(value, (list, tuple)):
        return [_pack(entry, f"{name}/{index}", tensors) for index, entry in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name}: a {type(value).__name__} cannot be saved")


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _PAIRS in value:
        return {key: _unpack(entry, tensors) for key, entry in value[_PAIRS]}
    return {key: _unpack(entry, tensors) for key, entry in value.items()}
