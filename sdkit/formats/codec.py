"""What a file format's codec provides.

A codec is a module of this package; its file name is the format's name. Files that
begin with an underscore are helpers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sdkit.adapters.artifact import Artifact
from sdkit.families.family import Model
from sdkit.weights import Weights


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way of writing a format.

    Attributes:
        programs: those shown to read it (by their own code, or by the rules of their names, in tests/formats), as
            `formats._programs` calls them; `sdkit convert --to` takes each for a name.
        name: what tells it from the format's other dialects; empty for the usual one.
        suffix: of its files; empty for a folder.
        says: what is special about it, a few words.
        said: programs whose documentation says that they read it, which nothing here shows.
        families: program → the families it reads this way, where that is fewer than the program and the format know.
        leaves: program → the kinds of change it leaves out of such a file, though it applies them from another.
    """

    programs: tuple[str, ...]
    name: str = ""
    suffix: str = ".safetensors"
    says: str = ""
    said: tuple[str, ...] = ()
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    leaves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a codec recognises a file, and the evidence for or against in one sentence."""

    recognised: bool
    reason: str


class Codec(Protocol):
    """What a codec module defines.

    Beside the functions it may say, for `sdkit formats` and `sdkit convert`:

        HOLDS      kinds of artifact (`Artifact.kind`); missing: ``("lora",)``
        CHANGES    kinds of weight change (`Delta.kind`) it can say; missing: all
        FAMILIES   model families it has names for; missing: all
        WORDS      whether it holds words beside weight changes; missing: no
        PROGRAMS   those shown to write or read the format, where it is only read here; SAID: those that say so
        DIALECTS   how it is written, the usual one first; needed by a codec that writes
        OWN_METADATA  pattern of the metadata by which this format alone says what its tensors mean
    """

    def detect(self, weights: Weights) -> Verdict:
        """Look at names, shapes and metadata only. Never reads a tensor, never raises on a strange file."""
        ...

    def read(self, weights: Weights, model: Model | None) -> Artifact:
        """Translate the file's names to hub modules with the tables of `model`, the base it will be applied to.

        A module the model does not have goes to `Artifact.unmatched`; nothing is dropped silently. Without a model
        (to look at a file alone) modules keep the file's own names, with the component in front where it is known.

        Raises:
            SdkitError: the file is of this format but broken (a half pair, contradicting ranks).
        """
        ...


class WritingCodec(Codec, Protocol):
    """A codec that also writes its format."""

    def write(
        self,
        artifact: Artifact,
        model: Model | None,
        path: Path,
        metadata: Mapping[str, str],
        *,
        overwrite: bool = False,
    ) -> None:
        """Write an adapter whose targets are modules of `model`, whole or not at all.

        Tensors are read from `artifact` one after the other, so their numbers may be computed only then. Ranks, alphas
        and hashes in the metadata are written anew. Without a model the modules keep the names `artifact.spelled`
        gives them.

        Raises:
            SdkitError: the format has no way to say what the adapter holds, or `path` cannot be written.
        """
        ...
