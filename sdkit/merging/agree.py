"""What checkpoints must have in common before they can be blended. All of it is checked on headers."""

from __future__ import annotations

from collections.abc import Sequence

from sdkit.core.errors import SdkitError
from sdkit.merging.align import Source


def check_families(sources: Sequence[Source]) -> None:
    """Refuse models of different families.

    Raises:
        SdkitError: naming both, with the evidence.
    """
    first = sources[0]
    for other in sources[1:]:
        if other.model.family == first.model.family:
            continue
        raise SdkitError(
            f"{other.role} ({other.weights.path}) is {_described(other)}, "
            f"but A ({first.weights.path}) is {_described(first)}",
            "only models of one family can be blended or compared; `sdkit inspect` shows what each file is",
        )


def _described(source: Source) -> str:
    model = source.model
    if model.family != "unknown":
        return model.family
    return f"of no family sdkit knows ({model.reasons[0]})" if model.reasons else "of no family sdkit knows"


def check_variants(sources: Sequence[Source]) -> None:
    """Refuse two kinds of widened models: the same channels mean different things there."""
    wide = {source.model.variant: source for source in sources if _is_wide(source)}
    if len(wide) > 1:
        one, other = list(wide.values())[:2]
        raise SdkitError(
            f"{one.role} is a {one.model.variant} model and {other.role} a {other.model.variant} one: their additional "
            "input channels mean different things",
            "blend models of one of the two kinds, in any order with plain ones",
        )


def _is_wide(source: Source) -> bool:
    place = source.model.places.get("unet.conv_in.weight")
    return place is not None and place.shape[1] > 4


def check_prediction(sources: Sequence[Source], *, allow: bool) -> None:
    """Refuse to mix models that predict the noise with models that predict the velocity, unless allowed.

    A model that says nothing counts as one that predicts the noise where another one says it predicts the velocity.
    """
    velocity = [source for source in sources if source.model.prediction == "v_prediction"]
    rest = [source for source in sources if source.model.prediction != "v_prediction"]
    if allow or not velocity or not rest:
        return
    says = "predicts the noise" if rest[0].model.prediction else "does not say that it does"
    raise SdkitError(
        f"{velocity[0].role} ({velocity[0].weights.path}) predicts the velocity, "
        f"{rest[0].role} ({rest[0].weights.path}) {says}",
        "such a blend gives noise; --allow-prediction-mix if you know better",
    )


def check_stored_types(sources: Sequence[Source], *, changes_type: bool) -> None:
    """Refuse quantised weights nothing here can compute with, and new types for scaled ones."""
    for source in sources:
        names = source.weights.tensors
        if any(name.endswith((".comfy_quant", ".weight_scale", ".absmax")) for name in names):
            raise SdkitError(
                f"{source.role} ({source.weights.path}) holds quantised weights", "blend the unquantised model instead"
            )
    names = sources[0].weights.tensors
    if changes_type and any(name == "scaled_fp8" or name.endswith(".scale_weight") for name in names):
        raise SdkitError(
            f"A ({sources[0].weights.path}) holds scaled fp8 weights, whose type cannot be changed here",
            "leave out --dtype, or put another model first",
        )
