"""LoHa in training: beside the weight stands the elementwise product of two low-rank products."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdkit.adapters.deltas.hadamard import hadamard
from sdkit.runtime.layers.layer import AdapterLayer, apply_weight, core_layer


class HadamardLayer(AdapterLayer):
    """The layer. The factors are those of `sdkit.adapters.deltas.hadamard.Hadamard`, a kernel flattened into columns.

    Args:
        base: the layer whose place it takes.
        w1_a: [out, rank].
        w1_b: [rank, in·k·k].
        w2_a: [out, rank].
        w2_b: [rank, in·k·k].
        scale: what the change is multiplied with.
    """

    w1_a: nn.Parameter
    w1_b: nn.Parameter
    w2_a: nn.Parameter
    w2_b: nn.Parameter

    def __init__(
        self,
        base: nn.Module,
        w1_a: torch.Tensor,
        w1_b: torch.Tensor,
        w2_a: torch.Tensor,
        w2_b: torch.Tensor,
        scale: float,
    ) -> None:
        super().__init__(base, scale, w1_a=w1_a, w1_b=w1_b, w2_a=w2_a, w2_b=w2_b)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """``(w1_a @ w1_b ∘ w2_a @ w2_b)(x)``.

        The products are as large as the weight and cheap to make, so the backward pass makes them again instead of
        keeping three of them for every layer.
        """
        if not torch.is_grad_enabled():
            return self._change(x)
        out: torch.Tensor = checkpoint(self._change, x, use_reentrant=False, preserve_rng_state=False)
        return out

    def _change(self, x: torch.Tensor) -> torch.Tensor:
        weight = hadamard(self.w1_a, self.w1_b, self.w2_a, self.w2_b)
        return apply_weight(core_layer(self.base), x, weight.view(self.weight.shape))
