"""Pickles and archives written opcode by opcode, for tests: nothing here needs torch, and nothing is ever unpickled."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ZEROS = bytes(16)


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def list_of(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def dict_of(entries: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def call(module: str, attribute: str, *args: bytes) -> bytes:
    return name(module, attribute) + tuple_of(*args) + b"R"


def whole(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage", *view: bytes) -> bytes:
    parts = (text("storage"), name("torch", kind), text(key), text("cpu"), number(numel))
    return tuple_of(*parts, *view) + b"Q"


def tensor(
    shape: tuple[int, ...] = (2, 2), strides: tuple[int, ...] = (2, 1), offset: int = 0, held: bytes | None = None
) -> bytes:
    sizes, steps = tuple_of(*map(number, shape)), tuple_of(*map(number, strides))
    hooks = call("collections", "OrderedDict")
    held = storage() if held is None else held
    return call("torch._utils", "_rebuild_tensor_v2", held, number(offset), sizes, steps, b"\x89", hooks)


def checkpoint(*extra: bytes) -> bytes:
    """A dictionary with one good tensor and whatever else: a file that would pass if the rest were harmless."""
    return whole(dict_of({"weight": tensor(), **{f"extra{index}": value for index, value in enumerate(extra)}}))


def records(pickled: bytes, data: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    storages = {"0": ZEROS, "1": ZEROS} if data is None else data
    return {
        "archive/data.pkl": pickled,
        "archive/byteorder": b"little",
        **{f"archive/data/{key}": value for key, value in storages.items()},
        "archive/version": b"3\n",
    }


def archive(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip as the standard library writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for member, data in members.items():
            file.writestr(zipfile.ZipInfo(member), data, compress_type=compression)
    return buffer.getvalue()


def torch_zip(pickled: bytes, data: Mapping[str, bytes] | None = None) -> bytes:
    return archive(records(pickled, data))


def torch_legacy(pickled: bytes, storages: Mapping[str, tuple[int, bytes]] | None = None, little: bool = True) -> bytes:
    held = {"0": (4, ZEROS)} if storages is None else storages
    facts = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(part, 2) for part in (LEGACY_MAGIC, 1001, facts)]
    parts += [pickled, pickle.dumps(list(held), 2)]
    parts += [struct.pack("<q", count) + data for count, data in held.values()]
    return b"".join(parts)


def sparse_zip(path: Path, pickled: bytes, sizes: Mapping[str, int]) -> None:
    """A torch archive with storages of zeros that take no room on the disk, with 64-bit fields as torch writes them."""
    entries: list[bytes] = []
    with open(path, "wb") as file:
        for member, data, nbytes in [
            ("archive/data.pkl", pickled, len(pickled)),
            *((f"archive/data/{key}", b"", nbytes) for key, nbytes in sizes.items()),
        ]:
            start, raw = file.tell(), member.encode()
            file.write(struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(raw), 0) + raw)
            file.write(data)
            file.seek(start + 30 + len(raw) + nbytes)
            wide = struct.pack("<HHQQQ", 1, 24, nbytes, nbytes, start)
            fixed = (
                b"PK\1\2",
                0,
                0,
                0x808,
                0,
                0,
                0,
                0,
                2**32 - 1,
                2**32 - 1,
                len(raw),
                len(wide),
                0,
                0,
                0,
                0,
                2**32 - 1,
            )
            entries.append(struct.pack("<4sHHHHHHIIIHHHHHII", *fixed) + raw + wide)
        directory, start = b"".join(entries), file.tell()
        file.write(directory)
        end = file.tell()
        count = len(entries)
        file.write(struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0))
