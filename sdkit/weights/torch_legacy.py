"""The container of torch before 1.6: five pickles, then the storages.

    magic number · protocol version · facts about the machine · the object · the storages' keys
    then, for each key in that order: the number of elements (int64), and the elements

The pickles say nothing of their lengths, so the place of the numbers is known only after running all five.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from sdkit.weights.pickle_globals import StorageTable
from sdkit.weights.pickle_machine import MAX_PICKLE_BYTES, Machine
from sdkit.weights.pickle_records import PickleError, Storage, shown
from sdkit.weights.torch_contents import Contents, Place

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_COUNT = struct.Struct("<q")


def read_legacy(file: BinaryIO) -> Contents:
    """What the legacy torch file `file` holds.

    Raises:
        PickleError: it is damaged, deceptive, or a pickle that torch.save did not write.
    """
    data = file.read(MAX_PICKLE_BYTES)
    magic, position = _run(data, 0)
    if magic != MAGIC:
        raise PickleError("it is a plain pickle that torch.save did not write, so it holds no tensors sdkit could read")
    protocol, position = _run(data, position)
    if protocol != PROTOCOL:
        raise PickleError("it is of an unknown version of torch's old format")
    facts, position = _run(data, position)
    if type(facts) is not dict or facts.get("little_endian") is not True:
        raise PickleError("its numbers are not stored little-endian")
    storages = StorageTable()
    machine = Machine(data, position, storages)
    root = machine.run()
    keys, position = _run(data, machine.position)
    return Contents(root, machine.tensors, _locate(file, _ordered(keys, storages), position))


def _run(data: bytes, position: int) -> tuple[object, int]:
    machine = Machine(data, position, StorageTable())
    return machine.run(), machine.position


def _ordered(keys: object, storages: StorageTable) -> list[Storage]:
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise PickleError("its list of storages is damaged")
    if len(keys) != len(storages.roots) or set(keys) != set(storages.roots):
        raise PickleError("its list of storages is not that of its tensors")
    return [storages.roots[key] for key in keys]


def _locate(file: BinaryIO, storages: list[Storage], position: int) -> dict[str, Place]:
    size = os.fstat(file.fileno()).st_size
    places: dict[str, Place] = {}
    for storage in storages:
        file.seek(position)
        header = file.read(_COUNT.size)
        if len(header) < _COUNT.size or position + _COUNT.size + storage.nbytes > size:
            raise PickleError(f"truncated: storage {shown(storage.key)} does not fit into the file's {size:,} bytes")
        (count,) = _COUNT.unpack(header)
        if count != storage.numel:
            raise PickleError(f"storage {shown(storage.key)} claims {storage.numel:,} elements and has {count:,}")
        places[storage.key] = Place(position + _COUNT.size, storage.nbytes)
        position += _COUNT.size + storage.nbytes
    if position != size:
        raise PickleError(f"{size - position:,} bytes follow its last storage")
    return places
