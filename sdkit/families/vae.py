"""The autoencoder as a rule: its layout, its parameters in both namings, and how to read the layout off a header."""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.families.parameter import Names, OddLayout, Parameter, affine

_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}  # diffusers → LDM
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # diffusers before 0.18


@dataclass(frozen=True, slots=True)
class VaeLayout:
    """The numbers that decide every name and shape of an autoencoder.

    Attributes:
        channels: width of each level, the finest first.
        layers: residual layers of each level of the encoder, in the same order; the decoder has one more.
        in_channels: channels of a picture going in.
        out_channels: channels of a picture coming out.
        latent_channels: channels of a latent.
        attention: whether encoder and decoder have attention in the middle.
        quantised: whether 1×1 convolutions stand around the latent (SD1 to SDXL; not SD3 and Flux).
    """

    channels: tuple[int, ...]
    layers: tuple[int, ...]
    in_channels: int
    out_channels: int
    latent_channels: int
    attention: bool = True
    quantised: bool = True


def vae_parameters(layout: VaeLayout) -> list[Parameter]:
    """Every parameter of the autoencoder, in both namings and with its shape in diffusers."""
    latent = layout.latent_channels
    table = _encoder(layout) + _decoder(layout)
    if layout.quantised:
        table += affine("quant_conv", "quant_conv", (2 * latent, 2 * latent, 1, 1))
        table += affine("post_quant_conv", "post_quant_conv", (latent, latent, 1, 1))
    return table


def _encoder(layout: VaeLayout) -> list[Parameter]:
    width = layout.channels[0]
    table = affine("encoder.conv_in", "encoder.conv_in", (width, layout.in_channels, 3, 3))
    last = len(layout.channels) - 1
    for level, out in enumerate(layout.channels):
        hub, ldm = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        for layer in range(layout.layers[level]):
            table += _resnet(f"{hub}.resnets.{layer}", f"{ldm}.block.{layer}", width, out)
            width = out
        if level < last:
            table += affine(f"{hub}.downsamplers.0.conv", f"{ldm}.downsample.conv", (width, width, 3, 3))
    table += _middle("encoder", width, layout.attention)
    table += affine("encoder.conv_norm_out", "encoder.norm_out", (width,))
    return table + affine("encoder.conv_out", "encoder.conv_out", (2 * layout.latent_channels, width, 3, 3))


def _decoder(layout: VaeLayout) -> list[Parameter]:
    width = layout.channels[-1]
    table = affine("decoder.conv_in", "decoder.conv_in", (width, layout.latent_channels, 3, 3))
    table += _middle("decoder", width, layout.attention)
    last = len(layout.channels) - 1
    for block, out in enumerate(reversed(layout.channels)):
        level = last - block  # LDM counts the decoder's levels from the finest, diffusers in the order data pass them
        hub, ldm = f"decoder.up_blocks.{block}", f"decoder.up.{level}"
        for layer in range(layout.layers[level] + 1):
            table += _resnet(f"{hub}.resnets.{layer}", f"{ldm}.block.{layer}", width, out)
            width = out
        if level:
            table += affine(f"{hub}.upsamplers.0.conv", f"{ldm}.upsample.conv", (width, width, 3, 3))
    table += affine("decoder.conv_norm_out", "decoder.norm_out", (width,))
    return table + affine("decoder.conv_out", "decoder.conv_out", (layout.out_channels, width, 3, 3))


def _middle(side: str, width: int, attention: bool) -> list[Parameter]:
    hub, ldm = f"{side}.mid_block", f"{side}.mid"
    table = _resnet(f"{hub}.resnets.0", f"{ldm}.block_1", width, width)
    if attention:
        table += affine(f"{hub}.attentions.0.group_norm", f"{ldm}.attn_1.norm", (width,))
        for name, old in _ATTENTION.items():
            table += affine(f"{hub}.attentions.0.{name}", f"{ldm}.attn_1.{old}", (width, width))
    return table + _resnet(f"{hub}.resnets.1", f"{ldm}.block_2", width, width)


def _resnet(hub: str, ldm: str, into: int, out: int) -> list[Parameter]:
    table = affine(f"{hub}.norm1", f"{ldm}.norm1", (into,))
    table += affine(f"{hub}.conv1", f"{ldm}.conv1", (out, into, 3, 3))
    table += affine(f"{hub}.norm2", f"{ldm}.norm2", (out,))
    table += affine(f"{hub}.conv2", f"{ldm}.conv2", (out, out, 3, 3))
    if into != out:
        table += affine(f"{hub}.conv_shortcut", f"{ldm}.nin_shortcut", (out, into, 1, 1))
    return table


def is_attention_projection(hub: str) -> bool:
    """Whether it is a weight of the middle attention that is a linear layer in diffusers, a 1×1 convolution in LDM."""
    name, _, kind = hub.partition(".attentions.0.")[2].rpartition(".")
    return name in _ATTENTION and kind == "weight"


def old_attention_name(hub: str) -> str:
    """How diffusers before 0.18 called a parameter of the middle attention; other names come back unchanged."""
    stem, mark, rest = hub.partition(".attentions.0.")
    name, _, kind = rest.rpartition(".")
    return f"{stem}{mark}{_OLD_ATTENTION[name]}.{kind}" if name in _OLD_ATTENTION else hub


def uses_old_attention_names(names: Names) -> bool:
    """Whether the autoencoder was saved by diffusers before 0.18."""
    return "decoder.mid_block.attentions.0.query.weight" in names


def has_vae(names: Names, naming: str) -> bool:
    """Whether an autoencoder of the kind latent diffusion uses lies here."""
    first = "encoder.down.0.block.0" if naming == "ldm" else "encoder.down_blocks.0.resnets.0"
    return f"{first}.conv1.weight" in names and "decoder.conv_in.weight" in names


def read_vae(names: Names, naming: str) -> VaeLayout:
    """The layout of the autoencoder in `names`.

    Raises:
        OddLayout: it is not built the way this module describes.
    """
    level = "encoder.down.{}.block" if naming == "ldm" else "encoder.down_blocks.{}.resnets"
    levels = range(names.count(level + ".0.conv1.weight"))
    middle = "decoder.mid.attn_1.norm" if naming == "ldm" else "decoder.mid_block.attentions.0.group_norm"
    layers = tuple(names.count(level.format(number) + ".{}.conv1.weight") for number in levels)
    if not layers:
        raise OddLayout("its encoder has no levels")
    return VaeLayout(
        channels=tuple(names.dim(level.format(number) + ".0.conv1.weight", 0) for number in levels),
        layers=layers,
        in_channels=names.dim("encoder.conv_in.weight", 1),
        out_channels=names.dim("decoder.conv_out.weight", 0),
        latent_channels=names.dim("decoder.conv_in.weight", 1),
        attention=f"{middle}.weight" in names,
        quantised="quant_conv.weight" in names,
    )
