"""Looking at a file that lies on a hub: its header, for about a hundred kilobytes, and a few of its small tensors."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sdkit.core.errors import SdkitError
from sdkit.hubs.hub import RemoteFile
from sdkit.hubs.names import check_file_name
from sdkit.weights import Weights, open_weights
from sdkit.weights.header import LENGTH_BYTES, MAX_HEADER_BYTES, DamagedFileError, TensorInfo

Read = Callable[[int, int], bytes]

_FIRST = 100_000  # bytes, which most headers fit into
_WHOLE = 2 << 20  # a file up to this size is read whole: embeddings, and small files of any kind
_SAMPLED = 8  # of the scalars of a file, which are the alphas of a LoRA and nearly always equal
_AT_ONCE = 8


@contextmanager
def open_remote(file: RemoteFile, read: Read) -> Iterator[RemoteWeights | Weights]:
    """Open a file from afar; only what is asked for travels.

    Args:
        file: a safetensors file, or a small file of any kind, of known size.
        read: gives the bytes from the first number up to the second.

    Raises:
        SdkitError: it is a large file of another kind, or damaged.
    """
    name = check_file_name(file.name.rpartition("/")[2])
    if file.size is None:
        raise SdkitError(f"{name}: the hub does not say how large it is", "pull it to look at it")
    if file.size > _WHOLE and not name.endswith(".safetensors"):
        raise SdkitError(f"{name}: only safetensors files can be looked at from afar", "pull it to look at it")
    with TemporaryDirectory(prefix="sdkit-") as folder:
        path = Path(folder) / name
        if file.size <= _WHOLE:
            path.write_bytes(read(0, file.size))
        else:
            _write_sparse(path, file.size, _header(name, file.size, read))
        with open_weights(path) as local:
            yield local if file.size <= _WHOLE else RemoteWeights(local, read)


class RemoteWeights(Weights):
    """Weights whose header lies here in a file of holes, and whose tensors lie on a hub.

    Attributes:
        sampled: how many of its scalars were read; the others were taken to be the same. 0 where all were read.
    """

    def __init__(self, local: Weights, read: Read) -> None:
        super().__init__(local.path, local.container, local.files, local.tensors, local.metadata)
        self._read = read
        self._scalars: dict[str, bytes] = {}
        self.sampled = 0

    def read_into(self, info: TensorInfo, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with bytes of a tensor, see `Weights.read_into`."""
        if info.numel == 1:
            buffer[:] = self._scalar(info)[start : start + len(buffer)]
            return
        begin = info.offset + start
        data = self._read(begin, begin + len(buffer))
        if len(data) != len(buffer):
            raise DamagedFileError(self.path, f"{info.name}: the hub sends {len(data):,} bytes of {len(buffer):,}")
        buffer[:] = data

    def _scalar(self, info: TensorInfo) -> bytes:
        """A scalar. The first time some are read; if they are equal, all of their kind are taken to be."""
        if info.name not in self._scalars:
            kind = _kind(info)
            same = [one for one in self.tensors.values() if one.numel == 1 and _kind(one) == kind]
            some = same[:: -(-len(same) // _SAMPLED)]
            values = self._fetch(some)
            if len(set(values)) > 1:
                some, values = same, self._fetch(same)
            elif len(some) < len(same):
                self.sampled += len(some)
            self._scalars |= dict.fromkeys((one.name for one in same), values[0])
            self._scalars |= {one.name: value for one, value in zip(some, values, strict=True)}
        return self._scalars[info.name]

    def _fetch(self, tensors: list[TensorInfo]) -> list[bytes]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(lambda one: self._read(one.offset, one.offset + one.nbytes), tensors))


def _kind(info: TensorInfo) -> tuple[str, str]:
    return info.name.rpartition(".")[2], info.dtype.name


def _header(name: str, size: int, read: Read) -> bytes:
    """The length and the JSON of a safetensors header."""
    head = read(0, min(_FIRST, size))
    if len(head) < LENGTH_BYTES:
        raise DamagedFileError(name, "no safetensors file: the hub sends nothing")
    (length,) = struct.unpack("<Q", head[:LENGTH_BYTES])
    stop = LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES or stop > size:
        raise DamagedFileError(name, f"no safetensors file: its header would be {length:,} bytes")
    return head[:stop] if stop <= len(head) else head + read(len(head), stop)


def _write_sparse(path: Path, size: int, header: bytes) -> None:
    """A file of the right size that holds nothing but its header."""
    with path.open("wb") as file:
        file.write(header)
        file.truncate(size)
