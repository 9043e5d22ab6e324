"""What B would have learnt beyond C had it been trained on A: the difference, weighted by how far B is from A.

    A + 1.8 α q (B − C),   q = |B − A| / (|B − C| + |B − A|), and 0 where both are 0

Source: supermerger
"""

from __future__ import annotations

from sdkit.merging.method import Strength, Weight, merge_method

GAIN = 1.8


@merge_method()
def train_difference(a: Weight, b: Weight, c: Weight, *, alpha: Strength = 1.0) -> Weight:
    """A + 1.8 α q (B − C)."""
    difference = c.sub_(b).neg_()  # B − C
    distance = b.sub_(a).abs_()  # |B − A|
    share = difference.abs().add_(distance)
    share = distance.div_(share).nan_to_num_(nan=0.0)
    return a.addcmul_(difference, share, value=GAIN * alpha)
