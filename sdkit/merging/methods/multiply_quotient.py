"""A times the factor by which B grew since C, where A has changed the opposite way.

    Re(A (B / C)^t),   t = α max(0, −log|A/C| log|B/C| / max(|log|A/C||, |log|B/C||)²), and A where that is no number

Source: sd-mecha's `multiply_quotient`
"""

from __future__ import annotations

import math

from sdkit.merging.method import Strength, Weight, merge_method


@merge_method()
def multiply_quotient(a: Weight, b: Weight, c: Weight, *, alpha: Strength = 1.0) -> Weight:
    """A times a power of B / C."""
    import torch

    grown, other = b.abs().log_().sub_(c.abs().log_()), a.abs().log_().sub_(c.abs().log_())
    largest = torch.maximum(grown.abs(), other.abs())
    power = (grown / largest).mul_(other / largest).nan_to_num_(nan=0.0).neg_().clamp_(min=0.0).mul_(alpha)
    turned = (b * c < 0).to(a.dtype).mul_(power).mul_(math.pi).cos_()
    result = grown.mul_(power).exp_().mul_(turned).mul_(a)
    return torch.where(result.isfinite(), result, a)
