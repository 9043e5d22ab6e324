"""What a merge must give, by other means than sdkit's: safetensors' reader, float64, names from diffusers' converters.

Nothing here imports sdkit.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

UNET = "model.diffusion_model."
SD1_TEXT = "cond_stage_model.transformer."
TEXT_1 = "conditioner.embedders.0.transformer."
TEXT_2 = "conditioner.embedders.1.model."

# diffusers' names of 2022: down, up, mid; in each block attn1, the gated layer, attn2.
OLD_BLOCKS = [
    *(f"down_blocks.{block}.attentions.{layer}" for block in (0, 1, 2) for layer in (0, 1)),
    *(f"up_blocks.{block}.attentions.{layer}" for block in (1, 2, 3) for layer in (0, 1, 2)),
    "mid_block.attentions.0",
]
OLD_SLOTS = [
    *(f"attn1.{slot}" for slot in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj",
    *(f"attn2.{slot}" for slot in ("to_q", "to_k", "to_v", "to_out.0")),
]
OLD_TEXT_SLOTS = ("k_proj", "v_proj", "q_proj", "out_proj")


@dataclass(frozen=True)
class Place:
    """Where a LoRA's module lies in a checkpoint: the key, and which third of the rows (or all)."""

    key: str
    third: int | None = None
    transposed: bool = False


@dataclass(frozen=True)
class Change:
    """strength · scale · up @ down, at a place."""

    place: Place
    up: torch.Tensor
    down: torch.Tensor
    factor: float

    def matrix(self) -> torch.Tensor:
        """The change in float64, [rows, columns]."""
        product = self.factor * (self.up.double().flatten(1) @ self.down.double().flatten(1))
        return product.T if self.place.transposed else product


Changes = dict[str, list[Change]]


def header(path: Path) -> dict[str, Any]:
    """The file's header as JSON, keys in the order in which they stand there, without the metadata."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        fields = json.loads(file.read(length))
    fields.pop("__metadata__", None)
    return dict(sorted(fields.items(), key=lambda item: item[1]["data_offsets"]))


def tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, in file order, by safetensors' own reader."""
    with safe_open(path, "pt") as file:
        for key in header(path):
            yield key, file.get_tensor(key)


