"""Renumbering one model's hidden units so that its weights lie as close to another's as they can.

Weight matching (Ainsworth, Hayase, Srinivasa 2022, https://arxiv.org/abs/2209.04836): one symmetry after the other is
solved exactly, as a linear assignment that maximises Σ ⟨A, πB⟩ over the tensors it touches, with the others as they
are, until none can be improved. Every step increases the sum, so it ends; where it ends need not be the global maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from sdkit.merging.method import Tensor
from sdkit.merging.symmetries import Axis, Symmetry, by_parameter
from sdkit.merging.whole import Whole

if TYPE_CHECKING:
    import numpy
    import torch

GAIN = 1e-6  # of the larger score; less is rounding

# Along a dimension, from an offset: which unit comes to each place.
Move = tuple[int, int, Tensor]


def match(whole: Whole, found: Sequence[Symmetry], iterations: int) -> dict[str, list[Move]]:
    """What to do with each of B's parameters so that B comes close to A; parameters that stay are not mentioned.

    Args:
        whole: A and B.
        found: what may be renumbered.
        iterations: the most rounds over all symmetries.
    """
    matching = _Matching(whole, found)
    for _ in range(iterations):
        if not matching.improve():
            break
    return matching.moves()


def moved(values: torch.Tensor, moves: Sequence[Move]) -> torch.Tensor:
    """A parameter with its units renumbered."""
    for axis, offset, order in moves:
        part = values.narrow(axis, offset, len(order)).index_select(axis, order)
        if len(order) == values.shape[axis]:
            values = part
        else:
            values = values.clone()
            values.narrow(axis, offset, len(order)).copy_(part)
    return values


@dataclass(slots=True)
class _Matching:
    """The orders found so far, by symmetry and part; no entry means the order that B has."""

    whole: Whole
    found: Sequence[Symmetry]
    orders: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    touched: dict[str, list[tuple[Symmetry, int, Axis]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.touched = by_parameter(self.found)
        self.waiting = {symmetry.name for symmetry in self.found}

    def improve(self) -> bool:
        """One round: solve every symmetry whose neighbours have changed. Whether anything changed."""
        changed = False
        for symmetry in self.found:
            if symmetry.name not in self.waiting:
                continue
            self.waiting.discard(symmetry.name)
            if self._solve(symmetry):
                changed = True
                self.waiting |= self._neighbours(symmetry)
        return changed

    def moves(self) -> dict[str, list[Move]]:
        """The moves of each parameter."""
        every = {name: self._moves(name) for name in self.touched}
        return {name: moves for name, moves in every.items() if moves}

    def _moves(self, name: str, without: Axis | None = None) -> list[Move]:
        return [
            (axis.axis, axis.offset, self.orders[symmetry.name, part])
            for symmetry, part, axis in self.touched[name]
            if (symmetry.name, part) in self.orders and axis != without
        ]

    def _neighbours(self, symmetry: Symmetry) -> set[str]:
        return {other.name for axis in symmetry.axes for other, _, _ in self.touched[axis.name]} - {symmetry.name}

    def _solve(self, symmetry: Symmetry) -> bool:
        """Find the best order of one symmetry's units; False where the present one is as good."""
        import torch

        similar = [self._similarity(symmetry, part) for part in range(len(symmetry.parts))]
        present = torch.arange(symmetry.width)
        before = [self.orders.get((symmetry.name, part), present) for part in range(len(similar))]
        best = _best_orders(similar, symmetry)
        old, new = (sum(map(_score, similar, orders)) for orders in (before, best))
        if new - old <= GAIN * max(abs(new), abs(old)):
            return False
        self.orders |= {(symmetry.name, part): order for part, order in enumerate(best)}
        return True

    def _similarity(self, symmetry: Symmetry, part: int) -> torch.Tensor:
        """Inner products of A's units (rows) with B's (columns), over all that makes or reads them."""
        import torch

        total = torch.zeros(symmetry.width, symmetry.width)
        for axis in symmetry.parts[part]:
            one, other = (self.whole.read(axis.name, model) for model in (0, 1))
            if one.shape != other.shape:
                continue  # an input convolution with further channels
            other = moved(other, self._moves(axis.name, without=axis))
            total.addmm_(_units(one, axis, symmetry.width), _units(other, axis, symmetry.width).t())
        return total


def _units(values: torch.Tensor, axis: Axis, width: int) -> torch.Tensor:
    """What belongs to each unit, as a row: [width, the rest]."""
    return values.narrow(axis.axis, axis.offset, width).movedim(axis.axis, 0).reshape(width, -1)


def _score(similar: torch.Tensor, order: torch.Tensor) -> float:
    return float(similar.gather(1, order[:, None]).double().sum())


def _best_orders(similar: Sequence[torch.Tensor], symmetry: Symmetry) -> list[torch.Tensor]:
    """The order of each part that maximises the sum of the similarities."""
    import torch

    if all(_best_already(entry) for entry in similar):
        return [torch.arange(symmetry.width) for _ in similar]
    if symmetry.movable:
        return _move_cells(similar, len(symmetry.cells), symmetry.cells[0])
    ends = list(accumulate(symmetry.cells))
    cells = [slice(end - size, end) for end, size in zip(ends, symmetry.cells, strict=True)]
    return [torch.cat([_assign(entry[cell, cell].numpy())[0] + cell.start for cell in cells]) for entry in similar]


def _best_already(similar: torch.Tensor) -> bool:
    """Whether the diagonal holds the largest of every row and column; then no assignment is better."""
    diagonal = similar.diagonal()
    return bool((diagonal >= similar.amax(1)).all() and (diagonal >= similar.amax(0)).all())


def _move_cells(similar: Sequence[torch.Tensor], count: int, size: int) -> list[torch.Tensor]:
    """Cells change places, alike in all parts, and units within cells, each part for itself."""
    import numpy
    import torch

    blocks = [entry.view(count, size, count, size).transpose(1, 2).numpy() for entry in similar]
    pairs = [[[_assign(part[i, j]) for part in blocks] for j in range(count)] for i in range(count)]
    scores = numpy.array([[sum(score for _, score in pair) for pair in row] for row in pairs])
    cells = _assign(scores)[0].tolist()
    return [torch.cat([pairs[i][j][part][0] + j * size for i, j in enumerate(cells)]) for part in range(len(blocks))]


def _assign(similar: numpy.ndarray) -> tuple[torch.Tensor, float]:
    """The column that each row gets so that the sum is largest, and that sum."""
    import torch
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(similar, maximize=True)
    return torch.from_numpy(columns), float(similar[rows, columns].sum(dtype="float64"))
