"""Weight changes that are computed, not read: the results of adapter algebra, as an artifact every codec can write.

A result's shapes are known at once and its numbers only when a codec asks for them, module by module, so that no more
than one module's numbers are in memory, however large the adapter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.factors import read_factor
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Read, torch_dtype
from sdkit.weights import DType, TensorInfo, Weights
from sdkit.weights.reader import Container

if TYPE_CHECKING:
    import torch

# The parts of one change by role: ``up``, ``down`` and perhaps ``mid``; or ``diff`` alone.
Tensors = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Computed:
    """One change that will be computed.

    Attributes:
        shapes: role (``up``, ``down``, ``mid``; or ``diff``) → shape.
        make: computes the tensors of these roles, in any floating-point type.
        scale: what the product of the factors is multiplied with.
    """

    shapes: Mapping[str, tuple[int, ...]]
    make: Callable[[], Tensors]
    scale: float = 1.0

    @classmethod
    def of(cls, tensors: Tensors, scale: float = 1.0) -> Computed:
        """A change whose numbers are there already."""
        return cls({role: tuple(tensor.shape) for role, tensor in tensors.items()}, lambda: tensors, scale)


class ComputedWeights(Weights):
    """Tensors that are computed when they are read; the last change asked for is kept.

    Args:
        name: what messages call it; nothing is looked for at this path.
        changes: what to compute.
        dtype: the type the tensors are read as.
    """

    def __init__(self, name: str, changes: Mapping[Target, Computed], dtype: DType) -> None:
        self._changes = {target.name: change for target, change in changes.items()}
        infos = {
            f"{target.name}.{role}": TensorInfo(f"{target.name}.{role}", dtype, shape, 0)
            for target, change in changes.items()
            for role, shape in change.shapes.items()
        }
        super().__init__(Path(name), Container.MEMORY, (), infos, {})
        self._lock = threading.Lock()
        self._held: tuple[str, dict[str, bytearray]] = ("", {})

    def read_into(self, info: TensorInfo, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the bytes of a tensor, beginning at its byte `start`."""
        change, _, role = info.name.rpartition(".")
        with self._lock:
            if self._held[0] != change:
                tensors = self._changes[change].make()
                self._held = (change, {name: _bytes(tensor, info, change) for name, tensor in tensors.items()})
            buffer[:] = memoryview(self._held[1][role])[start : start + len(buffer)]


def computed_artifact(
    name: str,
    changes: Mapping[Target, Computed],
    dtype: DType,
    *,
    format: str = "kohya",
    spelled: Mapping[str, str] | None = None,
) -> Artifact:
    """An artifact of changes that are computed when they are read.

    Args:
        name: what messages call it.
        changes: what to compute, by target.
        dtype: the type the tensors are stored as.
        format: as in `Artifact`.
        spelled: as in `Artifact`.
    """
    weights = ComputedWeights(name, changes, dtype)
    deltas = {target: _delta(weights, target, change) for target, change in changes.items()}
    return Artifact(weights, format, deltas=deltas, spelled=spelled or {})


def times(read: Read, factor: float, name: str, dtype: DType | None = None) -> Read:
    """A tensor times a number, computed when it is read.

    Args:
        name: of what it belongs to.
        dtype: what it is stored as; default: the tensor's own type, which rounds.
    """
    import torch

    change = Computed({"scaled": read.shape}, lambda: {"scaled": read_factor(read, torch.float64) * factor})
    weights = ComputedWeights(str(read.weights.path), {Target(name): change}, dtype or read.dtype)
    return Read(weights, next(iter(weights.tensors.values())))


def _delta(weights: Weights, target: Target, change: Computed) -> Delta:
    reads = {role: Read(weights, weights.tensors[f"{target.name}.{role}"]) for role in change.shapes}
    if "diff" in reads:
        return Full(reads["diff"], change.scale)
    return LowRank(reads["up"], reads["down"], change.scale, reads.get("mid"))


def _bytes(tensor: torch.Tensor, info: TensorInfo, change: str) -> bytearray:
    """The elements in row-major order, in the type of `info`.

    Raises:
        SdkitError: a number does not fit that type.
    """
    import torch

    stored = tensor.detach().to(torch_dtype(info.dtype))
    if not bool(torch.isfinite(stored).all()):
        raise SdkitError(f"{change}: holds numbers that do not fit {info.dtype.name}", "write it with --dtype fp32")
    data = bytearray(stored.nbytes)
    torch.frombuffer(data, dtype=stored.dtype).copy_(stored.flatten())
    return data
