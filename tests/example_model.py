"""A small random model and LoRA in the exact layout of the real ones, for trying things without a download.

The checkpoint has every key of a Stable Diffusion 1 single file, from ``input_blocks.0`` to ``post_quant_conv``; only
the widths are small. Its pictures are noise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]

UNET, VAE, TEXT = "model.diffusion_model", "first_stage_model", "cond_stage_model.transformer.text_model"
POSITION_IDS = f"{TEXT}.embeddings.position_ids"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What may differ while the layout stays Stable Diffusion 1; the defaults make a file of about 30 MB.

    Attributes:
        unet: channels of the UNet's first level; a multiple of 32.
        vae: channels of the autoencoder's first level; a multiple of 32.
        text: width of the text encoder.
        layers: layers of the text encoder.
    """

    unet: int = 32
    vae: int = 32
    text: int = 64
    layers: int = 2


REAL_SIZES = Sizes(unet=320, vae=128, text=768, layers=12)

_LEVELS = (1, 2, 4, 4)  # channels of each level, as multiples of the first
_TOP = len(_LEVELS) - 1
_TOKENS, _POSITIONS, _LATENT, _PICTURE = 49408, 77, 4, 3


def checkpoint_shapes(sizes: Sizes) -> Shapes:
    """Key → shape of a Stable Diffusion 1 single-file checkpoint."""
    return {**_unet(sizes), **_autoencoder(sizes.vae), **_text_encoder(sizes)}


def lora_modules(sizes: Sizes) -> Shapes:
    """Flattened kohya module name → shape of its weight, for every module kohya's scripts train by default."""
    modules = {}
    for key, shape in checkpoint_shapes(sizes).items():
        if key.startswith(UNET) and key.endswith(".weight") and len(shape) > 1:
            name = _kohya_unet_name(key.removeprefix(f"{UNET}."))
            if name:
                modules[name] = shape
        elif key.startswith(f"{TEXT}.encoder") and key.endswith(".weight") and len(shape) > 1:
            modules["lora_te_text_model_" + _flat(key.removeprefix(f"{TEXT}."))] = shape
    return modules


def make_checkpoint(sizes: Sizes, seed: int = 0) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors: float16, random matrices, norms that do nothing; the same for the same seed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in checkpoint_shapes(sizes).items():
        if key == POSITION_IDS:
            tensors[key] = torch.arange(_POSITIONS)[None]
        elif len(shape) == 1:
            tensors[key] = torch.full(shape, 1.0 if key.endswith(".weight") else 0.0, dtype=torch.float16)
        else:
            tensors[key] = (torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5).half()
    return tensors


