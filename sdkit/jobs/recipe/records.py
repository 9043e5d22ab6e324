"""What a recipe remembers of the files it has written, so that only what changed is made again.

Beside each output lies ``.NAME.sdkit.json``: which step made it, from what, and what came out. An output without one
was not made by a recipe, and is never replaced unasked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdkit.core.hashing import quick_id
from sdkit.weights.atomic import write_file

SMALL_BYTES = 1 << 20  # files up to this size are hashed whole, larger ones sampled


@dataclass(frozen=True, slots=True)
class Record:
    """One output's past.

    Attributes:
        step: the step's name.
        fingerprint: of everything that decides the output.
        finished: whether it was written whole; a training run may have been interrupted.
        results: the files and folders made, relative to the output's folder; later steps read the first.
        ids: their contents.
    """

    step: str
    fingerprint: str
    finished: bool = False
    results: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    def holds(self, output: Path, fingerprint: str) -> bool:
        """Whether the output is there, and what the same step would make again."""
        paths = [output.parent / name for name in self.results]
        if not self.finished or self.fingerprint != fingerprint or not all(path.exists() for path in paths):
            return False
        return bool(paths) and [content_id(path) for path in paths] == list(self.ids)

    def path_of(self, output: Path) -> Path:
        """What later steps read."""
        return output.parent / self.results[0]


def record_path(output: Path) -> Path:
    """Where the record of an output lies."""
    return output.with_name(f".{output.name}.sdkit.json")


def read_record(output: Path) -> Record | None:
    """The record of an output; None where there is none, or it is damaged."""
    try:
        return Record(**json.loads(record_path(output).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_record(output: Path, record: Record) -> None:
    """Write the record of an output."""
    path = record_path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (json.dumps(asdict(record), indent=2) + "\n").encode()
    write_file(path, data, overwrite=True)


def finished_record(step: str, fingerprint: str, output: Path, results: Sequence[Path]) -> Record:
    """The record of an output that has been written whole."""
    folder = output.absolute().parent
    names = tuple(result.absolute().relative_to(folder).as_posix() for result in results)
    return Record(step, fingerprint, True, names, tuple(content_id(result) for result in results))


def fingerprint_of(facts: Any) -> str:
    """A sha256 of plain values."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def content_id(path: Path) -> str:
    """A file or folder by its content: large files are sampled, hidden ones left out."""
    if path.is_file():
        return _file_id(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in relative.parts):
            digest.update(f"{relative.as_posix()}\0{_file_id(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _file_id(path: Path) -> str:
    if path.stat().st_size > SMALL_BYTES:
        return quick_id(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
