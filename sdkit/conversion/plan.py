"""What a conversion will write, known before the first byte moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sdkit.conversion.checkpoint import Checkpoint
from sdkit.conversion.rest import Rest
from sdkit.core.errors import UsageError
from sdkit.core.plugins import Plugin, canonical, find_plugins, nearest_hint
from sdkit.families.parts import Part
from sdkit.streaming import Output
from sdkit.weights import DType


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person may choose.

    Attributes:
        only: the one component to write; None for all.
        dtype: element type of the weights; None leaves each its own.
        prune: leave out what no pipeline reads.
        prediction: what the model predicts, where it does not say so or says it wrongly.
        configs: a folder whose configurations and tokenizers count.
        tokenizer: a folder with T5's tokenizer.
        variant: of the names of a folder's weights (``fp16``); None for the plain names.
        shard_bytes: at most so many bytes of tensors in a file of a folder; None for one file a component.
    """

    only: str | None = None
    dtype: DType | None = None
    prune: bool = False
    prediction: str | None = None
    configs: Path | None = None
    tokenizer: Path | None = None
    variant: str | None = None
    shard_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of weights.

    Attributes:
        name: its path within the output folder; empty where the output is the file itself.
        tensors: in file order.
        metadata: what it says beside the provenance all files get.
        prefix: what stands before the names of these tensors when the output is read as a whole (``unet/``).
    """

    name: str
    tensors: tuple[Output, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """One conversion.

    Attributes:
        files: files of weights, one or a folder's.
        side_files: what a folder holds beside weights.
        parts: the components as the output names them.
        rest: what became of everything that is no weight.
        folder: whether the output is a folder.
        prediction: what the model predicts, as the output says it; None where it says nothing.
        warnings: what a person should see.
    """

    files: tuple[PlannedFile, ...]
    parts: Mapping[str, Part]
    rest: Rest
    folder: bool = False
    side_files: Mapping[str, bytes] = field(default_factory=dict)
    prediction: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def tensors(self) -> list[Output]:
        """Every tensor written."""
        return [output for file in self.files for output in file.tensors]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(output.nbytes for output in self.tensors)


class Target(Protocol):
    """A module of `sdkit.conversion.targets`.

    Attributes:
        FOLDER: whether it writes a folder.
        PROGRAMS: programs that read what it writes; each is another name of it.
    """

    FOLDER: bool
    PROGRAMS: tuple[str, ...]

    def plan(self, whole: Checkpoint, chosen: Checkpoint, settings: Settings) -> Plan:
        """How `chosen`, a part or a variant of `whole`, is written."""
        ...


def load_target(name: str) -> tuple[str, Target]:
    """The target of this name, or that the program of this name reads.

    Raises:
        UsageError: there is none.
    """
    plugins: dict[str, Plugin] = find_plugins("sdkit.conversion.targets")
    modules = {key: plugin.load() for key, plugin in plugins.items()}
    names = {alias: key for key, module in modules.items() for alias in (key, *module.PROGRAMS)}
    wanted = canonical(name.lower())
    if wanted not in names:
        raise UsageError(f"nothing is written as {name!r}", nearest_hint(wanted, names))
    return names[wanted], modules[names[wanted]]


def target_file(path: Path, file: PlannedFile) -> Path:
    """Where a planned file lies in the output at `path`."""
    return path / file.name if file.name else path
