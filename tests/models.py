"""Small models in the real layouts, and adapters for them, for tests of what is done with whole files.

The names come from the rules in `sdkit.families`, which tests/families proves against real headers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from sdkit.families.clip import TextLayout, text_parameters
from sdkit.families.parameter import Parameter, is_module_weight
from sdkit.families.unet import UNetLayout, unet_parameters
from sdkit.families.vae import VaeLayout, vae_parameters

Tensors = dict[str, torch.Tensor]

UNET = "model.diffusion_model."
SD1_TEXT = "cond_stage_model.transformer."
SDXL_TEXTS = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
VAE = "first_stage_model."

SD1_UNET = UNetLayout(
    channels=(32, 64, 64, 64),
    down=((1, 1), (1, 1), (1, 1), (0, 0)),
    middle=1,
    middle_resnets=2,
    up=((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    in_channels=4,
    out_channels=4,
    time_dim=128,
    cross_dim=32,
    linear=False,
)
SDXL_UNET = UNetLayout(
    channels=(32, 64, 64),
    down=((0, 0), (1, 1), (2, 2)),
    middle=2,
    middle_resnets=2,
    up=((2, 2, 2), (1, 1, 1), (0, 0, 0)),
    in_channels=4,
    out_channels=4,
    time_dim=128,
    cross_dim=80,
    linear=True,
    label_dim=96,
)
TEXT = TextLayout(width=32, inner=128, layers=2, vocabulary=64, positions=77)
TEXT_2 = TextLayout(width=48, inner=192, layers=2, vocabulary=64, positions=77, projection=48)
AUTOENCODER = VaeLayout(channels=(32, 32), layers=(1, 1), in_channels=3, out_channels=3, latent_channels=4)


def sd1(seed: int = 0, dtype: torch.dtype = torch.float16, unet: UNetLayout = SD1_UNET) -> Tensors:
    """A Stable Diffusion 1 single file."""
    tables = {UNET: unet_parameters(unet), SD1_TEXT: text_parameters(TEXT, "hf"), VAE: vae_parameters(AUTOENCODER)}
    tensors = _tensors(tables, seed, dtype)
    tensors[f"{SD1_TEXT}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return tensors


def sdxl(seed: int = 0, dtype: torch.dtype = torch.float16) -> Tensors:
    """An SDXL single file, its second text encoder with fused q, k, v and a transposed projection."""
    tables = {
        UNET: unet_parameters(SDXL_UNET),
        SDXL_TEXTS[0]: text_parameters(TEXT, "hf"),
        SDXL_TEXTS[1]: text_parameters(TEXT_2, "openclip"),
        VAE: vae_parameters(AUTOENCODER),
    }
    tensors = _tensors(tables, seed, dtype)
    tensors[f"{SDXL_TEXTS[0]}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors[f"{SDXL_TEXTS[1]}logit_scale"] = torch.tensor(4.6055, dtype=dtype)
    return tensors


def _tensors(tables: Mapping[str, list[Parameter]], seed: int, dtype: torch.dtype) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for prefix, table in tables.items():
        for parameter in table:
            shape = list(parameter.shape[::-1] if parameter.transposed else parameter.shape)
            if parameter.rows:
                shape[0] *= 3
            scale = 0.5 / math.sqrt(math.prod(shape[1:]) or 1)
            tensors[prefix + parameter.ldm] = (torch.randn(shape, generator=generator) * scale).to(dtype)
    return tensors


def sd1_modules(unet: UNetLayout = SD1_UNET) -> dict[str, tuple[int, ...]]:
    """Every module of `sd1` that a LoRA can change, in kohya's spelling, with its weight's shape."""
    return {**_flat("lora_unet", unet_parameters(unet)), **_flat("lora_te", text_parameters(TEXT, "hf"))}


def sdxl_modules() -> dict[str, tuple[int, ...]]:
    """The same for `sdxl`; the U-Net as diffusers spells it."""
    return {
        **_flat("lora_unet", unet_parameters(SDXL_UNET)),
        **_flat("lora_te1", text_parameters(TEXT, "hf")),
        **_flat("lora_te2", text_parameters(TEXT_2, "openclip")),
    }


def _flat(prefix: str, table: list[Parameter]) -> dict[str, tuple[int, ...]]:
    modules = [row for row in table if is_module_weight(row) and len(row.shape) > 1]
    return {f"{prefix}_{row.hub.removesuffix('.weight').replace('.', '_')}": row.shape for row in modules}


def kohya_lora(
    modules: Mapping[str, tuple[int, ...]], rank: int = 4, alpha: float | None = 2.0, seed: int = 1, size: float = 0.1
) -> Tensors:
    """A kohya LoRA of `modules`; a module whose weight is a convolution gets a LoCon. No `alpha` means alpha = rank."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, (rows, *columns) in modules.items():
        ones = [1] * len(columns[1:])
        tensors[f"{name}.lora_down.weight"] = torch.randn([rank, *columns], generator=generator) * size
        tensors[f"{name}.lora_up.weight"] = torch.randn([rows, rank, *ones], generator=generator) * size
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def delta(lora: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """alpha / rank · up @ down of one module in float64, [rows, columns]."""
    up, down = (lora[f"{name}.lora_{side}.weight"].double().flatten(1) for side in ("up", "down"))
    alpha = lora.get(f"{name}.alpha", torch.tensor(float(down.shape[0])))
    return up @ down * (float(alpha) / down.shape[0])


def save(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a file with safetensors' own writer."""
    save_file(dict(tensors), path, dict(metadata) if metadata else None)
    return path


def load(path: Path | str) -> Tensors:
    """Read a file with safetensors' own reader."""
    return load_file(path)


def ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance of neighbouring numbers of `dtype` at each of `values`, float64."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(values.double())
    step = torch.ldexp(torch.full_like(values, info.eps, dtype=torch.float64), exponent - 1)
    return step.masked_fill_(values == 0, 0.0).clamp_(min=info.smallest_normal * info.eps)


def error_in_ulps(out: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest |out − reference| in units of the last place of out's type at the reference."""
    assert out.shape == reference.shape, (out.shape, reference.shape)
    return float(((out.double() - reference).abs() / ulp(reference, out.dtype)).max())


class Place(NamedTuple):
    """Where a module's weight lies in a single file."""

    key: str
    rows: tuple[int, int] | None = None
    transposed: bool = False


def sd1_places(unet: UNetLayout = SD1_UNET) -> dict[str, Place]:
    """kohya's module name → place in `sd1`."""
    return {
        **_places("lora_unet", UNET, unet_parameters(unet)),
        **_places("lora_te", SD1_TEXT, text_parameters(TEXT, "hf")),
    }


def sdxl_places() -> dict[str, Place]:
    """kohya's module name → place in `sdxl`."""
    return {
        **_places("lora_unet", UNET, unet_parameters(SDXL_UNET)),
        **_places("lora_te1", SDXL_TEXTS[0], text_parameters(TEXT, "hf")),
        **_places("lora_te2", SDXL_TEXTS[1], text_parameters(TEXT_2, "openclip")),
    }


def _places(kohya: str, prefix: str, table: list[Parameter]) -> dict[str, Place]:
    flat = {f"{kohya}_{row.hub.removesuffix('.weight').replace('.', '_')}": row for row in table}
    return {name: Place(prefix + row.ldm, row.rows, row.transposed) for name, row in flat.items()}


def expected(
    base: Mapping[str, torch.Tensor],
    lora: Mapping[str, torch.Tensor],
    places: Mapping[str, Place],
    strength: float | Callable[[str], float],
) -> Tensors:
    """What merging a kohya LoRA gives, in float64, for the tensors it changes; `strength` may depend on the module."""
    changed: Tensors = {}
    for name in sorted({key.partition(".")[0] for key in lora}):
        place = places[name]
        factor = strength(name) if callable(strength) else strength
        weight = changed.setdefault(place.key, base[place.key].double().clone())
        rows = weight.flatten(1)[slice(*place.rows) if place.rows else slice(None)]
        change = delta(lora, name).T if place.transposed else delta(lora, name)
        rows[:, : change.shape[1]] += factor * change
    return changed


def assert_merged(path: Path | str, base: Mapping[str, torch.Tensor], changed: Mapping[str, torch.Tensor]) -> None:
    """The file holds `base` with the tensors of `changed` rounded once; all others keep every byte, order and type."""
    merged = load(path)
    assert set(merged) == set(base)
    for key, before in base.items():
        after = merged[key]
        assert (after.dtype, after.shape) == (before.dtype, before.shape), key
        if key in changed:
            assert error_in_ulps(after, changed[key]) <= 0.51, key
        else:
            assert bytes_of(after) == bytes_of(before), key


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The tensor's elements as they lie in memory."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
