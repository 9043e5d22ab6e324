"""A hypernetwork's networks: transformations of what attention reads its keys and values from."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.key_value import Hypernetwork, Structure
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.install import Networks, transformed
from sdkit.runtime.rng import StepRNG
from sdkit.runtime.tensors import in_memory
from sdkit.streaming.expression import Read
from sdkit.training.trainable import Group

if TYPE_CHECKING:
    import torch
    from torch import nn

_SIDES = ("keys", "values")


class KeyValue:
    """The networks, in float32.

    Args:
        networks: width → the networks for keys and for values.
        structure: of all of them.
        lr: learning rate.
    """

    trains_text = False  # they transform what the text encoder says, behind it

    def __init__(self, networks: Networks, structure: Structure, *, lr: float) -> None:
        self.networks = dict(networks)
        self.structure = structure
        self._lr = lr
        for pair in self.networks.values():
            for network in pair:
                network.train().requires_grad_(True)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """``<width>.<keys or values>.linear.0.weight`` and so on."""
        return {
            f"{width}.{side}.{name}": parameter
            for width, pair in self.networks.items()
            for side, network in zip(_SIDES, pair, strict=True)
            for name, parameter in network.named_parameters()
        }

    def groups(self) -> list[Group]:
        """One group."""
        return [Group("networks", list(self.parameters.values()), self._lr)]

    @contextmanager
    def install(self, backbone: Backbone) -> Iterator[None]:
        """Put the networks before all keys and values of their widths, at strength 1."""
        with transformed(backbone, self.networks, 1.0):
            yield

    def artifact(
        self,
        dtype: torch.dtype,
        metadata: Mapping[str, str] | None = None,
        *,
        name: str = "hypernetwork",
        step: int = 0,
        weight_init: str = "Normal",
        checkpoint_name: str | None = None,
        info: str | None = None,
    ) -> Artifact:
        """The hypernetwork as it is now, rounded to `dtype`; for the notes see `Hypernetwork`."""
        tensors = {key: parameter.detach().to(dtype) for key, parameter in self.parameters.items()}
        held = in_memory("the trained hypernetwork", tensors, metadata)

        def reads(width: int, side: str) -> dict[str, Read]:
            return {key: Read(held, held.tensors[f"{width}.{side}.{key}"]) for key in self.structure.shapes(width)}

        hypernetwork = Hypernetwork(
            self.structure,
            {width: (reads(width, _SIDES[0]), reads(width, _SIDES[1])) for width in self.networks},
            weight_init=weight_init,
            name=name,
            step=step,
            checkpoint_name=checkpoint_name,
            info=info,
        )
        return Artifact(held, "trained", kind="hypernetwork", key_value=hypernetwork, metadata=metadata or {})


def new_networks(structure: Structure, widths: Collection[int], weight_init: str, rng: StepRNG) -> Networks:
    """Networks as `weight_init` begins them, one of `WEIGHT_INITS`."""
    from sdkit.runtime.layers.key_value import KeyValueNetwork

    def begin(width: int, side: str) -> KeyValueNetwork:
        purpose = f"hypernetwork {width} {side}"
        tensors = {
            name: _begin(name, shape, weight_init, rng, f"{purpose} {name}")
            for name, shape in structure.shapes(width).items()
        }
        return KeyValueNetwork(width, structure, tensors)

    return {width: (begin(width, _SIDES[0]), begin(width, _SIDES[1])) for width in widths}


def _begin(name: str, shape: tuple[int, ...], weight_init: str, rng: StepRNG, purpose: str) -> torch.Tensor:
    import torch

    if name.endswith(".bias"):
        return torch.zeros(shape)
    if shape == (1,):  # a PReLU's slope, as torch begins it
        return torch.full(shape, 0.25)
    if len(shape) == 1:  # a layer norm's gain: small like the weights, so that the network begins near nothing
        return rng.normal(shape, purpose).mul_(0.01)
    deviation = _deviation(weight_init, *shape)
    if weight_init.endswith("Uniform"):
        bound = math.sqrt(3) * deviation  # of the uniform distribution with that deviation
        return rng.uniform(shape, purpose).mul_(2).sub_(1).mul_(bound)
    return rng.normal(shape, purpose).mul_(deviation)


def _deviation(weight_init: str, outputs: int, inputs: int) -> float:
    if weight_init.startswith("Xavier"):  # Glorot and Bengio 2010
        return math.sqrt(2 / (inputs + outputs))
    if weight_init.startswith("Kaiming"):  # arXiv:1502.01852
        return math.sqrt(2 / inputs)
    return 0.01
