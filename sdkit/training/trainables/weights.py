"""The base's own weights: a subset of its parameters, trained as copies that stand in for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.replacement import Replacement
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.precision import save_type
from sdkit.runtime.tensors import in_memory
from sdkit.streaming.expression import Read
from sdkit.training.trainable import Group

if TYPE_CHECKING:
    import torch
    from torch import nn


class WeightSubset:
    """Copies of some parameters of a base. The base keeps its own, and has them back afterwards.

    Args:
        backbone: the base.
        names: hub parameters.
        lr: learning rate.
        text_lr: learning rate of the text encoders' parameters.
        dtype: of the copies, ``fp32`` or ``bf16``.
    """

    def __init__(
        self, backbone: Backbone, names: Sequence[str], *, lr: float, text_lr: float, dtype: str = "fp32"
    ) -> None:
        from torch import nn

        kind = save_type(dtype)
        self.parameters: dict[str, nn.Parameter] = {
            name: nn.Parameter(_parameter(backbone, name).detach().to(kind, copy=True)) for name in names
        }
        self._rates = {"text": text_lr, "image": lr}

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder is among them."""
        return any(name.startswith("text_encoder") for name in self.parameters)

    def groups(self) -> list[Group]:
        """The text encoders' parameters, and the others."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault("text" if name.startswith("text_encoder") else "image", []).append(parameter)
        return [Group(kind, parameters, self._rates[kind]) for kind, parameters in groups.items()]

    def artifact(self, dtype: torch.dtype) -> Artifact:
        """The copies as they are now, rounded to `dtype`, as weights that take the places of a base's."""
        held = in_memory("the trained weights", {name: one.detach().to(dtype) for name, one in self.parameters.items()})
        deltas = {}
        for name, info in held.tensors.items():
            module, _, parameter = name.rpartition(".")
            deltas[Target(module, parameter)] = Replacement(Read(held, info))
        return Artifact(held, "trained", kind="custom-diffusion", deltas=deltas)

    @contextmanager
    def install(self, backbone: Backbone) -> Iterator[None]:
        """Put the copies in the places of the base's parameters."""
        originals = {name: _parameter(backbone, name) for name in self.parameters}
        try:
            for name, parameter in self.parameters.items():
                _replace(backbone, name, parameter)
            yield
        finally:
            for name, original in originals.items():
                _replace(backbone, name, original)


def _parameter(backbone: Backbone, hub: str) -> nn.Parameter:
    module, _, name = hub.rpartition(".")
    parameter: nn.Parameter = getattr(backbone.module(module), name)
    return parameter


def _replace(backbone: Backbone, hub: str, parameter: nn.Parameter) -> None:
    module, _, name = hub.rpartition(".")
    setattr(backbone.module(module), name, parameter)
