"""Reading many models whole at once: hashing keeps one core busy, and a disk can feed several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.core.progress import Progress
from sdkit.registry.facts import Facts, look_at, stamp_of
from sdkit.weights.content import Content, hash_content

_MOST_AT_ONCE = 4  # beyond, disks only move their heads more


@dataclass(frozen=True, slots=True)
class Whole:
    """A model that was read whole: what its header says, and its hashes."""

    facts: Facts
    content: Content


def read_all(paths: Sequence[Path], progress: Progress) -> Iterator[Whole | SdkitError | OSError]:
    """Read models whole, several at a time; what they are, or why they could not be read, in order."""
    progress.start(f"hashing {len(paths):,} models", sum(map(_size, paths)))
    # Each is hashed by two threads, as a file and as tensors.
    with ThreadPoolExecutor(max(1, min(_MOST_AT_ONCE, (os.cpu_count() or 1) // 2))) as pool:
        futures = [pool.submit(_read, path, _Bytes(progress)) for path in paths]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_whole(facts: Facts, progress: Progress) -> Whole:
    """Read one model whole.

    Raises:
        SdkitError: it was written meanwhile.
        OSError: it cannot be read.
    """
    content = hash_content(facts.path, progress)
    if stamp_of(facts.path) != facts.stamp:
        raise SdkitError(f"{facts.path}: was written while it was read", "verify it again when it is finished")
    return Whole(facts, content)


def _read(path: Path, progress: Progress) -> Whole | SdkitError | OSError:
    try:
        return read_whole(look_at(path), progress)
    except (SdkitError, OSError) as error:
        return error


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    try:
        return sum(file.stat().st_size for file in files)
    except OSError:
        return 0


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Counts the bytes of one model into the progress of all."""

    progress: Progress

    def start(self, label: str, total: int) -> None:
        """All have begun already."""

    def advance(self, nbytes: int) -> None:
        """Count bytes."""
        self.progress.advance(nbytes)
