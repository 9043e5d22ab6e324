"""Layers in which every sample of a batch goes through a LiDB of its own, so that many are trained at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sdkit.adapters.lightweight_vector import Layout
from sdkit.core.errors import SdkitError
from sdkit.runtime.layers.layer import AdapterLayer, core_layer


class Chosen:
    """Which change each sample goes through; its layers look here when the model is called.

    Args:
        layout: of the vectors.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def set(self, vectors: torch.Tensor | None) -> None:
        """Choose vectors [n, size], one for each sample, or [1, size] for all; None for no change.

        They stay chosen until the next call, because the backward pass may compute activations again.
        """
        self._factors = {} if vectors is None else self.layout.factors(vectors)

    @contextmanager
    def only(self, vectors: torch.Tensor) -> Iterator[None]:
        """As `set`, while the context lasts."""
        before, self._factors = self._factors, self.layout.factors(vectors)
        try:
            yield
        finally:
            self._factors = before

    def of(self, module: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A module's ``up`` and ``down``."""
        return self._factors.get(module)


class PerSampleLayer(AdapterLayer):
    """A linear layer of whose input [n, …, in] every sample goes through a change of its own.

    Args:
        base: the layer whose place it takes.
        chosen: says which.
        number: of the layer in the layout.
    """

    left: nn.Parameter
    right: nn.Parameter

    def __init__(self, base: nn.Module, chosen: Chosen, number: int) -> None:
        basis = chosen.layout.bases[number]
        core = core_layer(base)
        if not isinstance(core, nn.Linear):
            raise SdkitError(f"{basis.module}: a {type(core).__name__} cannot carry a change for each sample")
        sides = (side(torch.float32).to(core.weight.device) for side in (basis.left, basis.right))
        super().__init__(base, 1.0, **dict(zip(("left", "right"), sides, strict=True)))
        self._chosen, self._module = chosen, basis.module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output, with the change added where one is chosen."""
        if self._chosen.of(self._module) is None:
            out: torch.Tensor = self.base(x)
            return out
        return super().forward(x)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """``left(up(down(right(x))))``, each sample with its own `up` and `down`."""
        factors = self._chosen.of(self._module)
        assert factors is not None, "only asked for where one is chosen"
        up, down = self.left @ factors[0], factors[1] @ self.right
        if len(up) not in (1, len(x)):
            raise SdkitError(f"{self._module}: {len(up)} changes were chosen for {len(x)} samples")
        rows = x.reshape(len(x), -1, x.shape[-1])
        return ((rows @ down.mT) @ up.mT).reshape(*x.shape[:-1], -1)
