"""The jobs on small SD3 and FLUX.1 models: files that differ in naming alone must be one model to all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.families.flux_transformer import FluxLayout
from sdkit.families.sd3_transformer import Sd3Layout

FLUX = FluxLayout(12, 4, 48, 2, 2, 8, 8, 10, 6, 16, guidance=True)
SD3 = Sd3Layout(8, 2, 1, 4, 32, 2, 4, 16, 9, 10, 6, 16)
LAYOUTS = pytest.mark.parametrize("layout", [FLUX, SD3], ids=["flux", "sd3"])


def both_namings(layout, folder: Path, name: str, seed: int) -> tuple[Path, Path]:
    """One model as a single file and in diffusers' names."""
    generator = torch.Generator().manual_seed(seed)
    single: dict[str, torch.Tensor] = {}
    parts: dict[str, torch.Tensor] = {}
    for row in layout.parameters():
        shape = (row.height, *row.shape[1:]) if row.rows else row.shape
        whole = single.setdefault(row.ldm, torch.randn(shape, generator=generator))
        part = whole[slice(*row.rows)] if row.rows else whole
        parts[row.hub] = (torch.cat(part.chunk(2)[::-1]) if row.swapped else part).contiguous()
    paths = (folder / f"{name}.safetensors", folder / f"{name}-diffusers.safetensors")
    save_file({f"model.diffusion_model.{key}": tensor for key, tensor in single.items()}, paths[0])
    save_file(parts, paths[1])
    return paths


@LAYOUTS
def test_what_is_extracted_from_either_naming_is_the_same_and_merges_back(tmp_path, layout) -> None:
    base, other_base = both_namings(layout, tmp_path, "base", 1)
    tuned, other_tuned = both_namings(layout, tmp_path, "tuned", 2)
    first, second, merged = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "merged"))
    sdkit.extract(tuned, base, first, rank=64, dtype="fp32")
    sdkit.extract(other_tuned, other_base, second, rank=64, dtype="fp32")
    assert set(load_file(first)) == set(load_file(second))
    wanted = load_file(tuned)
    for adapter in (first, second):
        sdkit.merge(base, [(adapter, 1.0)], merged, force=True)
        result = load_file(merged)
        weights = [name for name, tensor in wanted.items() if tensor.ndim == 2]
        assert len(weights) > 20
        for name in weights:
            assert torch.allclose(result[name], wanted[name], atol=1e-4), name


@LAYOUTS
def test_a_model_blends_with_itself_in_the_other_naming(tmp_path, layout) -> None:
    single, diffusers = both_namings(layout, tmp_path, "base", 1)
    for first, second in ((single, diffusers), (diffusers, single)):
        out = tmp_path / f"of-{first.stem}.safetensors"
        sdkit.blend([first, second], out, parameters={"alpha": 0.25})
        result = load_file(out)
        for name, tensor in load_file(first).items():
            assert torch.allclose(result[name], tensor, atol=1e-6), name


def test_a_lora_of_another_width_says_so_before_anything_is_written(tmp_path) -> None:
    single, _ = both_namings(SD3, tmp_path, "base", 1)
    lora, out = tmp_path / "lora.safetensors", tmp_path / "out.safetensors"
    flat = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    save_file({f"{flat}.lora_down.weight": torch.ones(2, 12), f"{flat}.lora_up.weight": torch.ones(36, 2)}, lora)
    with pytest.raises(SdkitError, match=rf"{flat} changes a weight of shape \[36, 12\]"):
        sdkit.merge(single, [(lora, 1.0)], out)
    assert not out.exists()
