"""What a training step will cost, from configurations alone: the model is run without memory, on shapes.

A step's time is that of its arithmetic and that of its calls, which on a small model or a fast device is the larger.
How fast the machine is at either is measured in half a second, on a small U-Net at two sizes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from sdkit.runtime.load import build_component

if TYPE_CHECKING:
    import torch
    from torch import nn

MEASURING_SECONDS = 0.2
CALLS_OF_A_LAYER = 4  # of an adapter: two products, a scale and a sum
_MEASURED = {  # no wider: what it allocates would be the peak of training a small model
    "attention_head_dim": 4,  # how many heads, whatever the name says
    "block_out_channels": (64, 128),
    "cross_attention_dim": 64,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "in_channels": 4,
    "layers_per_block": 1,
    "out_channels": 4,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_SIDES = (2, 16)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a device does in a second, under the load it has now.

    Attributes:
        operations: multiplications and additions of a U-Net, with what lies between the large products.
        calls: of the library.
    """

    operations: float
    calls: float


@dataclass(frozen=True, slots=True)
class StepCost:
    """The cost of one sample in one step.

    Attributes:
        operations: multiplications and additions of one forward pass.
        activation_bytes: what the forward pass keeps for the backward pass, in float32.
        weights: parameters of the model.
        calls: of the library in a forward pass, however many samples it takes.
    """

    operations: int
    activation_bytes: int
    weights: int
    calls: int

    def forward_seconds(self, machine: Machine) -> float:
        """Wall time of one sample's way forward."""
        return self.operations / machine.operations + self.calls / machine.calls

    def seconds(self, machine: Machine, *, batch: int, frozen: bool, checkpointing: bool, layers: int = 0) -> float:
        """Wall time of a batch, forward and backward.

        A step computes the outputs and their gradients by the inputs, and by the weights unless those are frozen (what
        trains beside them is small). With checkpointing the outputs are computed twice.

        Args:
            layers: layers something trains beside, each of which makes calls of its own.
        """
        calls = self.calls + CALLS_OF_A_LAYER * layers
        return (3 - frozen + checkpointing) * (batch * self.operations / machine.operations + calls / machine.calls)


def encoder_cost(config: Mapping[str, Any], size: tuple[int, int]) -> StepCost:
    """The cost of encoding a picture of a width and height."""
    import torch

    vae: Any = build_component("vae", config)
    pixels = torch.empty(1, 3, size[1], size[0], device="meta")
    return _measure(vae, lambda: vae.encode(pixels).latent_dist.mean)


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


def image_encoder_cost(config: Mapping[str, Any]) -> StepCost:
    """The cost of an image encoder of this configuration."""
    import torch

    vision: Any = build_component("image_encoder", config)
    side = config["image_size"]
    pixels = torch.empty(1, 3, side, side, device="meta", requires_grad=True)
    return _measure(vision, lambda: vision(pixel_values=pixels).image_embeds)


def _measure(model: nn.Module, run: Callable[[], object]) -> StepCost:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Counts the calls that are no mere views."""

        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += not func.is_view
            return func(*args, **(kwargs or {}))

    model.requires_grad_(False)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    counter, calls = FlopCounterMode(display=False), Calls()  # type: ignore[no-untyped-call]
    with torch.device("meta"), calls, counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    activations = sum(size for key, size in kept.items() if key not in weights)
    count = sum(parameter.numel() for parameter in model.parameters())
    return StepCost(counter.get_total_flops(), activations, count, calls.count)


def _added(config: Mapping[str, Any]) -> dict[str, Any]:
    """What SDXL's denoiser is told beside the text."""
    import torch

    if config.get("addition_embed_type") != "text_time":
        return {}
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return {"added_cond_kwargs": {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}}


@cache
def measured_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """What a device does in numbers of a type: a small U-Net at a size where its calls count, and where they do not.

    It is measured once in a process: several plans are compared by the same machine.
    """
    import torch

    unet: Any = build_component("unet", _MEASURED)
    torch.nn.Module.to(unet.requires_grad_(False), dtype).to_empty(device=device)
    for parameter in unet.parameters():
        torch.nn.init.zeros_(parameter)  # whatever lies in empty memory may be slow to compute with
    small, large = (_one_pass(unet, side, device, dtype) for side in _SIDES)
    costs = [step_cost(_MEASURED, (4, side, side), 8) for side in _SIDES]
    operations = (costs[1].operations - costs[0].operations) / max(large - small, 1e-9)
    calls = costs[0].calls / max(small - costs[0].operations / operations, 0.1 * small)
    return Machine(operations, calls)


def _one_pass(unet: Any, side: int, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of a forward pass, as half of a forward and a backward pass."""
    import torch

    latents = torch.zeros(1, 4, side, side, device=device, dtype=dtype, requires_grad=True)
    text = torch.zeros(1, 8, 64, device=device, dtype=dtype, requires_grad=True)
    timestep = torch.zeros(1, device=device)

    def run() -> None:
        out = unet(latents, timestep, text, return_dict=False)[0].sum()
        out.backward()
        out.item()  # waits for the device

    run()
    began, runs = time.perf_counter(), 0
    while time.perf_counter() - began < MEASURING_SECONDS:
        run()
        runs += 1
    return (time.perf_counter() - began) / runs / 2
