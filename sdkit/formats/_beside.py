"""The words of an adapter that lie in files of their own beside it, because its format has no place for them.

And the other half of a pair of embeddings: DreamArtist's ``NAME-neg``, for the negative prompt, beside ``NAME``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sdkit.adapters.artifact import Artifact
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats import textual_inversion
from sdkit.weights import open_weights
from sdkit.weights.metadata import trigger_words


def embeddings_beside(artifact: Artifact) -> list[Path]:
    """The embeddings of the words that an adapter says call it up, as far as they lie beside its file."""
    files = (textual_inversion.file_beside(artifact.source.path, word) for word in trigger_words(artifact.metadata))
    return [] if artifact.tokens else [file for file in dict.fromkeys(files) if file.is_file()]


NEGATIVE = "-neg"


def negative_beside(path: Path) -> Path | None:
    """The negative embedding of the pair whose positive one is at `path`, in whatever container; None without one."""
    suffixes = dict.fromkeys((path.suffix, *textual_inversion.SUFFIXES.values(), ".bin"))
    files = (path.with_name(f"{path.stem}{NEGATIVE}{suffix}") for suffix in suffixes)
    return next((file for file in files if file.is_file()), None)


@contextmanager
def word_of(artifact: Artifact, model: Model) -> Iterator[Artifact]:
    """The word of an adapter alone, from its own file or the one beside it.

    Raises:
        SdkitError: there is none.
    """
    if artifact.tokens:
        yield replace(artifact, deltas={}, kind="textual-inversion")
        return
    files = embeddings_beside(artifact)
    if not files:
        path = artifact.source.path
        raise SdkitError(f"{path}: the embedding of its word is not beside it", "put it there: NAME.WORD.safetensors")
    with open_weights(files[0]) as weights:
        yield textual_inversion.read(weights, model)
