"""Differences trimmed and elected as TIES does, measured together before they are averaged in other ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.merging.measures import Gram, count_models, gram, thresholds
from sdkit.merging.method import Tiles
from sdkit.merging.methods._consensus import elected, trimmed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a pass over all tiles found.

    Attributes:
        cuts: the smallest magnitude that is kept of each model.
        products: inner products of what is left of each model.
    """

    cuts: list[float]
    products: Gram


def agreement(tiles: Tiles, density: float, majority: str) -> Agreement:
    """The cuts, and the inner products of the changes that are left."""
    cuts = thresholds(tiles, density, count_models(tiles))

    def walk() -> Iterator[tuple[torch.Tensor, ...]]:
        for values in tiles:
            yield tuple(agreeing(values, cuts, majority))

    return Agreement(cuts, gram(Tiles(walk, tiles.count)))


def agreeing(deltas: Sequence[torch.Tensor], cuts: Sequence[float], majority: str) -> list[torch.Tensor]:
    """Each model's changes where they are large enough and have the elected sign; 0 elsewhere. Works in place."""
    large = [trimmed(delta, cut) for delta, cut in zip(deltas, cuts, strict=True)]
    sign = elected(large, [1.0] * len(large), majority)
    return [delta.mul_(delta.sign() == sign) for delta in large]
