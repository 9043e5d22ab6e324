"""Adapters put live: a model changes while a context lasts, and is itself again afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.delta import Delta
from sdkit.adapters.deltas.lightweight import Lightweight
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.adapters.key_value import Hypernetwork, Tensors, attention_inputs
from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.steering import SteeringSettings, steering
from sdkit.runtime.tokens import spliced, words_of
from sdkit.streaming.add_delta import LooksFirst

if TYPE_CHECKING:
    from torch import nn

    from sdkit.runtime.layers.key_value import KeyValueNetwork

Networks = Mapping[int, tuple["KeyValueNetwork", "KeyValueNetwork"]]  # width → for keys, for values


@contextmanager
def install(artifact: Artifact, backbone: Backbone, strength: float = 1.0) -> Iterator[int]:
    """Put an adapter live while the context lasts: weight changes, words, a hypernetwork's networks, steering.

    A low-rank change stands beside its layer; any other is added to a copy of the weight. A word acts where the text
    has it, whatever the strength. Networks transform what the changed layers read. An aesthetic embedding steers
    prompts (see `sdkit.runtime.steering`), at the strength as its weight. At strength 0 nothing is touched, so outputs
    are the base's own bits.

    Args:
        artifact: read for this base's model, so that its targets are the base's modules.

    Yields:
        The number of parameters changed, of inputs transformed and of text encoders steered, each text encoder's rows
        of a word counted as one.

    Raises:
        SdkitError: the adapter holds nothing that can be put live, or something that has no place in this base.
    """
    check_installable(artifact, backbone)
    networks = loaded_networks(artifact.key_value, backbone) if artifact.key_value else {}
    inputs = attention_inputs(backbone.model) if networks else {}
    with ExitStack() as stack:
        if strength != 0.0:
            if artifact.tokens:
                stack.enter_context(spliced(backbone, words_of(artifact, backbone)))
            for target, delta in artifact.deltas.items():
                stack.enter_context(_one(target, delta, backbone, strength))
            stack.enter_context(transformed(backbone, networks, strength))
            if artifact.steering:
                stack.enter_context(steering(backbone, artifact, SteeringSettings(strength)))
        inside = len(artifact.deltas) + len(artifact.tokens) + len(artifact.steering)
        yield inside + sum(len(inputs[width]) for width in networks)


@contextmanager
def replaced(backbone: Backbone, hub: str, module: nn.Module) -> Iterator[None]:
    """Put `module` in the place of the one called `hub` while the context lasts."""
    original = backbone.module(hub)
    backbone.replace(hub, module)
    try:
        yield
    finally:
        backbone.replace(hub, original)


def beneath(backbone: Backbone, hub: str) -> str:
    """Where a layer is to be put that changes the weights of a module: below what transforms the module's input."""
    from sdkit.runtime.layers.key_value import KeyValueLayer

    while isinstance(backbone.module(hub), KeyValueLayer):
        hub += ".base"
    return hub


@contextmanager
def transformed(backbone: Backbone, networks: Networks, strength: float) -> Iterator[None]:
    """Put networks before all keys and values of their widths. Of several pairs the first installed comes first."""
    from sdkit.runtime.layers.key_value import KeyValueLayer

    with ExitStack() as stack:
        for width, modules in attention_inputs(backbone.model).items() if networks else ():
            for module in modules if width in networks else ():
                keys, values = networks[width]
                place = beneath(backbone, module)
                network = keys if module.endswith("to_k") else values
                layer = KeyValueLayer(backbone.module(place), network, strength)
                stack.enter_context(replaced(backbone, place, layer))
        yield


def loaded_networks(hypernetwork: Hypernetwork, backbone: Backbone) -> Networks:
    """The networks of a file, in float32 on the base's device."""
    import torch

    from sdkit.runtime.layers.key_value import KeyValueNetwork

    def load(width: int, network: Tensors) -> KeyValueNetwork:
        tensors = {name: read.load().to(backbone.device, torch.float32, copy=True) for name, read in network.items()}
        return KeyValueNetwork(width, hypernetwork.structure, tensors).requires_grad_(False).eval()

    return {width: (load(width, keys), load(width, values)) for width, (keys, values) in hypernetwork.networks.items()}


def check_installable(artifact: Artifact, backbone: Backbone) -> None:
    """Refuse an adapter that would do nothing, or only a part of what it should."""
    networks = artifact.key_value.networks if artifact.key_value else {}
    if not artifact.deltas and not artifact.tokens and not networks and not artifact.steering:
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
    place = beneath(backbone, target.module)
    module = backbone.module(place)
    if isinstance(delta, (LowRank, Lightweight)) and target.parameter == "weight":
        with replaced(backbone, place, low_rank_layer(delta, module, target.module, strength)):
            yield
        return
    with _added(delta, module, target.parameter, strength):
        yield


def low_rank_layer(delta: LowRank | Lightweight, module: nn.Module, name: str, strength: float) -> nn.Module:
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
