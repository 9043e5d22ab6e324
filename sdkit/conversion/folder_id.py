"""A name by content for a folder that lends a conversion its configurations or tokenizers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from sdkit.streaming.checkpoint import SIDE_FILES

_SCHEME = "files1-"  # which will not change under this name
# What is read of such a folder: a pipeline's configurations and vocabularies, or those of one tokenizer.
_READ = (
    "model_index.json",
    "*/config.json",
    "*/scheduler_config.json",
    "tokenizer*/*",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "spiece.model",
)


def folder_id(folder: Path) -> str | None:
    """The id of what a conversion may read of a folder; None where it would find nothing there.

    It is ``files1-HEX``: the first 32 digits of a sha256 over name, size and bytes of each file. Weights are no part
    of it.
    """
    digest, count = hashlib.sha256(), 0
    for file in sorted(set(_files(folder))):
        data = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()}\n{len(data)}\n".encode(errors="surrogateescape"))
        digest.update(data)
        count += 1
    return f"{_SCHEME}{digest.hexdigest()[:32]}" if count else None


def is_folder_id(text: str) -> bool:
    """Whether an id is one of such a folder, and not a model's."""
    return text.startswith(_SCHEME)


def _files(folder: Path) -> Iterator[Path]:
    for pattern in _READ:
        yield from (file for file in folder.glob(pattern) if file.suffix in SIDE_FILES and file.is_file())
