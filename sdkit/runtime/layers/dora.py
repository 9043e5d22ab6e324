"""DoRA in training: the direction takes a low-rank change, the length of each output feature is learnt.

    y = m / ‖W + ΔW‖ · (W + ΔW) x + bias      (arXiv:2402.09353)

The norm is taken as a constant for the gradient, as section 4.3 of the paper advises and PEFT does.
"""

from __future__ import annotations

import torch
from torch import nn

from sdkit.adapters.deltas.dora import row_norms
from sdkit.adapters.deltas.low_rank import PreparedLowRank
from sdkit.runtime.layers.low_rank import LowRankLayer


class DoraLayer(LowRankLayer):
    """The layer.

    Args:
        base: the layer whose place it takes.
        down: [rank, in], or [rank, in, k, k].
        up: [out, rank], or [out, rank, 1, 1].
        lengths: m, [out, 1] or [out, 1, 1, 1].
        scale: of ΔW.
    """

    lengths: nn.Parameter

    def __init__(
        self, base: nn.Module, down: torch.Tensor, up: torch.Tensor, lengths: torch.Tensor, scale: float
    ) -> None:
        super().__init__(base, down, up, scale, lengths=lengths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output, turned and brought to the learnt lengths."""
        out: torch.Tensor = self.base(x)
        features = (-1, 1, 1) if self.up.ndim == 4 else (-1,)
        plain = out if self.bias is None else out - self.bias.view(features)
        ratio = (self.lengths.flatten() / self._norms()).view(features).to(out.dtype)
        return out + (ratio - 1) * plain + ratio * (self.scale * self.change(x))

    @torch.no_grad()
    def _norms(self) -> torch.Tensor:
        """‖W + ΔW‖ of each output feature, in float32 whatever the run computes in."""
        with torch.autocast(self.weight.device.type, enabled=False):
            moved = self.weight.detach().float().flatten(1).clone()
            PreparedLowRank(self.scale * self.up.float().flatten(1), self.down.float().flatten(1)).add_rows(moved, 0)
            return row_norms(moved)
