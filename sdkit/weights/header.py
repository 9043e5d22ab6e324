"""The header of a safetensors file: parsed strictly, written deterministically.

A safetensors file is eight bytes of length, a JSON object of that length, then the tensors' bytes. Files come from
strangers, so this parser is stricter than the library's: it also refuses duplicate keys (where the last one would
silently win), headers that do not begin with ``{``, control characters in names and headers above 25 MB (the limit of
the Hugging Face client; real ones stay under one).

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

from sdkit.core.errors import SdkitError
from sdkit.weights.dtypes import DTYPES, DType

MAX_HEADER_BYTES = 25_000_000
MAX_NAME_LENGTH = 1024
MAX_DIMENSIONS = 32
LENGTH_BYTES = 8
_MOST = 2**63
_FIELDS = {"dtype", "shape", "data_offsets"}
ALIGNMENT = 8  # readers that map the file want the data to start on an eight-byte boundary


class DamagedFileError(SdkitError):
    """The file is not what its name or its own header says it is."""

    def __init__(self, path: Path | str, reason: str, hint: str = "") -> None:
        super().__init__(f"{path}: {reason}", hint or "download or save the file again; nothing was read from it")
        self.path = Path(path)
        self.reason = reason


@dataclass(slots=True, unsafe_hash=True)  # frozen ones take five times as long to make, and a scan makes millions
class TensorInfo:
    """Where one tensor lies and how to read it. Nothing changes it once it is made.

    Attributes:
        name: unique name within its `Weights`.
        dtype: element type.
        shape: dimensions; empty for a scalar.
        offset: first byte, counted from the start of the physical file.
        file: index into `Weights.files`.
        strides: steps between elements, in elements; None when they lie in row-major order, as in every safetensors
            file. Only old pickled files hold transposed views.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    file: int = 0
    strides: tuple[int, ...] | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the elements."""
        return self.dtype.nbytes(self.numel)


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: the tensors in file-offset order, the metadata, and where the data begin and end."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    file_size: int


class _HeaderError(Exception):
    """A reason, before the path is known."""


_Row = tuple[int, int, int, str, str, tuple[int, ...]]
"""A tensor's begin and end in the data, its number in the header, its name, element type and shape."""


def read_header(path: Path | str) -> Header:
    """Read and check the header of the safetensors file at `path`.

    Raises:
        DamagedFileError: the file is no valid safetensors file; the reason names what is wrong.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            return parse_header(read_header_bytes(file), os.fstat(file.fileno()).st_size)
        except _HeaderError as error:
            raise DamagedFileError(path, str(error)) from None


def read_header_bytes(file: BinaryIO) -> bytes:
    """The JSON bytes of the header, after the checks of its length (which a hostile file may put at any number)."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(LENGTH_BYTES)
    if len(prefix) < LENGTH_BYTES:
        raise _HeaderError(f"not a safetensors file: only {len(prefix)} bytes long")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        raise _HeaderError(f"not a safetensors file: its header would be {length:,} bytes, above {MAX_HEADER_BYTES:,}")
    if LENGTH_BYTES + length > size:
        raise _HeaderError(f"truncated: the header alone needs {LENGTH_BYTES + length:,} bytes, the file has {size:,}")
    return file.read(length)


def parse_header(text: bytes, file_size: int) -> Header:
    """Check the JSON bytes of a header against the size of its file.

    Raises:
        _HeaderError: with the reason, for `read_header` to put the path in front.
    """
    if not text.startswith(b"{"):
        raise _HeaderError("not a safetensors file: the header does not begin with '{'")
    fields = _fields(text)
    metadata = _metadata(fields.pop("__metadata__", {}))
    data_start = LENGTH_BYTES + len(text)
    _check_names(fields)
    rows = _rows(fields)
    tensors = _tensors(rows, data_start)
    _check_cover(rows, data_start, file_size)
    return Header(tensors, metadata, data_start, file_size)


