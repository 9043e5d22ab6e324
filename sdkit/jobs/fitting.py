"""Which published model of its family an adapter was made for: the first whose layers have its shapes."""

from __future__ import annotations

from sdkit.core.errors import SdkitError
from sdkit.families import published
from sdkit.families.family import Model
from sdkit.formats import read_adapter
from sdkit.weights import Weights


def fitting_model(family: str, *adapters: Weights) -> Model | None:
    """The first variant of `family` that has a place for all of the adapters, the usual one where none has.

    None where the family has no rules.
    """
    variants = published(family)
    usual = next(variants, None)
    if usual is None or _fits(usual, adapters):
        return usual
    return next((model for model in variants if _fits(model, adapters)), usual)


def _fits(model: Model, adapters: tuple[Weights, ...]) -> bool:
    try:
        return not any(read_adapter(weights, model).unmatched for weights in adapters)
    except SdkitError:
        return False
