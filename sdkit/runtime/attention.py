"""Attention that a picture takes over from another drawn beside it (prompt-to-prompt, arXiv:2208.01626).

Of a batch [.., source, target] the target's maps are made from the source's, layer by layer, as they are computed:
over the text, where the layout of the picture is decided, by a table of tokens; over the picture itself, as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sdkit.runtime.backbone import Backbone

if TYPE_CHECKING:
    import torch

LARGEST = 32 * 32  # places of the largest maps over the picture that are taken over; finer ones hold the details

Change = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]  # source's and target's maps → target's


class Control:
    """What is done to the maps of the last of a batch, given those of the one before; see `controlled`.

    Attributes:
        over_text: changes maps [heads, places, tokens]; None leaves them.
        over_picture: whether maps [heads, places, places] are taken over.
    """

    def __init__(self) -> None:
        self.over_text: Change | None = None
        self.over_picture = False


@contextmanager
def controlled(backbone: Backbone, control: Control) -> Iterator[None]:
    """Have all attention of the denoiser go by `control` while the context lasts."""
    layers: list[Any] = [
        module
        for name, module in backbone.modules()
        if name.startswith("unet.") and name.endswith((".attn1", ".attn2"))
    ]
    before = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.processor = _Controlled(layer.processor, control)
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = processor


class _Controlled:
    """Stands in for a layer's way to compute attention; what is not controlled goes the usual one."""

    def __init__(self, usual: Any, control: Control) -> None:
        self._usual = usual
        self._control = control

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **more: Any
    ) -> torch.Tensor:
        text = encoder_hidden_states is not None
        wanted = self._control.over_text is not None if text else self._wants_picture(hidden_states)
        if not wanted:
            usual: torch.Tensor = self._usual(attn, hidden_states, encoder_hidden_states, **more)
            return usual
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            _heads(part, attn.heads) for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        maps = (query.float() @ key.float().mT / math.sqrt(query.shape[-1])).softmax(-1)
        maps[-1] = self._changed(maps[-2], maps[-1], text=text)
        joined = (maps.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        out: torch.Tensor = attn.to_out[1](attn.to_out[0](joined))
        return out

    def _wants_picture(self, hidden_states: torch.Tensor) -> bool:
        return self._control.over_picture and hidden_states.shape[1] <= LARGEST

    def _changed(self, source: torch.Tensor, target: torch.Tensor, *, text: bool) -> torch.Tensor:
        if not text:
            return source
        assert self._control.over_text is not None
        return self._control.over_text(source, target)


def _heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """[b, places, width] as [b, heads, places, width of a head]."""
    return tensor.reshape(*tensor.shape[:-1], heads, -1).transpose(1, 2)
