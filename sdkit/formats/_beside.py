"""The words of an adapter that lie in files of their own beside it, because its format has no place for them."""

from __future__ import annotations

from pathlib import Path

from sdkit.adapters.artifact import Artifact
from sdkit.formats.textual_inversion import file_beside
from sdkit.weights.metadata import trigger_words


def embeddings_beside(artifact: Artifact) -> list[Path]:
    """The embeddings of the words that an adapter says call it up, as far as they lie beside its file."""
    files = (file_beside(artifact.source.path, word) for word in trigger_words(artifact.metadata))
    return [] if artifact.tokens else [file for file in dict.fromkeys(files) if file.is_file()]