def sd1_places(base: Path, unet_config: Path) -> dict[str, Place]:
    """kohya's module name → place in a Stable Diffusion 1 single file.

    The U-Net's names are those that diffusers' own single-file loader gives to tensors that carry their old name's
    number; a text encoder's names are transformers' in the file already.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    keys = list(header(base))
    tagged = {key: torch.tensor([number]) for number, key in enumerate(keys) if key.startswith(UNET)}
    renamed = convert_ldm_unet_checkpoint(dict(tagged), json.loads(unet_config.read_text()))
    assert len(renamed) == len(tagged)
    places = {_flat("lora_unet_", name): Place(keys[int(tag)]) for name, tag in renamed.items() if _is_weight(name)}
    for key in keys:
        if key.startswith(SD1_TEXT) and _is_weight(key):
            places[_flat("lora_te_", key.removeprefix(SD1_TEXT))] = Place(key)
    return places


def sdxl_places(base: Path) -> dict[str, Place]:
    """kohya's module name → place in an SDXL single file: for the U-Net kohya flattens the file's own names."""
    places = {}
    for key in header(base):
        if not key.endswith("weight"):
            continue
        if key.startswith(UNET):
            places[_flat("lora_unet_", key.removeprefix(UNET))] = Place(key)
        elif key.startswith(TEXT_1):
            places[_flat("lora_te1_", key.removeprefix(TEXT_1))] = Place(key)
        elif match := re.fullmatch(rf"{re.escape(TEXT_2)}transformer\.resblocks\.(\d+)\.(.+?)[._]weight", key):
            layer = f"lora_te2_text_model_encoder_layers_{match[1]}_"
            if match[2] == "attn.in_proj":
                places |= {f"{layer}self_attn_{slot}_proj": Place(key, third) for third, slot in enumerate("qkv")}
            names = {"attn.out_proj": "self_attn_out_proj", "mlp.c_fc": "mlp_fc1", "mlp.c_proj": "mlp_fc2"}
            if match[2] in names:
                places[layer + names[match[2]]] = Place(key)
    places["lora_te2_text_projection"] = Place(f"{TEXT_2}text_projection", transposed=True)
    return places


def kohya_changes(lora: Path, strength: float, places: dict[str, Place]) -> Changes:
    """What a kohya LoRA changes: strength · alpha / rank · up @ down."""
    changes: Changes = {}
    with safe_open(lora, "pt") as file:
        for name in sorted({key.partition(".")[0] for key in file.keys()}):  # noqa: SIM118  (no mapping)
            up, down = (file.get_tensor(f"{name}.lora_{side}.weight") for side in ("up", "down"))
            factor = strength * float(file.get_tensor(f"{name}.alpha")) / down.shape[0]
            changes.setdefault(places[name].key, []).append(Change(places[name], up, down, factor))
    return changes


def positional_changes(lora: Path, strength: float, places: dict[str, Place]) -> Changes:
    """What a file of the first implementation changes, whose tensors are numbered, with scale 1."""
    names = [_flat("lora_unet_", f"{block}.transformer_blocks.0.{slot}") for block in OLD_BLOCKS for slot in OLD_SLOTS]
    texts = [
        f"lora_te_text_model_encoder_layers_{layer}_self_attn_{slot}" for layer in range(12) for slot in OLD_TEXT_SLOTS
    ]
    changes: Changes = {}
    with safe_open(lora, "pt") as file:
        for component, modules in (("unet", names), ("text_encoder", texts)):
            for number, name in enumerate(modules):
                up, down = (file.get_tensor(f"{component}:{number}:{side}") for side in ("up", "down"))
                changes.setdefault(places[name].key, []).append(Change(places[name], up, down, strength))
    return changes


def added(*changes: Changes) -> Changes:
    """Several adapters' changes together."""
    together: Changes = {}
    for one in changes:
        for key, entries in one.items():
            together.setdefault(key, []).extend(entries)
    return together


def reference(weight: torch.Tensor, entries: list[Change]) -> torch.Tensor:
    """The changed weight in float64."""
    result = weight.double()
    for entry in entries:
        rows = result.flatten(1) if result.dim() > 1 else result
        if entry.place.third is not None:
            size = len(rows) // 3
            rows = rows[entry.place.third * size : (entry.place.third + 1) * size]
        rows += entry.matrix()  # a view of `result`
    return result


def check(base: Path, merged: Path, changes: Changes, limit: float = 0.51) -> float:
    """Compare a merged file with the float64 reference, key by key.

    Every key, shape, type and the order must be the base's; tensors without a change keep every byte.

    Returns:
        The largest error among the changed tensors in units of the last place; it is at most `limit`.
    """
    before, after = header(base), header(merged)
    assert list(before) == list(after)
    for key in before:
        assert (before[key]["dtype"], before[key]["shape"]) == (after[key]["dtype"], after[key]["shape"]), key
    assert set(changes) <= set(before)
    worst, different = 0.0, 0
    for (key, weight), (_, result) in zip(tensors(base), tensors(merged), strict=True):
        same = torch.equal(weight.flatten().view(torch.uint8), result.flatten().view(torch.uint8))
        if key not in changes:
            assert same, key
            continue
        different += not same
        error = ulps(result, reference(weight, changes[key]))
        assert error <= limit, f"{key}: {error} ulp"
        worst = max(worst, error)
    assert different == len(changes)
    print(f"{merged.name}: at most {worst:.5f} ulp over {different} changed tensors")
    return worst


def ulps(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference in units of the last place of `result`'s type at the expected value."""
    info = torch.finfo(result.dtype)
    _, exponent = torch.frexp(expected)
    step = torch.ldexp(torch.full_like(expected, info.eps), exponent - 1)
    step = step.masked_fill_(expected == 0, 0.0).clamp_(min=info.smallest_normal * info.eps)
    return float(((result.double() - expected).abs() / step).max())


def _flat(prefix: str, name: str) -> str:
    return prefix + name.removesuffix(".weight").replace(".", "_")


def _is_weight(name: str) -> bool:
    return name.endswith(".weight")
