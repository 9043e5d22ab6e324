"""What stands in the place of the empty text, step by step: the only parameters of null-text inversion."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from sdkit.runtime.backbone import Backbone, Cond
from sdkit.runtime.inversion import NullTexts
from sdkit.training.trainable import Group

if TYPE_CHECKING:
    from torch import nn


class NullText:
    """The conditioning of the empty text, a row a step, in float32.

    Args:
        start: what the rows begin as.
    """

    def __init__(self, start: NullTexts) -> None:
        from torch import nn

        tensors = {"context": start.context, "pooled": start.pooled}
        self._rows = {
            name: nn.Parameter(value.detach().float().clone(), requires_grad=False)
            for name, value in tensors.items()
            if value is not None
        }

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """``context`` [rows, 1, tokens, width], and SDXL's ``pooled`` [rows, 1, width]."""
        return dict(self._rows)

    @property
    def trains_text(self) -> bool:
        """Never: the prompt stays what it was."""
        return False

    def groups(self) -> list[Group]:
        """All rows. The rate is the solver's affair."""
        return [Group("null text", list(self._rows.values()), 0.0)]

    def install(self, backbone: Backbone) -> AbstractContextManager[None]:
        """Nothing is put into the model."""
        return nullcontext()

    @property
    def texts(self) -> NullTexts:
        """The rows as they are."""
        return NullTexts(self._rows["context"], self._rows.get("pooled"))

    def put(self, step: int, cond: Cond) -> None:
        """Set the row of a step; where one row holds for all steps, that one."""
        import torch

        row = min(step, len(self._rows["context"]) - 1)
        with torch.no_grad():
            self._rows["context"][row].copy_(cond.context)
            if "pooled" in self._rows:
                self._rows["pooled"][row].copy_(cond.added["text_embeds"])
