"""What either container of torch.save holds, before its tensors have names."""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.weights.pickle_records import Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of the file."""

    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Contents:
    """A pickled object with its storages located.

    Attributes:
        root: the object, made of plain values and records.
        tensors: every tensor that the pickle built.
        places: storage key → its bytes, at least as many as the storage claims.
    """

    root: object
    tensors: set[Tensor]
    places: dict[str, Place]
