"""Git Re-Basin: renumber B's hidden units so that they stand where A has the same ones, then a weighted sum.

    (1 − α) A + α π(B),   π the permutations of hidden units, heads and channels that maximise Σ ⟨A, π(B)⟩

π(B) draws exactly what B draws: only permutations that every normalisation, head and skip connection allows are used
(sdkit/merging/symmetries.py lists them). They are looked for one after the other, by linear assignment, for at most
`iterations` rounds. Models that were fine-tuned from the same base stand in order already; then this is a weighted sum.
Needs three whole tensors, and a minute or more to look.
Source: Ainsworth, Hayase, Srinivasa 2022, weight matching, https://arxiv.org/abs/2209.04836
"""

from __future__ import annotations

from typing import Annotated

from sdkit.merging.matching import Move, match, moved
from sdkit.merging.method import Range, Strength, Weight, merge_method
from sdkit.merging.symmetries import Facts, symmetries
from sdkit.merging.where import Where
from sdkit.merging.whole import Whole


def permutations(whole: Whole, iterations: int) -> dict[str, list[Move]]:
    """How B's parameters have to be renumbered."""
    found = symmetries(whole.shapes, Facts(whole.model.family, whole.configs))
    return match(whole, found, iterations)


@merge_method("tensor", survey=permutations, named=True)
def rebasin(
    a: Weight,
    b: Weight,
    *,
    where: Where,
    surveyed: dict[str, list[Move]],
    alpha: Strength = 0.5,
    iterations: Annotated[int, Range(1)] = 10,
) -> Weight:
    """A and the renumbered B."""
    return a.lerp(moved(b, surveyed.get(where.name, ())), alpha)