def make_lora(sizes: Sizes, rank: int = 4, alpha: float = 2.0, seed: int = 1) -> dict[str, torch.Tensor]:
    """A kohya LoRA over `lora_modules`, whose change is a few percent of the weights it changes."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (rows, columns, *kernel) in lora_modules(sizes).items():
        ones = [1] * len(kernel)
        down = torch.randn([rank, columns, *ones], generator=generator) / columns**0.5
        up = torch.randn([rows, rank, *ones], generator=generator) * 0.05
        tensors |= {f"{name}.lora_down.weight": down.half(), f"{name}.lora_up.weight": up.half()}
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float16)
    return tensors


def _unet(sizes: Sizes) -> Shapes:
    first, time = sizes.unet, 4 * sizes.unet
    shapes = {
        **_linear(f"{UNET}.time_embed.0", time, first),
        **_linear(f"{UNET}.time_embed.2", time, time),
        **_conv(f"{UNET}.input_blocks.0.0", first, _LATENT, 3),
        **_unet_block(f"{UNET}.middle_block.0", _LEVELS[-1] * first, _LEVELS[-1] * first, time),
        **_transformer(f"{UNET}.middle_block.1", _LEVELS[-1] * first, sizes.text),
        **_unet_block(f"{UNET}.middle_block.2", _LEVELS[-1] * first, _LEVELS[-1] * first, time),
        **_norm(f"{UNET}.out.0", first),
        **_conv(f"{UNET}.out.2", _LATENT, first, 3),
    }
    skips = [first]
    for index, level, is_resize in _down_blocks():
        block, channels = f"{UNET}.input_blocks.{index}", _LEVELS[level] * first
        if is_resize:
            shapes |= _conv(f"{block}.0.op", channels, channels, 3)
        else:
            shapes |= _unet_block(f"{block}.0", channels, skips[-1], time)
            if level < _TOP:
                shapes |= _transformer(f"{block}.1", channels, sizes.text)
        skips.append(channels)
    current = skips[-1]
    for index, level, is_resize in _up_blocks():
        block, channels = f"{UNET}.output_blocks.{index}", _LEVELS[level] * first
        shapes |= _unet_block(f"{block}.0", channels, current + skips.pop(), time)
        if level < _TOP:
            shapes |= _transformer(f"{block}.1", channels, sizes.text)
        if is_resize:
            shapes |= _conv(f"{block}.{2 if level < _TOP else 1}.conv", channels, channels, 3)
        current = channels
    return shapes


def _down_blocks() -> Iterator[tuple[int, int, bool]]:
    """Index, level and whether it halves the picture, of ``input_blocks`` 1 to 11: two and a resize per level."""
    for index in range(1, 3 * len(_LEVELS)):
        yield index, (index - 1) // 3, index % 3 == 0


def _up_blocks() -> Iterator[tuple[int, int, bool]]:
    """Index, level and whether it doubles the picture, of ``output_blocks`` 0 to 11: three per level."""
    for index in range(3 * len(_LEVELS)):
        level = _TOP - index // 3
        yield index, level, index % 3 == 2 and level > 0


def _unet_block(name: str, rows: int, columns: int, time: int) -> Shapes:
    return {
        **_norm(f"{name}.in_layers.0", columns),
        **_conv(f"{name}.in_layers.2", rows, columns, 3),
        **_linear(f"{name}.emb_layers.1", rows, time),
        **_norm(f"{name}.out_layers.0", rows),
        **_conv(f"{name}.out_layers.3", rows, rows, 3),
        **(_conv(f"{name}.skip_connection", rows, columns, 1) if rows != columns else {}),
    }


def _transformer(name: str, channels: int, context: int) -> Shapes:
    block = f"{name}.transformer_blocks.0"
    shapes = {
        **_norm(f"{name}.norm", channels),
        **_conv(f"{name}.proj_in", channels, channels, 1),
        **_conv(f"{name}.proj_out", channels, channels, 1),
        **_linear(f"{block}.ff.net.0.proj", 8 * channels, channels),
        **_linear(f"{block}.ff.net.2", channels, 4 * channels),
    }
    for attention, width in ("attn1", channels), ("attn2", context):
        shapes[f"{block}.{attention}.to_q.weight"] = (channels, channels)
        shapes[f"{block}.{attention}.to_k.weight"] = (channels, width)
        shapes[f"{block}.{attention}.to_v.weight"] = (channels, width)
        shapes |= _linear(f"{block}.{attention}.to_out.0", channels, channels)
    for norm in ("norm1", "norm2", "norm3"):
        shapes |= _norm(f"{block}.{norm}", channels)
    return shapes


def _autoencoder(first: int) -> Shapes:
    top = _LEVELS[-1] * first
    shapes = {
        **_conv(f"{VAE}.encoder.conv_in", first, _PICTURE, 3),
        **_norm(f"{VAE}.encoder.norm_out", top),
        **_conv(f"{VAE}.encoder.conv_out", 2 * _LATENT, top, 3),
        **_conv(f"{VAE}.quant_conv", 2 * _LATENT, 2 * _LATENT, 1),
        **_conv(f"{VAE}.post_quant_conv", _LATENT, _LATENT, 1),
        **_conv(f"{VAE}.decoder.conv_in", top, _LATENT, 3),
        **_norm(f"{VAE}.decoder.norm_out", first),
        **_conv(f"{VAE}.decoder.conv_out", _PICTURE, first, 3),
    }
    for half in ("encoder", "decoder"):
        shapes |= _vae_middle(f"{VAE}.{half}.mid", top)
    current = first
    for level, multiple in enumerate(_LEVELS):
        shapes |= _vae_level(f"{VAE}.encoder.down.{level}", 2, multiple * first, current)
        current = multiple * first
        if level < _TOP:
            shapes |= _conv(f"{VAE}.encoder.down.{level}.downsample.conv", current, current, 3)
    for level, multiple in reversed(list(enumerate(_LEVELS))):
        shapes |= _vae_level(f"{VAE}.decoder.up.{level}", 3, multiple * first, current)
        current = multiple * first
        if level > 0:
            shapes |= _conv(f"{VAE}.decoder.up.{level}.upsample.conv", current, current, 3)
    return shapes


def _vae_middle(name: str, channels: int) -> Shapes:
    return {
        **_vae_block(f"{name}.block_1", channels, channels),
        **_norm(f"{name}.attn_1.norm", channels),
        **_conv(f"{name}.attn_1.q", channels, channels, 1),
        **_conv(f"{name}.attn_1.k", channels, channels, 1),
        **_conv(f"{name}.attn_1.v", channels, channels, 1),
        **_conv(f"{name}.attn_1.proj_out", channels, channels, 1),
        **_vae_block(f"{name}.block_2", channels, channels),
    }


def _vae_level(name: str, blocks: int, rows: int, columns: int) -> Shapes:
    shapes = _vae_block(f"{name}.block.0", rows, columns)
    for index in range(1, blocks):
        shapes |= _vae_block(f"{name}.block.{index}", rows, rows)
    return shapes


def _vae_block(name: str, rows: int, columns: int) -> Shapes:
    return {
        **_norm(f"{name}.norm1", columns),
        **_conv(f"{name}.conv1", rows, columns, 3),
        **_norm(f"{name}.norm2", rows),
        **_conv(f"{name}.conv2", rows, rows, 3),
        **(_conv(f"{name}.nin_shortcut", rows, columns, 1) if rows != columns else {}),
    }


def _text_encoder(sizes: Sizes) -> Shapes:
    width = sizes.text
    shapes = {
        f"{TEXT}.embeddings.token_embedding.weight": (_TOKENS, width),
        f"{TEXT}.embeddings.position_embedding.weight": (_POSITIONS, width),
        POSITION_IDS: (1, _POSITIONS),
        **_norm(f"{TEXT}.final_layer_norm", width),
    }
    for index in range(sizes.layers):
        layer = f"{TEXT}.encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{projection}", width, width)
        shapes |= _linear(f"{layer}.mlp.fc1", 4 * width, width) | _linear(f"{layer}.mlp.fc2", width, 4 * width)
        shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
    return shapes


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _conv(name: str, rows: int, columns: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (rows, columns, kernel, kernel), f"{name}.bias": (rows,)}


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _kohya_unet_name(key: str) -> str:
    """``lora_unet_…`` for a weight of a transformer, in diffusers' block names; empty for any other weight."""
    found = re.fullmatch(r"(input_blocks|middle_block|output_blocks)\.(\d+)(?:\.1)?\.((?:proj|transformer).*)", key)
    if not found:
        return ""
    place, index, rest = found[1], int(found[2]), found[3]
    if place == "input_blocks":
        block = f"down_blocks_{(index - 1) // 3}_attentions_{(index - 1) % 3}"
    elif place == "middle_block":
        block = "mid_block_attentions_0"
    else:
        block = f"up_blocks_{index // 3}_attentions_{index % 3}"
    return f"lora_unet_{block}_{_flat(rest)}"


def _flat(key: str) -> str:
    return key.removesuffix(".weight").replace(".", "_")
