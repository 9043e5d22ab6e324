"""Reading a U-Net's layout off the names and shapes in a header, in either naming."""

from __future__ import annotations

from dataclasses import replace

from sdkit.families.parameter import Names, OddLayout
from sdkit.families.unet import Depths, UNetLayout, walk

_FIXED = {  # what is called differently outside the blocks: LDM, diffusers
    "ldm": {"conv_in": "input_blocks.0.0", "time": "time_embed.0", "conv_out": "out.2", "labels": ("label_emb.0.0",)},
    "diffusers": {
        "conv_in": "conv_in",
        "time": "time_embedding.linear_1",
        "conv_out": "conv_out",
        "labels": ("add_embedding.linear_1", "class_embedding.linear_1"),
    },
}


def has_unet(names: Names, naming: str) -> bool:
    """Whether a U-Net with both ways, down and up, lies here (a ControlNet has only the way down)."""
    if naming == "ldm":
        return "input_blocks.1.0.in_layers.2.weight" in names and "output_blocks.0.0.in_layers.2.weight" in names
    return "down_blocks.0.resnets.0.conv1.weight" in names and "up_blocks.0.resnets.0.conv1.weight" in names


def read_unet(names: Names, naming: str) -> UNetLayout:
    """The layout of the U-Net in `names`.

    Raises:
        OddLayout: it is not built the way `sdkit.families.unet` describes.
    """
    channels, down, up = _ldm_blocks(names) if naming == "ldm" else _diffusers_blocks(names)
    if [len(depths) + 1 for depths in reversed(down)] != [len(depths) for depths in up]:
        raise OddLayout("its way up does not mirror its way down")
    middle, resnets = _ldm_middle(names) if naming == "ldm" else _diffusers_middle(names)
    fixed = _FIXED[naming]
    layout = UNetLayout(
        channels=channels,
        down=down,
        middle=middle,
        middle_resnets=resnets,
        up=up,
        in_channels=names.dim(f"{fixed['conv_in']}.weight", 1),
        out_channels=names.dim(f"{fixed['conv_out']}.weight", 0),
        time_dim=names.dim(f"{fixed['time']}.weight", 0),
        cross_dim=0,
        linear=False,
        label_dim=next((names.dim(f"{n}.weight", 1) for n in fixed["labels"] if f"{n}.weight" in names), 0),
    )
    return _with_attention(layout, names, naming)


def _with_attention(layout: UNetLayout, names: Names, naming: str) -> UNetLayout:
    step = next((step for step in walk(layout) if step.kind == "attention"), None)
    if step is None:
        raise OddLayout("it has no cross-attention")
    stem = step.ldm if naming == "ldm" else step.hub
    projection = f"{names.prefix}{stem}.proj_in.weight"
    return replace(
        layout,
        cross_dim=names.dim(f"{stem}.transformer_blocks.0.attn2.to_k.weight", 1),
        linear=len(names.shapes.get(projection, ())) == 2,
    )


def _depth(names: Names, module: str) -> int:
    return names.count(module + ".transformer_blocks.{}.norm1.weight")


def _ldm_blocks(names: Names) -> tuple[tuple[int, ...], Depths, Depths]:
    channels: list[int] = []
    down: list[list[int]] = [[]]
    index = 1
    while True:
        block = f"input_blocks.{index}"
        if f"{block}.0.op.weight" in names:
            down.append([])
        elif f"{block}.0.in_layers.2.weight" in names:
            if not down[-1]:
                channels.append(names.dim(f"{block}.0.in_layers.2.weight", 0))
            down[-1].append(_depth(names, f"{block}.1"))
        else:
            break
        index += 1
    if len(channels) != len(down):
        raise OddLayout("one of its levels has no residual layer")
    return tuple(channels), _frozen(down), _frozen(_ldm_up(names))


def _ldm_up(names: Names) -> list[list[int]]:
    up: list[list[int]] = [[]]
    for index in range(names.count("output_blocks.{}.0.in_layers.2.weight")):
        block = f"output_blocks.{index}"
        up[-1].append(_depth(names, f"{block}.1"))
        if f"{block}.1.conv.weight" in names or f"{block}.2.conv.weight" in names:
            up.append([])
    return up


def _ldm_middle(names: Names) -> tuple[int, int]:
    resnets = sum(f"middle_block.{index}.in_layers.2.weight" in names for index in range(3))
    return _depth(names, "middle_block.1"), resnets


def _diffusers_blocks(names: Names) -> tuple[tuple[int, ...], Depths, Depths]:
    levels = range(names.count("down_blocks.{}.resnets.0.conv1.weight"))
    channels = tuple(names.dim(f"down_blocks.{level}.resnets.0.conv1.weight", 0) for level in levels)
    down = [_diffusers_depths(names, f"down_blocks.{level}") for level in levels]
    blocks = range(names.count("up_blocks.{}.resnets.0.conv1.weight"))
    return channels, _frozen(down), _frozen([_diffusers_depths(names, f"up_blocks.{block}") for block in blocks])


def _diffusers_depths(names: Names, block: str) -> list[int]:
    resnets = names.count(block + ".resnets.{}.conv1.weight")
    return [_depth(names, f"{block}.attentions.{layer}") for layer in range(resnets)]


def _diffusers_middle(names: Names) -> tuple[int, int]:
    return _depth(names, "mid_block.attentions.0"), names.count("mid_block.resnets.{}.conv1.weight")


def _frozen(depths: list[list[int]]) -> Depths:
    return tuple(map(tuple, depths))
