"""A content-addressed cache of tensors: a key says everything the result depends on, so nothing stale can be found."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.core.errors import SdkitError
from sdkit.runtime.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import torch

MEMORY_BYTES = 1 << 30
VERSION = "1"  # of the way the cached tensors are computed

Tensors = Mapping[str, "torch.Tensor"]


class TensorCache:
    """Tensors in memory as far as they fit, and in files.

    Args:
        folder: where the files go; None keeps them in memory alone.
        memory_bytes: how much is kept in memory; the rest is read again when needed.
    """

    def __init__(self, folder: Path | None, memory_bytes: int = MEMORY_BYTES) -> None:
        self.folder = folder
        self.computed = 0
        self._memory: dict[str, Tensors] = {}
        self._room = memory_bytes

    def get(self, key: str, compute: Callable[[], Tensors]) -> Tensors:
        """The tensors of `key`, computed if they are nowhere."""
        tensors = self._memory.get(key)
        if tensors is None:
            tensors = self._stored(key)
            if tensors is None:
                tensors = compute()
                self.computed += 1
                self._store(key, tensors)
            self._keep(key, tensors)
        return tensors

    def _keep(self, key: str, tensors: Tensors) -> None:
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self.folder is None or size <= self._room:
            self._memory[key] = tensors
            self._room -= size

    def _path(self, key: str) -> Path | None:
        return self.folder / key[:2] / f"{key}.safetensors" if self.folder else None

    def _stored(self, key: str) -> Tensors | None:
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            return read_tensors(path)
        except (SdkitError, OSError):  # a damaged entry is computed again
            return None

    def _store(self, key: str, tensors: Tensors) -> None:
        path = self._path(key)
        if path is None:
            return
        with contextlib.suppress(SdkitError, OSError):  # a cache that cannot be written costs time, not the run
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors, overwrite=True)
            return
        self.folder = None


def cache_key(kind: str, *parts: object) -> str:
    """The key of a result that depends on `parts` and on nothing else."""
    text = "\0".join([VERSION, kind, *map(str, parts)])
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
