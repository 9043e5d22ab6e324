"""The tokenizers that come with sdkit, for files that hold text encoders and no vocabulary."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import sdkit

_ASSETS = Path(sdkit.__file__).parent / "assets"
# CLIP's, which all published models use, and that of the embedded tiny base.
_FOLDERS = (_ASSETS / "tokenizers" / "clip", _ASSETS / "tiny" / "tokenizer")


def known_tokenizer(vocabulary: int) -> Path | None:
    """The folder of the tokenizer with so many tokens (``vocab.json``, ``merges.txt``); None where there is none."""
    return next((folder for folder in _FOLDERS if len(vocabulary_of(folder)) == vocabulary), None)


def is_clip(folder: Path) -> bool:
    """Whether it is CLIP's own."""
    return folder == _FOLDERS[0]


@lru_cache(maxsize=4)
def vocabulary_of(folder: Path) -> dict[str, int]:
    """Token → id; empty where the folder holds none."""
    file = folder / "vocab.json"
    if not file.is_file():
        return {}
    vocabulary: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
    return vocabulary
