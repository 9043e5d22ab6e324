"""Plain average of any number of models.

    Σ Mᵢ / n

Source: Wortsman et al. 2022, model soups, https://arxiv.org/abs/2203.05482
"""

from __future__ import annotations

from sdkit.merging.method import Either, merge_method


@merge_method("linear", least=1)
def n_average(*models: Either) -> Either:
    """Σ Mᵢ / n."""
    return sum(models) / len(models)  # type: ignore[return-value]
