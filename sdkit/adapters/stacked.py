"""Changes of layers that a file keeps in one, one below the other: several changes as one, and halves swapped.

Low-rank changes that share ``down`` (as they do where a file's one change was divided) are one with all rows of ``up``.
Others become one of as many ranks as they have together: ``down`` one below the other, ``up`` along the diagonal. Both
are exact. The way back is `sdkit.adapters.deltas.rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Target
from sdkit.adapters.computed import Computed, ComputedWeights
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.dora import Dora
from sdkit.adapters.deltas.factors import read_factor, same_bytes
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.hadamard import Hadamard
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.adapters.deltas.rows import Rows
from sdkit.adapters.sums import widest
from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Read, torch_dtype
from sdkit.weights import DTYPES, DType

if TYPE_CHECKING:
    import torch

# Rows of a layer, and its change; None where it has none.
Member = tuple[int, Delta | None]


def joined(members: Sequence[Member], name: str) -> Delta:
    """The changes of stacked layers, from the top, as the change of the whole.

    Args:
        members: of all layers; at least one has a change.
        name: of the whole.

    Raises:
        SdkitError: they are of kinds that have no common form.
    """
    changes = [change for _, change in members if change is not None]
    complete = len(changes) == len(members)
    first = changes[0]
    if complete and (whole := _undivided(members)):
        return whole
    if all(type(change) is LowRank and change.mid is None for change in changes):
        return _joined_low_rank(members, name)
    if all(isinstance(change, Full) and change.scale == 1.0 for change in changes):
        return Full(_cat(members, name, lambda change: change.diff))  # type: ignore[attr-defined]
    if complete and isinstance(first, Dora) and all(isinstance(c, Dora) and not c.by_input for c in changes):
        directions = [(rows, change.change) for rows, change in members if isinstance(change, Dora)]
        lengths = _cat(members, f"{name}.lengths", lambda change: _flat(change.lengths))  # type: ignore[attr-defined]
        return Dora(joined(directions, name), lengths, by_input=False)
    if complete and isinstance(first, Hadamard) and all(_same_halves(first, change) for change in changes):
        w1_a = _cat(members, f"{name}.w1_a", lambda change: change.w1_a)  # type: ignore[attr-defined]
        w2_a = _cat(members, f"{name}.w2_a", lambda change: change.w2_a)  # type: ignore[attr-defined]
        return replace(first, w1_a=w1_a, w2_a=w2_a)
    kinds = " and ".join(sorted({change.kind for change in changes}))
    raise SdkitError(
        f"{name} stacks {len(members)} layers, whose changes ({kinds}) have no common form",
        "write it as diffusers or peft, which keep the layers apart; --allow-lossy may make them plain LoRAs",
    )


def swapped(delta: Delta, name: str) -> Delta:
    """The change of a weight whose second half of the rows comes first.

    Raises:
        SdkitError: it is of a kind for which this is not done.
    """
    if type(delta) is LowRank:
        return replace(delta, up=_swapped(delta.up, name))
    if isinstance(delta, Full):
        return replace(delta, diff=_swapped(delta.diff, name))
    raise SdkitError(
        f"{name}: a {delta.kind} of this layer, whose rows lie in another order in each naming, is not supported",
        "bake it with the program that made it",
    )


def _undivided(members: Sequence[Member]) -> Delta | None:
    """The whole that the members are consecutive rows of, if they are."""
    whole, end = None, 0
    for rows, change in members:
        if not isinstance(change, Rows) or change.start != end or (whole or change.change) is not change.change:
            return None
        whole, end = change.change, end + rows
    return whole if whole is not None and whole.shape[0] == end else None


def _joined_low_rank(members: Sequence[Member], name: str) -> LowRank:
    changes = [change for _, change in members if isinstance(change, LowRank)]
    first = changes[0]
    if len(changes) == len(members) and all(_same_factor(first, change) for change in changes):
        return replace(first, up=_cat(members, name, lambda change: change.up))  # type: ignore[attr-defined]
    alike = len({change.scale for change in changes}) == 1
    kinds = [read.dtype for change in changes for read in (change.up, change.down)]
    dtype = widest({*kinds, *(() if alike else (DTYPES["F32"],))})  # scales that differ go into the factors
    ranks, rows = sum(change.up.shape[1] for change in changes), sum(count for count, _ in members)

    def make() -> dict[str, torch.Tensor]:
        import torch

        up, row, column = torch.zeros(rows, ranks, dtype=torch.float64), 0, 0
        for count, change in members:
            if isinstance(change, LowRank):
                part = read_factor(change.up, torch.float64).flatten(1)
                up[row : row + count, column : column + part.shape[1]] = part if alike else part * change.scale
                column += part.shape[1]
            row += count
        return {"up": up, "down": torch.cat([read_factor(change.down, torch.float64) for change in changes])}

    shapes = {"up": (rows, ranks), "down": (ranks, *first.down.shape[1:])}
    up, down = _computed(name, shapes, make, dtype)
    return LowRank(up, down, first.scale if alike else 1.0)


def _same_factor(one: LowRank, other: LowRank) -> bool:
    return one.scale == other.scale and one.up.dtype == other.up.dtype and same_bytes(one.down, other.down)


def _same_halves(one: Hadamard, other: Delta) -> bool:
    if not isinstance(other, Hadamard) or one.scale != other.scale or one.t1 is not None or other.t1 is not None:
        return False
    return same_bytes(one.w1_b, other.w1_b) and same_bytes(one.w2_b, other.w2_b)


def _cat(members: Sequence[Member], name: str, part: Callable[[Delta], Read]) -> Read:
    """One tensor of every member, one below the other; zeros where a member has no change."""
    reads = [(rows, part(change) if change is not None else None) for rows, change in members]
    found = [read for _, read in reads if read is not None]
    dtype, columns = widest({read.dtype for read in found}), found[0].shape[1:]

    def make() -> dict[str, torch.Tensor]:
        import torch

        kind = torch_dtype(dtype)
        pieces = [torch.zeros(rows, *columns) if read is None else read.load() for rows, read in reads]
        return {"whole": torch.cat([piece.to(kind) for piece in pieces])}

    shape = (sum(rows for rows, _ in members), *columns)
    (whole,) = _computed(name, {"whole": shape}, make, dtype)
    return whole


def _swapped(read: Read, name: str) -> Read:
    def make() -> dict[str, torch.Tensor]:
        loaded = read.load()
        return {"swapped": loaded.roll(len(loaded) // 2, 0)}

    (found,) = _computed(name, {"swapped": read.shape}, make, read.dtype)
    return found


def _flat(read: Read) -> Read:
    return Read(read.weights, replace(read.info, shape=(read.info.numel,)))


def _computed(
    name: str, shapes: dict[str, tuple[int, ...]], make: Callable[[], dict[str, torch.Tensor]], dtype: DType
) -> list[Read]:
    weights = ComputedWeights(name, {Target(name): Computed(shapes, make)}, dtype)
    return [Read(weights, info) for info in weights.tensors.values()]
