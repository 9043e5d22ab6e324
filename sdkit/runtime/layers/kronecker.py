"""LoKr in training: beside the weight stands a Kronecker product, which is never written out.

With the input split as [c, d] and the output as [a, b], ``(w1 ⊗ w2)(x) = w1 (w2 x)``: the inner side acts on the last
part, the outer on the first. For a convolution the inner side carries the kernel.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from sdkit.runtime.layers.layer import AdapterLayer, apply_weight, core_layer


class KroneckerLayer(AdapterLayer):
    """The layer. Each side is whole, or the product of `a` and `b`.

    Args:
        base: the layer whose place it takes.
        factors: ``w1`` [a, c], or ``w1_a`` and ``w1_b``; ``w2`` [b, d] or [b, d, k, k], or ``w2_a`` [b, rank] and
            ``w2_b`` [rank, d·k·k].
        scale: what the change is multiplied with.
    """

    def __init__(self, base: nn.Module, factors: dict[str, torch.Tensor], scale: float) -> None:
        super().__init__(base, scale, **factors)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """``(w1 ⊗ w2)(x)``."""
        core, outer, inner = core_layer(self.base), self._side("w1"), self._side("w2")
        if not isinstance(core, nn.Conv2d):
            parts = F.linear(x.reshape(*x.shape[:-1], outer.shape[1], -1), inner)  # […, c, b]
            return F.linear(parts.transpose(-1, -2), outer).transpose(-1, -2).flatten(-2)
        kernel = inner.reshape(inner.shape[0], -1, *core.kernel_size)
        parts = apply_weight(core, x.reshape(len(x) * outer.shape[1], -1, *x.shape[2:]), kernel)
        parts = parts.reshape(len(x), outer.shape[1], *parts.shape[1:])
        return torch.einsum("ac,ncbhw->nabhw", outer, parts).flatten(1, 2)

    def _side(self, name: str) -> torch.Tensor:
        """One side as a matrix."""
        whole = getattr(self, name, None)
        if whole is not None:
            return whole.flatten(1)  # type: ignore[no-any-return]
        product: torch.Tensor = getattr(self, f"{name}_a") @ getattr(self, f"{name}_b").flatten(1)
        return product
