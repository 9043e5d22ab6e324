"""The zip archive that torch ≥ 1.6 writes: which record lies where.

    archive/data.pkl      the pickle: everything except the numbers
    archive/data/0        the bytes of storage "0", uncompressed, so that they can be read in place
    archive/byteorder     "little" (since torch 2.1)
    archive/version, archive/.format_version, archive/.data/serialization_id, …

The standard library's `zipfile` reads any zip there is: it takes the last of two records of one name, looks for the
directory behind other bytes, and believes the directory where a record's own header disagrees. Those liberties are what
attacks on scanners of model files are made of. torch writes one exact layout, so that layout is all that is read here.

Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (the numbers of its sections stand below)
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from sdkit.weights.pickle_globals import StorageTable
from sdkit.weights.pickle_machine import MAX_PICKLE_BYTES, Machine
from sdkit.weights.pickle_records import PickleError, shown
from sdkit.weights.torch_contents import Contents, Place

MAX_DIRECTORY_BYTES = 32 << 20  # a checkpoint with 3,000 tensors has 200 kB
MAX_SMALL_RECORD = 64

_END = struct.Struct("<4sHHHHIIH")  # 4.3.16: the last bytes of the file
_LOCATOR = struct.Struct("<4sIQI")  # 4.3.15: right before
_END64 = struct.Struct("<4sQHHIIQQQQ")  # 4.3.14
_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")  # 4.3.12: one record in the directory
_LOCAL = struct.Struct("<4sHHHHHIIIHH")  # 4.3.7: in front of the record's data
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_SIZES_FOLLOW = 0x0008  # the sizes stand behind the data, not in the local header
_UNKNOWN32 = 0xFFFFFFFF
_ZIP64_EXTRA = 1


@dataclass(frozen=True, slots=True)
class _Record:
    name: str
    flags: int
    crc: int
    nbytes: int
    header: int  # where its local header begins


def read_zip(file: BinaryIO) -> Contents:
    """What the torch archive `file` holds.

    Raises:
        PickleError: it is damaged, deceptive, or not an archive that torch.save wrote.
    """
    records, directory = _read_directory(file)
    places = _locate(file, records, directory)
    prefix = _check_names(places)
    byteorder = places.get(prefix + "byteorder")
    if byteorder and _read(file, byteorder, MAX_SMALL_RECORD) != b"little":
        raise PickleError("its numbers are stored big-endian")
    pickled = _read(file, places[prefix + "data.pkl"], MAX_PICKLE_BYTES)
    crc = records[prefix + "data.pkl"].crc
    if crc and zlib.crc32(pickled) != crc:  # zero: torch was told to write no checksums
        raise PickleError("its data.pkl does not match its checksum")
    storages = StorageTable()
    machine = Machine(pickled, 0, storages)
    root = machine.run()
    data = {key: places.get(f"{prefix}data/{key}") for key in storages.roots}
    return Contents(root, machine.tensors, _check_storages(data, storages))


def _check_storages(found: dict[str, Place | None], storages: StorageTable) -> dict[str, Place]:
    places = {}
    for key, place in found.items():
        claimed = storages.roots[key].nbytes
        if place is None:
            raise PickleError(f"it has no data for storage {shown(key)}")
        if claimed > place.nbytes:
            raise PickleError(f"storage {shown(key)} claims {claimed:,} bytes and has {place.nbytes:,}")
        places[key] = place
    return places


def _read(file: BinaryIO, place: Place, limit: int) -> bytes:
    if place.nbytes > limit:
        raise PickleError(f"a record of its archive has {place.nbytes:,} bytes (at most {limit:,})")
    file.seek(place.offset)
    return file.read(place.nbytes)


def _check_names(places: dict[str, Place]) -> str:
    """The folder that the archive's records are in, after refusing what torch.save does not write."""
    pickles = [name for name in places if name.endswith((".pkl", ".pickle"))]
    folders = [name.partition("/")[0] for name in pickles]
    prefixes = [folder + "/" for folder, name in zip(folders, pickles, strict=True) if name == folder + "/data.pkl"]
    if len(prefixes) != 1:
        raise PickleError("it is a zip archive, but not one of torch.save: it needs one data.pkl")
    (prefix,) = prefixes
    if prefix + "constants.pkl" in places or any(name.startswith(prefix + "code/") for name in places):
        raise PickleError("it is a TorchScript program, not weights alone")
    if len(pickles) > 1:
        hidden = next(name for name in pickles if name != prefix + "data.pkl")
        raise PickleError(f"its archive hides a second pickle, {shown(hidden)}")
    stray = next((name for name in places if not name.startswith(prefix)), None)
    if stray is not None:
        raise PickleError(f"its archive holds {shown(stray)} outside the folder {shown(prefix)}")
    return prefix


def _read_directory(file: BinaryIO) -> tuple[dict[str, _Record], int]:
    """The records by name, and where the directory begins."""
    size = os.fstat(file.fileno()).st_size
    count, nbytes, start, end = _read_end(file, size)
    if nbytes > MAX_DIRECTORY_BYTES or start + nbytes != end:
        raise PickleError("its zip directory is damaged, or other data are mixed with the archive")
    file.seek(start)
    data = file.read(nbytes)
    records: dict[str, _Record] = {}
    position = 0
    while position < len(data):
        try:
            record, position = _parse_entry(data, position)
        except (struct.error, UnicodeDecodeError):
            raise PickleError("its zip directory is damaged") from None
        if record.name in records:
            raise PickleError(f"its archive holds two records named {shown(record.name)}")
        records[record.name] = record
    if len(records) != count:
        raise PickleError(f"its zip directory names {len(records):,} records and claims {count:,}")
    return records, start


