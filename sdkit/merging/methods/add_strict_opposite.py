"""What B learnt since C, added only where A has learnt the opposite.

    A + α m (B − C),   m = 2 max(0, (C − A)(B − C) / max(|A − C|, |B − C|)²), and 0 where nothing was learnt

Source: sd-mecha's `add_strict_opposite_mask`, used as the strength of add_difference
"""

from __future__ import annotations

from sdkit.merging.method import Strength, Weight, merge_method


@merge_method()
def add_strict_opposite(a: Weight, b: Weight, c: Weight, *, alpha: Strength = 1.0) -> Weight:
    """A + α m (B − C)."""
    import torch

    learnt = b.sub_(c)
    away = c.sub_(a)
    largest = torch.maximum(away.abs(), learnt.abs())
    mask = away.div_(largest).mul_(learnt / largest).nan_to_num_(nan=0.0).clamp_(min=0.0)
    return a.addcmul_(learnt, mask, value=2 * alpha)
