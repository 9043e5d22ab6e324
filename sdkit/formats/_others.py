"""Adapters of newer families, read or not: recognised by the names of their layers, and by their widths.

Newer transformers share most of their names. They are told apart by the few that only one of them has, and where there
is none, by how wide the tokens are that a layer reads, or how many blocks there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sdkit.weights import TensorInfo, Weights


@dataclass(frozen=True, slots=True)
class Rule:
    """What tells a family.

    Attributes:
        family: as `families.others` calls it.
        layer: matches the beginning of a layer's flat name, behind every program's prefix.
        width: how many numbers the layer reads; None for any.
        ratio: how many rows its weight has for each column; None for any.
    """

    family: str
    layer: re.Pattern[str]
    width: int | None = None
    ratio: int | None = None


def _rules() -> Iterator[Rule]:
    for family, layer, width, ratio in (
        ("chroma", r"distilled_guidance_layer_", None, None),
        ("flux2", r"(?:double|single)_stream_modulation", None, None),
        ("flux2", r"single_transformer_blocks_\d+_attn_to_(?:qkv_mlp_proj|out(?!_0))", None, None),
        ("flux2", r"transformer_blocks_\d+_ff\w*_linear_(?:in|out)", None, None),
        ("flux2", r"double_blocks_\d+_(?:img|txt)_mlp_0", None, 6),
        ("flux2", r"single_blocks_\d+_linear1", None, 9),
        # Krea 2 and Qwen-Image 2.1 are as wide as FLUX.2's models, but have no fewer than 28 blocks, not 8.
        ("krea2", r"transformer_blocks_(?:[89]|[1-9]\d)_attn_to_[qkv]", 6144, None),
        ("qwen-image", r"transformer_blocks_(?:[89]|[1-9]\d)_attn_to_[qkv]", 4096, None),
        ("flux2", r"transformer_blocks_\d+_attn_(?:to|add)_[qkv]", 6144, None),
        ("flux2", r"transformer_blocks_\d+_attn_(?:to|add)_[qkv]", 4096, None),
        # No other family's double blocks are as wide as dev's and klein's; the small klein is narrow inside them.
        ("flux2", r"double_blocks_\d+_(?:img|txt)_(?:attn|mlp)", 4096, None),
        ("flux2", r"double_blocks_\d+_(?:img|txt)_(?:attn|mlp)", 6144, None),
        ("flux2", r"double_blocks_\d+_(?:img|txt)_mlp_2", 9216, None),
        ("flux2", r"single_blocks_\d+_linear2", 12288, None),
        ("hunyuan-video", r"txt_in_individual_token_refiner|context_embedder_token_refiner", None, None),
        ("hunyuan-video", r"double_blocks_\d+_(?:img|txt)_(?:mlp_fc[12]|mod_linear)", None, None),
        ("qwen-image", r"transformer_blocks_\d+_(?:img|txt)_(?:mod_1|mlp_net)", None, None),
        ("qwen-image", r"transformer_blocks_(?:[2-9]\d)_attn_(?:to|add)_[qkv](?!\w*_mlp)", 3072, None),
        ("z-image", r"(?:layers|\w+_refiner)_\d+_attention_(?:to_[qkv]|qkv|to_out|out)", 3840, None),
        ("lumina2", r"(?:layers|\w+_refiner)_\d+_(?:attention|attn)_(?:to_[qkv]|qkv|to_out|out)", 2304, None),
        ("mochi", r"transformer_blocks_\d+_attn1_add_|blocks_\d+_attn_qkv_[xy]", None, None),
        ("auraflow", r"joint_transformer_blocks_|(?:double|single)_layers_\d+_attn_w", None, None),
        ("hidream", r"(?:double|single)_stream_blocks_\d+_block_", None, None),
        ("hunyuan-dit", r"blocks_\d+_attn[12]_(?:Wqkv|q_proj|kv_proj)", None, None),
        ("wan", r"blocks_\d+_(?:(?:self|cross)_attn_[qkvo](?:_|$)|attn[12]_to_|ffn_)", None, None),
        ("sana", r"blocks_\d+_(?:attn_qkv|cross_attn_(?:q|kv)_linear)", None, None),
        ("sana", r"transformer_blocks_\d+_attn[12]_to_q", 2240, None),
        ("ltx", r"transformer_blocks_\d+_attn[12]_to_q", 2048, None),
        ("pixart", r"transformer_blocks_\d+_attn[12]_to_q", 1152, None),
    ):
        yield Rule(family, re.compile(layer), width, ratio)


RULES = tuple(_rules())
_ANY = re.compile("|".join(rule.layer.pattern for rule in RULES))  # one look at most layers is enough
_PREFIX = re.compile(
    r"(?:model\.diffusion_model\.|diffusion_model\.|base_model\.model\.|transformer\.|unet\."
    r"|lora_unet_+|lora_transformer_|lycoris_)+"
)
_EITHER = re.compile(
    r"(?:double|transformer)_blocks_[0-4]_(?:(?:img|txt)_attn_(?:qkv|proj)"
    r"|attn_(?:to_[qkv]|to_out_0|add_[qkv]_proj|to_add_out))"
)
_EITHER_WIDTH = 3072
_DOWN = re.compile(r"(?P<module>.+)\.(?:lora_down|lora_A(?:\.default)?|lora\.down|lora_linear_layer\.down)\.weight")
_DOWN_ENDS = (".lora_down.weight", ".lora_A.weight", ".default.weight", ".down.weight")
_UP = {
    "lora_down": "lora_up",
    "lora_A": "lora_B",
    "lora.down": "lora.up",
    "lora_linear_layer.down": "lora_linear_layer.up",
}


def other_family(weights: Weights) -> Iterator[tuple[str, str]]:
    """The family and the evidence, where one of the rules holds for a layer that the file changes."""
    layers = [(name, info, layer) for name, info in weights.tensors.items() if (layer := _layer(name)) is not None]
    layers = [entry for entry in layers if _ANY.match(entry[2])]
    others = [(name, info, _flat(name)) for name, info in weights.tensors.items() if _layer(name) is None]
    others = [entry for entry in others if _ANY.match(entry[2])]
    for rule in RULES:  # of other kinds of change than LoRA the shapes do not say how wide a layer is
        named = rule.width is None and rule.ratio is None
        for name, info, layer in [*layers, *others] if named else layers:
            if rule.layer.match(layer) and _fits(rule, weights, name, info):
                yield rule.family, f"{name} is named as in that family alone{_sizes(rule)}"


def undecided(weights: Weights) -> str:
    """Why names and shapes cannot tell FLUX.1 from the small FLUX.2; empty where they can, or it is neither.

    klein-4b has FLUX.1's widths and names in the attention of its blocks of two streams, but only five of these. (Its
    other layers, and the other sizes of FLUX.2, have shapes or names of their own.)
    """
    layers = [(name, info, layer) for name, info in weights.tensors.items() if (layer := _layer(name)) is not None]
    if layers and all(_EITHER.fullmatch(layer) and info.shape[1:] == (_EITHER_WIDTH,) for _, info, layer in layers):
        return (
            f"{layers[0][0]} reads tokens of width {_EITHER_WIDTH}, as in FLUX.1 and in FLUX.2 klein-4b, and the file "
            "changes nothing but the attention of the first five blocks, in which they do not differ"
        )
    return ""


def _layer(name: str) -> str | None:
    """The flat name of the layer whose input a tensor belongs to, without any prefix."""
    match = _DOWN.fullmatch(name) if name.endswith(_DOWN_ENDS) else None
    return _flat(match["module"]) if match else None


def _flat(name: str) -> str:
    return _PREFIX.sub("", name, count=1).replace(".", "_")


def _fits(rule: Rule, weights: Weights, name: str, info: TensorInfo) -> bool:
    columns = info.shape[1] if len(info.shape) > 1 else 0
    if rule.width is not None and columns != rule.width:
        return False
    if rule.ratio is None:
        return True
    other = next((name.replace(f".{down}", f".{up}") for down, up in _UP.items() if f".{down}" in name), "")
    up = weights.tensors.get(other)
    return up is not None and bool(columns) and up.shape[0] == rule.ratio * columns


def _sizes(rule: Rule) -> str:
    if rule.width is not None:
        return f", and reads tokens of width {rule.width}"
    return f", with {rule.ratio} rows for each column" if rule.ratio is not None else ""
