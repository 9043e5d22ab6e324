"""The U-Net of Stable Diffusion as a rule: a layout of numbers, and the parameters that follow from it.

The walk is the same in every family: blocks of residual layers with attention behind some of them, down the levels,
through the middle and up again, each upward layer taking one skip connection. LDM numbers the steps of the walk
(``input_blocks.4.1``); diffusers numbers the levels and the layers in them (``down_blocks.1.attentions.0``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sdkit.families.parameter import Parameter, affine

_RESNET = {  # diffusers → LDM
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
Depths = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class UNetLayout:
    """The numbers that decide every name and shape of a U-Net.

    Attributes:
        channels: width of each level, the finest first.
        down: for each level, the number of transformer blocks behind each residual layer (0: no attention there).
        middle: transformer blocks in the middle; 0 where it has no attention.
        middle_resnets: residual layers in the middle: 2, or fewer in pruned models.
        up: like `down` for the way up, the coarsest level first; one residual layer more than on the way down.
        in_channels: 4 for latents, 9 with a mask and a masked image, 8 with a second image, 5 with a depth map.
        out_channels: channels of the prediction.
        time_dim: width of the time embedding.
        cross_dim: width of the text the attention looks at.
        linear: whether attention is wrapped in linear layers (SD2, SDXL) and not in 1×1 convolutions (SD1).
        label_dim: width of the vector added to the time embedding (SDXL's sizes and pooled text); 0 where none is.
    """

    channels: tuple[int, ...]
    down: Depths
    middle: int
    middle_resnets: int
    up: Depths
    in_channels: int
    out_channels: int
    time_dim: int
    cross_dim: int
    linear: bool
    label_dim: int = 0

    @property
    def label_module(self) -> str:
        """What diffusers calls the embedding of the label: SDXL, whose finest level has no attention, adds another."""
        return "class_embedding" if any(self.down[0]) else "add_embedding"

    def describe(self) -> str:
        """The layout in one clause."""
        wrapped = "linear layers" if self.linear else "1x1 convolutions"
        attending = "".join("a" if any(depths) else "-" for depths in self.down)
        return (
            f"{self.in_channels} input channels, {len(self.channels)} levels (attention in {attending}), "
            f"text {self.cross_dim} wide, attention wrapped in {wrapped}"
        )


class Step(NamedTuple):
    """One module of the walk.

    Attributes:
        kind: ``resnet``, ``attention``, ``downsample`` or ``upsample``.
        hub: the module in diffusers.
        ldm: the module in LDM.
        into: channels coming in.
        out: channels going out.
        depth: transformer blocks, for attention.
    """

    kind: str
    hub: str
    ldm: str
    into: int
    out: int
    depth: int = 0


def walk(layout: UNetLayout) -> Iterator[Step]:
    """All modules between the first and the last convolution, in the order data pass them."""
    skips = [layout.channels[0]]
    yield from _walk_down(layout, skips)
    yield from _walk_middle(layout)
    yield from _walk_up(layout, skips)


def _walk_down(layout: UNetLayout, skips: list[int]) -> Iterator[Step]:
    width, index = layout.channels[0], 1
    for level, (out, depths) in enumerate(zip(layout.channels, layout.down, strict=True)):
        for layer, depth in enumerate(depths):
            hub = f"down_blocks.{level}"
            yield Step("resnet", f"{hub}.resnets.{layer}", f"input_blocks.{index}.0", width, out)
            if depth:
                yield Step("attention", f"{hub}.attentions.{layer}", f"input_blocks.{index}.1", out, out, depth)
            width, index = out, index + 1
            skips.append(width)
        if level < len(layout.channels) - 1:
            hub = f"down_blocks.{level}.downsamplers.0.conv"
            yield Step("downsample", hub, f"input_blocks.{index}.0.op", width, width)
            index += 1
            skips.append(width)


def _walk_middle(layout: UNetLayout) -> Iterator[Step]:
    width = layout.channels[-1]
    index = 0
    for layer in range(layout.middle_resnets):
        yield Step("resnet", f"mid_block.resnets.{layer}", f"middle_block.{index}", width, width)
        index += 1
        if layer == 0 and layout.middle:
            yield Step("attention", "mid_block.attentions.0", f"middle_block.{index}", width, width, layout.middle)
            index += 1


def _walk_up(layout: UNetLayout, skips: list[int]) -> Iterator[Step]:
    width, index = layout.channels[-1], 0
    for block, depths in enumerate(layout.up):
        out, hub = layout.channels[-1 - block], f"up_blocks.{block}"
        for layer, depth in enumerate(depths):
            yield Step("resnet", f"{hub}.resnets.{layer}", f"output_blocks.{index}.0", width + skips.pop(), out)
            if depth:
                yield Step("attention", f"{hub}.attentions.{layer}", f"output_blocks.{index}.1", out, out, depth)
            width, index = out, index + 1
        if block < len(layout.up) - 1:
            position = 2 if depths[-1] else 1
            ldm = f"output_blocks.{index - 1}.{position}.conv"
            yield Step("upsample", f"{hub}.upsamplers.0.conv", ldm, out, out)


def unet_parameters(layout: UNetLayout) -> list[Parameter]:
    """Every parameter of the U-Net, in both namings and with its shape."""
    first, time = layout.channels[0], layout.time_dim
    table = affine("conv_in", "input_blocks.0.0", (first, layout.in_channels, 3, 3))
    table += affine("time_embedding.linear_1", "time_embed.0", (time, first))
    table += affine("time_embedding.linear_2", "time_embed.2", (time, time))
    if layout.label_dim:
        table += affine(f"{layout.label_module}.linear_1", "label_emb.0.0", (time, layout.label_dim))
        table += affine(f"{layout.label_module}.linear_2", "label_emb.0.2", (time, time))
    for step in walk(layout):
        table += _step_parameters(step, layout)
    table += affine("conv_norm_out", "out.0", (first,))
    table += affine("conv_out", "out.2", (layout.out_channels, first, 3, 3))
    return table


def _step_parameters(step: Step, layout: UNetLayout) -> list[Parameter]:
    if step.kind == "resnet":
        return _resnet(step, layout.time_dim)
    if step.kind == "attention":
        return _attention(step, layout.cross_dim, layout.linear)
    return affine(step.hub, step.ldm, (step.out, step.into, 3, 3))


def _resnet(step: Step, time: int) -> list[Parameter]:
    shapes = {
        "norm1": (step.into,),
        "conv1": (step.out, step.into, 3, 3),
        "time_emb_proj": (step.out, time),
        "norm2": (step.out,),
        "conv2": (step.out, step.out, 3, 3),
    }
    table = []
    for hub, ldm in _RESNET.items():
        table += affine(f"{step.hub}.{hub}", f"{step.ldm}.{ldm}", shapes[hub])
    if step.into != step.out:
        table += affine(f"{step.hub}.conv_shortcut", f"{step.ldm}.skip_connection", (step.out, step.into, 1, 1))
    return table


def _attention(step: Step, cross: int, linear: bool) -> list[Parameter]:
    width = step.out
    projection = (width, width) if linear else (width, width, 1, 1)
    table = affine(f"{step.hub}.norm", f"{step.ldm}.norm", (width,))
    table += affine(f"{step.hub}.proj_in", f"{step.ldm}.proj_in", projection)
    for block in range(step.depth):
        name = f"transformer_blocks.{block}"
        table += _transformer(f"{step.hub}.{name}", f"{step.ldm}.{name}", width, cross)
    table += affine(f"{step.hub}.proj_out", f"{step.ldm}.proj_out", projection)
    return table


def _transformer(hub: str, ldm: str, width: int, cross: int) -> list[Parameter]:
    """One transformer block: its inner names are the same in both namings."""
    table = []
    for attention, context in (("attn1", width), ("attn2", cross)):
        for name, columns in (("to_q", width), ("to_k", context), ("to_v", context)):
            table += affine(f"{hub}.{attention}.{name}", f"{ldm}.{attention}.{name}", (width, columns), bias=False)
        table += affine(f"{hub}.{attention}.to_out.0", f"{ldm}.{attention}.to_out.0", (width, width))
    # The feed-forward layer is gated (GEGLU): four times the width, once for the values and once for their gates.
    table += affine(f"{hub}.ff.net.0.proj", f"{ldm}.ff.net.0.proj", (8 * width, width))
    table += affine(f"{hub}.ff.net.2", f"{ldm}.ff.net.2", (width, 4 * width))
    for norm in ("norm1", "norm2", "norm3"):
        table += affine(f"{hub}.{norm}", f"{ldm}.{norm}", (width,))
    return table


def unet_blocks(layout: UNetLayout) -> dict[str, str]:
    """Module prefixes → block names as the web UIs number them: by the steps of LDM's walk."""
    blocks = {"conv_in": "IN00"}
    last = "M00"
    for step in walk(layout):
        part, index = step.ldm.split(".")[:2]
        if part == "middle_block":
            continue
        last = blocks[step.hub] = f"IN{int(index):02d}" if part == "input_blocks" else f"OUT{int(index):02d}"
    blocks |= {"mid_block": "M00", "conv_norm_out": last, "conv_out": last}
    return blocks
