"""What a training step will cost, from configurations alone: the model is run without memory, on shapes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdkit.runtime.load import build_component

if TYPE_CHECKING:
    import torch

# A training step computes the outputs once and, for frozen weights, their gradients by inputs once more; what trains
# beside them is small. With checkpointing the outputs are computed twice.
PASSES = 2.0


@dataclass(frozen=True, slots=True)
class StepCost:
    """The cost of one sample in one step.

    Attributes:
        operations: multiplications and additions of one forward pass of the denoiser.
        activation_bytes: what the forward pass keeps for the backward pass, in float32.
        weights: parameters of the denoiser.
    """

    operations: int
    activation_bytes: int
    weights: int

    def seconds(self, speed: float, *, checkpointing: bool) -> float:
        """Wall time at `speed` operations a second."""
        return self.operations * (PASSES + checkpointing) / speed


def step_cost(config: Mapping[str, Any], latent: tuple[int, int, int], tokens: int) -> StepCost:
    """The cost of a U-Net of this configuration.

    Args:
        latent: channels, height and width of what it is given.
        tokens: length of the text.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    unet: Any = build_component("unet", config)
    unet.requires_grad_(False)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    with torch.device("meta"):
        inputs = torch.empty(1, *latent, requires_grad=True)
        text = torch.empty(1, tokens, config["cross_attention_dim"], requires_grad=True)
        added = _added(config)
        counter = FlopCounterMode(display=False)
        with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            unet(inputs, torch.empty(1), text, **added)
    activations = sum(size for key, size in kept.items() if key not in weights)
    return StepCost(counter.get_total_flops(), activations, sum(p.numel() for p in unet.parameters()))


def _added(config: Mapping[str, Any]) -> dict[str, Any]:
    """What SDXL's denoiser is told beside the text."""
    import torch

    if config.get("addition_embed_type") != "text_time":
        return {}
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return {"added_cond_kwargs": {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}}


def measured_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of convolutions as a U-Net has them, measured in a fraction of a second."""
    import torch

    layer = torch.nn.Conv2d(64, 64, 3, padding=1, device=device, dtype=dtype)
    picture = torch.zeros(8, 64, 32, 32, device=device, dtype=dtype)
    operations = 2 * 64 * 64 * 9 * 8 * 32 * 32
    with torch.no_grad():
        layer(picture)
        began, runs = time.perf_counter(), 0
        while time.perf_counter() - began < 0.2:
            layer(picture).sum().item()
            runs += 1
    # Between the large products lie normalisations and copies: about half of the speed is lost there.
    return 0.5 * operations * runs / (time.perf_counter() - began)
