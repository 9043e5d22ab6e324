"""Adapters put live: a model changes while a context lasts, and is itself again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import Backbone
from sdkit.streaming.add_delta import LooksFirst

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def install(artifact: Artifact, backbone: Backbone, strength: float = 1.0) -> Iterator[int]:
    """Put an adapter's weight changes live while the context lasts.

    A low-rank change stands beside its layer; any other is added to a copy of the weight. At strength 0 nothing is
    touched, so outputs are the base's own bits.

    Args:
        artifact: read for this base's model, so that its targets are the base's modules.

    Yields:
        The number of parameters changed.

    Raises:
        SdkitError: the adapter holds no weight changes, or some that have no place in this base.
    """
    check_installable(artifact, backbone)
    with ExitStack() as stack:
        for target, delta in artifact.deltas.items() if strength != 0.0 else ():
            stack.enter_context(_one(target, delta, backbone, strength))
        yield len(artifact.deltas)


@contextmanager
def replaced(backbone: Backbone, hub: str, module: nn.Module) -> Iterator[None]:
    """Put `module` in the place of the one called `hub` while the context lasts."""
    original = backbone.module(hub)
    backbone.replace(hub, module)
    try:
        yield
    finally:
        backbone.replace(hub, original)


def check_installable(artifact: Artifact, backbone: Backbone) -> None:
    """Refuse an adapter that would do nothing, or only a part of what it should."""
    if not artifact.deltas:
        raise SdkitError(
            f"{artifact.source.path}: nothing of it applies to the base {backbone.base_name} ({artifact.kind})",
            "`sdkit inspect` shows what it holds and what it was made for",
        )
    if artifact.unmatched:
        raise SdkitError(
            f"{artifact.source.path}: {len(artifact.unmatched)} modules have no place in the base "
            f"{backbone.base_name}, the first is {artifact.unmatched[0]}",
            "the adapter was made for another model",
        )


@contextmanager
def _one(target: Target, delta: Delta, backbone: Backbone, strength: float) -> Iterator[None]:
    module = backbone.module(target.module)
    if isinstance(delta, LowRank) and target.parameter == "weight":
        with replaced(backbone, target.module, low_rank_layer(delta, module, target.module, strength)):
            yield
        return
    with _added(delta, module, target.parameter, strength):
        yield


def low_rank_layer(delta: LowRank, module: nn.Module, name: str, strength: float) -> nn.Module:
    """The layer that stands in for `module` and adds `delta`."""
    import torch

    from sdkit.runtime.layers.low_rank import LowRankLayer, factor_shapes

    prepared = delta.prepare(1.0, torch.float32)  # the delta's own scale is in `up` already
    down, up = factor_shapes(module, prepared.down.shape[0], name)
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    factors = (prepared.down.reshape(down), prepared.up.reshape(up))
    at_home = [factor.to(weight.device, weight.dtype) for factor in factors]
    return LowRankLayer(module, at_home[0], at_home[1], strength)


@contextmanager
def _added(delta: Delta, module: nn.Module, parameter: str, strength: float) -> Iterator[None]:
    """A parameter with a change added to it."""
    import torch
    from torch import nn

    original: nn.Parameter = getattr(module, parameter)
    rows = original.detach().cpu().float().reshape(original.shape[0], -1).clone()
    prepared = delta.prepare(strength, torch.float32)
    if isinstance(prepared, LooksFirst) and prepared.looks_first:
        prepared.look(rows, 0)
    prepared.add_rows(rows, 0)
    changed = rows.reshape(original.shape).to(original.device, original.dtype)
    setattr(module, parameter, nn.Parameter(changed, requires_grad=False))
    try:
        yield
    finally:
        setattr(module, parameter, original)
