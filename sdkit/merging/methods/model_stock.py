"""Model stock: towards the average of fine-tuned models, as far as their angles say.

    t · mean(Mᵢ) + (1 − t) · base,   t = n cos θ / (1 + (n − 1) cos θ)

cos θ is the mean cosine over all pairs of differences from the base, of whole tensors. Where the formula has no finite
answer (cos θ = −1 / (n − 1)), the base is kept.
Source: Jang et al. 2024, https://arxiv.org/abs/2403.19522 (mergekit takes all pairs too, sd-mecha neighbours only)
"""

from __future__ import annotations

from sdkit.merging.measures import Gram, cosine, gram, pairs
from sdkit.merging.method import Delta, merge_method


@merge_method("linear", measure=gram)
def model_stock(*deltas: Delta, measured: Gram) -> Delta:
    """t times the mean difference."""
    return stock_share(measured) / len(deltas) * sum(deltas)  # type: ignore[return-value]


def stock_share(products: Gram) -> float:
    """t, from the inner products of the differences; 1 for a single one."""
    count = len(products)
    cosines = [cosine(products, i, j) for i, j in pairs(count)]
    mean = sum(cosines) / len(cosines) if cosines else 1.0
    bottom = 1 + (count - 1) * mean
    return count * mean / bottom if abs(bottom) > 1e-6 else 0.0
