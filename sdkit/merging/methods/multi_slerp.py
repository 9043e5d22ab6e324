"""Mean direction of any number of models, at their mean length.

    μ Σ wᵢ ‖Mᵢ‖,   μ = Σ wᵢ M̂ᵢ / ‖Σ wᵢ M̂ᵢ‖

The weights are all 1/n unless given, and are divided by their sum. (The method is described as a step in the
tangent space
at μ; that step, Σ wᵢ (M̂ᵢ − ⟨M̂ᵢ, μ⟩ μ), is zero for the very weights that define μ. `karcher` is the true mean.)
Where the mean direction vanishes, the models are averaged instead.
Source: Multi-SLERP of mergekit, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea
"""

from __future__ import annotations

import math

from sdkit.merging.measures import Gram, gram, norm
from sdkit.merging.method import Either, PerModel, merge_method
from sdkit.merging.methods._weights import shares


@merge_method("linear", measure=gram)
def multi_slerp(*models: Either, measured: Gram, weights: PerModel = ()) -> Either:
    """The weighted mean of the models' directions, at their mean length."""
    found = _mean(measured, shares(weights, len(models)))
    return sum(x * model for x, model in zip(found, models, strict=True))  # type: ignore[return-value]


def _mean(products: Gram, weights: list[float]) -> list[float]:
    lengths = [math.sqrt(row[index]) for index, row in enumerate(products)]
    units = [weight / length if length > 0.0 else 0.0 for weight, length in zip(weights, lengths, strict=True)]
    size = norm(units, products)
    if size < 1e-8:
        return weights
    length = math.fsum(weight * length for weight, length in zip(weights, lengths, strict=True))
    return [length * x / size for x in units]
