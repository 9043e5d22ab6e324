"""What a training step will cost, from configurations alone: the model is run without memory, on shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdkit.runtime.load import build_component

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class StepCost:
    """The cost of one sample in one step.

    Attributes:
        operations: multiplications and additions of one forward pass.
        activation_bytes: what the forward pass keeps for the backward pass, in float32.
        weights: parameters of the model.
    """

    operations: int
    activation_bytes: int
    weights: int

    def seconds(self, speed: float, *, frozen: bool, checkpointing: bool) -> float:
        """Wall time at `speed` operations a second.

        A step computes the outputs and their gradients by the inputs, and by the weights unless those are frozen (what
        trains beside them is small). With checkpointing the outputs are computed twice.
        """
        return self.operations * (3 - frozen + checkpointing) / speed


def step_cost(config: Mapping[str, Any], latent: tuple[int, int, int], tokens: int) -> StepCost:
    """The cost of a U-Net of this configuration.

    Args:
        latent: channels, height and width of what it is given.
        tokens: length of the text.
    """
    import torch

    unet: Any = build_component("unet", config)
    with torch.device("meta"):
        inputs = torch.empty(1, *latent, requires_grad=True)
        text = torch.empty(1, tokens, config["cross_attention_dim"], requires_grad=True)
        added, timestep = _added(config), torch.empty(1)
    return _measure(unet, lambda: unet(inputs, timestep, text, **added))


def autoencoder_cost(config: Mapping[str, Any], size: tuple[int, int]) -> StepCost:
    """The cost of encoding and decoding pictures of a width and height."""
    import torch

    vae: Any = build_component("vae", config)
    pixels = torch.empty(1, 3, size[1], size[0], device="meta", requires_grad=True)
    return _measure(vae, lambda: vae.decode(vae.encode(pixels).latent_dist.mean))


def _measure(model: nn.Module, run: Callable[[], object]) -> StepCost:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model.requires_grad_(False)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    activations = sum(size for key, size in kept.items() if key not in weights)
    return StepCost(counter.get_total_flops(), activations, sum(p.numel() for p in model.parameters()))


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
