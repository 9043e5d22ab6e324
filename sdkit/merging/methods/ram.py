"""RAM: average what several models have changed, keep (or strengthen) what one alone has changed.

    base + α Σ [|Δᵢ| > ε] Δᵢ / n · (λ where n = 1),   n = Σ [|Δᵢ| > ε]

λ is `unique`; above 1 it makes up for what averaging takes from the rest (RAM+ with a fixed factor).
Source: Reinforced Agent Merging 2026, https://arxiv.org/abs/2601.13572; mergekit's `ram`
"""

from __future__ import annotations

from sdkit.merging.method import Delta, Positive, Strength, merge_method


@merge_method(least=1)
def ram(*deltas: Delta, alpha: Strength = 1.0, unique: Strength = 1.0, epsilon: Positive = 1e-5) -> Delta:
    """α times the mean of the changes at each place that are none too small."""
    import torch

    total, count = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta in deltas:
        changed = (delta.abs() > epsilon).to(delta.dtype)
        total.addcmul_(delta, changed)
        count.add_(changed)
    factor = torch.where(count == 1, unique, 1.0)
    return total.div_(count.clamp_(min=1.0)).mul_(factor).mul_(alpha)
