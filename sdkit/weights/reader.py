"""Opening weights, whatever holds them: a safetensors file, a pickled checkpoint, shards or a diffusers folder."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sdkit.core.errors import SdkitError
from sdkit.weights import positional
from sdkit.weights.dtypes import decode_scalar
from sdkit.weights.header import DamagedFileError, TensorInfo, build_header, read_header, read_header_bytes

_NO_DIGITS = str.maketrans("", "", "0123456789")


class Container(StrEnum):
    """What holds the tensors."""

    SAFETENSORS = "safetensors"
    PICKLE = "pickle"
    FOLDER = "folder"
    MEMORY = "memory"


class Weights:
    """The tensors of one model, read-only: named, located, and read only when asked for.

    In a folder of components a tensor's name is ``component/name`` (``unet/conv_in.weight``); in a file it is the
    file's own name for it.

    Attributes:
        path: the file or folder that was opened.
        container: what holds the tensors.
        files: the physical files; `TensorInfo.file` indexes them.
        prefixes: what was put before the names of each file's tensors (``unet/``).
        file_metadata: the ``__metadata__`` of each file.
        tensors: name → place, in file order.
        metadata: the ``__metadata__`` of a single file, or what all files of a folder say alike.
        configs: the JSON configurations of a folder by component (``unet``, ``scheduler``, ``model_index``, …).
        extra: what a pickled file holds beside tensors (plain values only); empty for safetensors.
        known: what is known of it beside its content, for recipes: the ``name`` it goes by, a checked ``sha256``.
    """

    def __init__(
        self,
        path: Path,
        container: Container,
        files: Sequence[Path],
        tensors: Mapping[str, TensorInfo],
        metadata: Mapping[str, str],
        *,
        prefixes: Sequence[str] = (),
        file_metadata: Sequence[Mapping[str, str]] = (),
        configs: Mapping[str, dict[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.container = container
        self.files = tuple(files)
        self.tensors = dict(tensors)
        self.metadata = dict(metadata)
        self.prefixes = tuple(prefixes) or ("",) * len(self.files)
        self.file_metadata = tuple(file_metadata) or (self.metadata,) * len(self.files)
        self.configs = dict(configs or {})
        self.extra = dict(extra or {})
        self.known: dict[str, str] = {}
        self._descriptors: dict[int, int] = {}
        self._opening = threading.Lock()

    def mentions(self, *texts: str) -> bool:
        """Whether any of the texts stands in the name of any tensor.

        All names are searched at once, hundreds of times faster than one by one: for codecs to ask before they look.
        """
        return any(self._may_mention(text) and text in self._lines for text in texts)

    def _may_mention(self, text: str) -> bool:
        """Whether what stands between the dots of a text stands there in names, too."""
        words = text.translate(_NO_DIGITS).replace(".", "\n.\n").split(".")
        return all(word in self._words for word in words)

    @cached_property
    def _lines(self) -> str:
        return "\n".join(self.tensors)

    @cached_property
    def _words(self) -> str:
        """What stands between the dots of names, each once and without digits: a few dozen words for all layers."""
        words = self._lines.translate(_NO_DIGITS).replace(".", "\n").split("\n")
        return "\n".join(["", *dict.fromkeys(words), ""])

    def read_into(self, info: TensorInfo, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the bytes of a tensor (stored order), beginning at its byte `start`.

        Raises:
            DamagedFileError: the file has become shorter since its header was read.
        """
        try:
            positional.read_into(self.descriptor(info.file), buffer, info.offset + start)
        except EOFError as error:
            raise DamagedFileError(self.files[info.file], f"{info.name}: {error}") from None

    def read(self, info: TensorInfo) -> bytes:
        """All the bytes of a small tensor."""
        data = bytearray(info.nbytes)
        self.read_into(info, memoryview(data))
        return bytes(data)

    def scalar(self, name: str) -> float:
        """The value of a tensor with exactly one element.

        Raises:
            DamagedFileError: it has more or fewer elements, or a type no scalar is stored in.
        """
        info = self.tensors[name]
        if info.numel != 1:
            raise DamagedFileError(self.path, f"{name} should hold one number, its shape is {list(info.shape)}")
        try:
            return decode_scalar(info.dtype, self.read(info))
        except ValueError as error:
            raise DamagedFileError(self.path, f"{name}: {error}") from None

    def stored_name(self, info: TensorInfo) -> str:
        """The name of a tensor within its own file."""
        return info.name.removeprefix(self.prefixes[info.file])

    def descriptor(self, file: int = 0) -> int:
        """The open file descriptor of a physical file (opened on first use)."""
        with self._opening:
            if file not in self._descriptors:
                flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
                self._descriptors[file] = os.open(self.files[file], flags)
            return self._descriptors[file]

    def close(self) -> None:
        """Close the files. Reading again would open them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_weights(path: Path | str) -> Weights:
    """Open the weights at `path` by what the file is, not by what it is called.

    Args:
        path: a ``.safetensors`` file, a pickled ``.ckpt``/``.pt``/``.bin`` file (read by the restricted reader: no
            code in it ever runs), a ``*.safetensors.index.json``, or a diffusers, component or shard folder.

    Raises:
        SdkitError: there is nothing at `path`, or it is no weight file; the message says why.
    """
    path = Path(path)
    if not path.exists():
        raise SdkitError(f"{path}: no such file or folder", _nearest_hint(path))
    if path.is_dir() or path.name.endswith(".index.json"):
        from sdkit.weights.folder import open_folder

        return open_folder(path)
    return open_file(path)


def open_file(path: Path) -> Weights:
    """Open a single file of weights.

    Raises:
        SdkitError: it is no weight file; the message says why.
    """
    with open(path, "rb") as file:
        magic = file.read(9)
    if magic.startswith(b"GGUF"):
        raise SdkitError(f"{path}: GGUF holds quantised weights, which sdkit does not read", "use the unquantised file")
    if _is_pickle(magic):
        from sdkit.weights.pickle import open_pickle

        return open_pickle(path)
    return open_safetensors(path)


def open_safetensors(path: Path | str) -> Weights:
    """Open one safetensors file."""
    path = Path(path)
    header = read_header(path)
    return Weights(path, Container.SAFETENSORS, [path], header.tensors, header.metadata)


def raw_header(weights: Weights) -> bytes:
    """The length and header as they stand in a single safetensors file; for a pickle, those of the same tensors."""
    path = weights.files[0]
    if weights.container is Container.SAFETENSORS:
        with open(path, "rb") as file:
            text = read_header_bytes(file)
        return struct.pack("<Q", len(text)) + text
    return build_header(((info.name, info.dtype, info.shape) for info in weights.tensors.values()), weights.metadata)


def _is_pickle(magic: bytes) -> bool:
    # The length of a safetensors header can be spelled like the start of a pickle: 640 is 80 02 00 00 00 00 00 00.
    if magic[4:] == b"\0\0\0\0{":
        return False
    # A zip archive (torch >= 1.6), a protocol-2 pickle (before), or a tar archive (long before).
    return magic.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def _nearest_hint(path: Path) -> str:
    import difflib

    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    suffixes = {".safetensors", ".ckpt", ".pt", ".bin"}
    names = [entry.name for entry in folder.iterdir() if entry.suffix in suffixes or entry.is_dir()]
    # Without suffixes: that both end in .safetensors makes no two names alike. Of equal stems the asked suffix wins.
    stems = {Path(name).stem: name for name in sorted(names, key=lambda name: Path(name).suffix == path.suffix)}
    near = [stems[name] for name in difflib.get_close_matches(path.stem, stems, n=1)]
    return f"did you mean {folder / near[0]}?" if near else ""