def build_header(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str], size: int = 0
) -> bytes:
    """The length and the JSON of a header for `tensors` laid out one after the other in the order given.

    The bytes depend on the arguments alone: metadata are sorted, and the JSON is padded with spaces so that the data
    begin on an eight-byte boundary.

    Args:
        tensors: name, element type and shape of each.
        metadata: the ``__metadata__``.
        size: pad to at least this many bytes in all (a multiple of eight), for a header written before its sizes are
            known.
    """
    fields: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    begin = 0
    for name, dtype, shape in tensors:
        if name in fields:
            raise ValueError(f"two tensors are named {name}")
        end = begin + dtype.nbytes(math.prod(shape))
        fields[name] = {"dtype": dtype.name, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    if not metadata:
        del fields["__metadata__"]
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * max(-len(text) % ALIGNMENT, size - LENGTH_BYTES - len(text))
    if len(text) > MAX_HEADER_BYTES:
        raise SdkitError(f"the header would be {len(text):,} bytes; readers accept {MAX_HEADER_BYTES:,}")
    return struct.pack("<Q", len(text)) + text


def _fields(text: bytes) -> dict[str, Any]:
    """The JSON object."""
    try:
        decoded = text.decode("utf-8")
        fields: dict[str, Any] = json.loads(decoded, parse_constant=_no_constant)
        if _may_lack_keys(fields, decoded):
            json.loads(decoded, object_pairs_hook=_refuse_duplicates)
    except UnicodeDecodeError:
        raise _HeaderError("the header is not UTF-8") from None
    except RecursionError:
        raise _HeaderError("the header is nested too deeply") from None
    except ValueError as error:
        raise _HeaderError(f"the header is not JSON: {error}") from None
    return fields


def _may_lack_keys(fields: Mapping[str, Any], text: str) -> bool:
    """Whether the JSON might hold keys that were lost because another one is equal.

    In JSON a colon follows each key, and all others stand in strings. So as many colons as there are keys and colons
    in strings prove that none was lost, at a small part of what a look at each pair costs.
    """
    metadata = fields.get("__metadata__")
    tables = [fields, *(entry for entry in fields.values() if isinstance(entry, dict))]
    strings = [*fields]
    if isinstance(metadata, dict):
        strings += [*metadata, *(value for value in metadata.values() if isinstance(value, str))]
    colons = sum(map(len, tables)) + "".join(strings).count(":")
    return colons != text.count(":") or "\\u003" in text  # a colon may be written as \u003a


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _HeaderError(f"the header holds the key {name[:80]!r} twice")


def _no_constant(text: str) -> None:
    raise _HeaderError(f"the header holds the number {text}")


def _metadata(fields: object) -> dict[str, str]:
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise _HeaderError("__metadata__ is not a table of strings")
    try:
        "".join([*fields, *fields.values()]).encode()
    except UnicodeEncodeError:  # JSON can escape half a character, which no file and no terminal can hold
        raise _HeaderError("__metadata__ holds text that is not Unicode") from None
    return fields


def _rows(fields: Mapping[str, Any]) -> list[_Row]:
    """The checked entries in the order in which their tensors lie in the file.

    What is checked is checked for all entries together: one by one that takes longer than reading the JSON.
    """
    entries = list(fields.values())
    if not ({*map(type, entries)} <= {dict} and all({*keys} == _FIELDS for keys in {*map(tuple, entries)})):
        raise _no_entry(fields)
    dtypes, shapes, offsets = ([entry[field] for entry in entries] for field in ("dtype", "shape", "data_offsets"))
    if not ({*map(type, dtypes)} <= {str} and _are_all_counts([*shapes, *offsets]) and {*map(len, offsets)} <= {2}):
        raise _impossible(fields)
    begins, ends = ([pair[side] for pair in offsets] for side in (0, 1))
    return sorted(zip(begins, ends, count(), fields, dtypes, map(tuple, shapes), strict=False))


def _no_entry(fields: Mapping[str, Any]) -> _HeaderError:
    name = next(name for name, entry in fields.items() if not isinstance(entry, dict) or entry.keys() != _FIELDS)
    return _HeaderError(f"tensor {name!r} needs exactly dtype, shape and data_offsets")


def _impossible(fields: Mapping[str, Any]) -> _HeaderError:
    """Why the first bad entry is one."""
    for name, entry in fields.items():
        if not isinstance(entry["dtype"], str):
            return _unknown_dtype(name, entry["dtype"])
        if not _are_all_counts([entry["shape"]]):
            return _HeaderError(f"tensor {name!r} has the impossible shape {reprlib.repr(entry['shape'])}")
        offsets = entry["data_offsets"]
        if not _are_all_counts([offsets]) or len(offsets) != 2:
            break
    return _impossible_offsets(name, offsets)


def _impossible_offsets(name: str, offsets: Any) -> _HeaderError:
    return _HeaderError(f"tensor {name!r} has the impossible offsets {reprlib.repr(offsets)}")


@dataclass(frozen=True, slots=True)
class _Form:
    """A checked element type and shape, and the bytes they take."""

    dtype: DType
    shape: tuple[int, ...]
    nbytes: int


def _tensors(rows: Iterable[_Row], data_start: int) -> dict[str, TensorInfo]:
    """The tensors by name, each of as many bytes as its element type and shape say."""
    forms: dict[tuple[str, tuple[int, ...]], _Form] = {}  # a model has hundreds of tensors and a dozen forms
    tensors: dict[str, TensorInfo] = {}
    for begin, end, _, name, dtype, shape in rows:
        form = forms.get((dtype, shape))
        if form is None:
            form = forms[dtype, shape] = _form(name, dtype, shape)
        if form.nbytes != end - begin:
            raise _wrong_size(name, form, begin, end)
        tensors[name] = TensorInfo(name, form.dtype, form.shape, data_start + begin)
    return tensors


def _wrong_size(name: str, form: _Form, begin: int, end: int) -> _HeaderError:
    if begin > end:
        return _impossible_offsets(name, [begin, end])
    needed = f"{form.dtype.name} {list(form.shape)} needs {form.nbytes:,}"
    return _HeaderError(f"tensor {name!r} claims {end - begin:,} bytes, {needed}")


def _form(name: str, dtype_name: str, shape: tuple[int, ...]) -> _Form:
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        raise _unknown_dtype(name, dtype_name)
    # Beside a dimension of zero the others could be anything, and torch would multiply them.
    if len(shape) > MAX_DIMENSIONS or math.prod(filter(None, shape)) >= _MOST:
        raise _HeaderError(f"tensor {name!r} has the impossible shape {reprlib.repr(list(shape))}")
    try:
        return _Form(dtype, shape, dtype.nbytes(math.prod(shape)))
    except ValueError as error:
        raise _HeaderError(f"tensor {name!r}: {error}") from None


def _unknown_dtype(name: str, dtype: object) -> _HeaderError:
    return _HeaderError(f"tensor {name!r} has the unknown dtype {str(dtype)[:40]!r}")


def _check_names(names: Collection[str]) -> None:
    if max(map(len, names), default=0) > MAX_NAME_LENGTH or not "".join(names).isprintable():
        for name in names:
            check_name(name)


def check_name(name: str) -> None:
    """Refuse names that could not come from a real model and could deceive a terminal.

    Raises:
        _HeaderError: the name is too long or holds a control character.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise _HeaderError(f"a tensor's name is {len(name):,} characters long")
    if not name.isprintable():
        raise _HeaderError(f"tensor name {ascii(name)[:120]} holds control characters")


def _are_all_counts(lists: Sequence[Any]) -> bool:
    """Whether they are lists of whole numbers from 0 up. (A bool is an int to Python, but no dimension.)"""
    if not {*map(type, lists)} <= {list}:
        return False
    numbers = list(chain.from_iterable(lists))
    return {*map(type, numbers)} <= {int} and min(numbers, default=0) >= 0 and max(numbers, default=0) < _MOST


def _check_cover(rows: Iterable[_Row], data_start: int, file_size: int) -> None:
    """Tensors must cover the data exactly: no overlap, no hole, no byte missing or left over."""
    position = 0
    for begin, end, _, name, _, _ in rows:
        if begin < position:
            raise _HeaderError(f"tensor {name!r} overlaps another one")
        if begin > position:
            raise _HeaderError(f"there is a hole of {begin - position:,} bytes before tensor {name!r}")
        position = end
    needed = data_start + position
    if needed > file_size:
        raise _HeaderError(f"truncated: the tensors need {needed:,} bytes, the file has {file_size:,}")
    if needed < file_size:
        raise _HeaderError(f"{file_size - needed:,} bytes follow the last tensor")