def _read_end(file: BinaryIO, size: int) -> tuple[int, int, int, int]:
    """Count of records, bytes and start of the directory, and where the directory must end."""
    tail_size = min(size, _END64.size + _LOCATOR.size + _END.size)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\5\6"):
        raise PickleError("truncated: the zip directory that ends such a file is missing")
    _, disk, first_disk, here, count, nbytes, start, comment = _END.unpack(tail[-_END.size :])
    end = size - _END.size
    locator = tail[-_END.size - _LOCATOR.size : -_END.size]
    if len(tail) == _END64.size + _LOCATOR.size + _END.size and locator.startswith(b"PK\6\7"):
        end = size - tail_size
        if not tail.startswith(b"PK\6\6") or _LOCATOR.unpack(locator)[2] != end:
            raise PickleError("its zip directory is damaged")
        wide = _END64.unpack(tail[: _END64.size])
        narrow, (disk, first_disk, here, count, nbytes, start) = (count, nbytes, start), wide[4:]
        _check_widened(narrow, (count, nbytes, start))
    if disk or first_disk or comment or here != count:
        raise PickleError("its zip directory is damaged")
    return count, nbytes, start, end


def _check_widened(narrow: tuple[int, int, int], wide: tuple[int, int, int]) -> None:
    # The 64-bit numbers count; where the old fields can hold them, they must say the same.
    for old, new, limit in zip(narrow, wide, (0xFFFF, _UNKNOWN32, _UNKNOWN32), strict=True):
        if old not in (new, limit):
            raise PickleError("its two zip directories disagree")


def _parse_entry(data: bytes, position: int) -> tuple[_Record, int]:
    fields = _ENTRY.unpack_from(data, position)
    magic, _, _, flags, method, _, _, crc, packed, nbytes, name_size, extra_size, comment_size, disk = fields[:14]
    header = fields[-1]
    begin = position + _ENTRY.size
    end = begin + name_size + extra_size + comment_size
    if magic != b"PK\1\2" or end > len(data) or disk:
        raise PickleError("its zip directory is damaged")
    name = data[begin : begin + name_size].decode("utf-8")
    if not name.isprintable() or "\\" in name or ".." in name.split("/"):
        raise PickleError(f"its archive holds a record with the deceptive name {shown(name)}")
    if flags & _ENCRYPTED:
        raise PickleError(f"record {shown(name)} of its archive is encrypted")
    extra = data[begin + name_size : begin + name_size + extra_size]
    nbytes, packed, header = _widen([nbytes, packed, header], extra)
    if method or packed != nbytes:
        raise PickleError(f"record {shown(name)} of its archive is compressed, which torch.save never does")
    return _Record(name, flags, crc, nbytes, header), end


def _widen(fields: list[int], extra: bytes) -> list[int]:
    """Put the 64-bit numbers of the extra field (4.5.3) in place of those that did not fit."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == _ZIP64_EXTRA:
            missing = [index for index, value in enumerate(fields) if value == _UNKNOWN32]
            numbers = struct.unpack_from(f"<{len(missing)}Q", extra[: position + 4 + length], position + 4)
            for index, number in zip(missing, numbers, strict=True):
                fields[index] = number
            return fields
        position += 4 + length
    return fields


def _locate(file: BinaryIO, records: dict[str, _Record], directory: int) -> dict[str, Place]:
    """Where each record's data lie. The records must follow each other from the first byte, without overlap."""
    places: dict[str, Place] = {}
    position = 0
    for record in sorted(records.values(), key=lambda record: record.header):
        if record.header < position or (position == 0 and record.header > 0):
            raise PickleError(f"record {shown(record.name)} of its archive overlaps another one, or is not the first")
        start = _data_start(file, record)
        position = start + record.nbytes
        if position > directory:
            raise PickleError(f"record {shown(record.name)} of its archive reaches into the directory")
        places[record.name] = Place(start, record.nbytes)
    return places


def _data_start(file: BinaryIO, record: _Record) -> int:
    """Where the data begin, after comparing the record's own header with the directory."""
    file.seek(record.header)
    data = file.read(_LOCAL.size)
    if len(data) < _LOCAL.size:
        raise PickleError(f"record {shown(record.name)} of its archive lies outside the file")
    magic, _, flags, method, _, _, crc, packed, nbytes, name_size, extra_size = _LOCAL.unpack(data)
    name = file.read(name_size)
    same = magic == b"PK\3\4" and flags == record.flags and method == 0 and name == record.name.encode("utf-8")
    if not flags & _SIZES_FOLLOW:
        same = same and crc == record.crc and all(value in (record.nbytes, _UNKNOWN32) for value in (packed, nbytes))
    elif same:
        same = crc in (0, record.crc) and all(value in (0, record.nbytes, _UNKNOWN32) for value in (packed, nbytes))
    if not same:
        raise PickleError(f"record {shown(record.name)} of its archive contradicts the archive's directory")
    return record.header + _LOCAL.size + int(name_size) + int(extra_size)
