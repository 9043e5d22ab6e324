"""What does not fit: a reason, a hint, exit code 1, nothing left behind, nothing touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from merge_files import BASE, LORA, PLACES, refused
from models import UNET, assert_merged, expected, kohya_lora, save, sd1_modules, sdxl_modules

import sdkit


def test_missing_files(base: Path, lora: Path) -> None:
    assert "lorra.safetensors" in refused(base, lora.with_name("lorra.safetensors"))
    assert "did you mean" in refused(base, lora.with_name("lorra.safetensors"))


def test_an_sdxl_lora_on_an_sd1_base(base: Path, lora: Path) -> None:
    save(kohya_lora(sdxl_modules()), lora)
    assert "was made for sdxl" in refused(base, lora)
    assert "was made for sdxl" in refused(base, lora, "--allow-unmatched")


def test_an_sd1_lora_on_an_sdxl_base(xl: Path, lora: Path) -> None:
    said = refused(xl, lora)
    assert "shape" in said or "no place" in said


def test_a_lora_that_matches_nothing(base: Path, lora: Path) -> None:
    save(kohya_lora({"lora_unet_nowhere_to_q": (32, 32), "lora_unet_nowhere_to_k": (32, 32)}), lora)
    assert "none of its 2 modules" in refused(base, lora)
    assert "nothing would change" in refused(base, lora, "--allow-unmatched")


def test_a_lora_that_matches_partly(base: Path, lora: Path, out: Path) -> None:
    strangers = kohya_lora({f"lora_unet_nowhere_{i}": (32, 32) for i in range(5)})
    save({**LORA, **strangers}, lora)
    said = refused(base, lora)
    assert f"5 of {len(sd1_modules()) + 5} modules have no place" in said
    assert "--allow-unmatched" in said
    report = sdkit.merge(base, lora, out, allow_unmatched=True)
    assert report.unmatched == tuple(f"lora_unet_nowhere_{i}" for i in range(5))
    assert_merged(out, BASE, expected(BASE, LORA, PLACES, 1.0))


@pytest.mark.parametrize("role", ["lora_up.weight", "lora_down.weight"])
@pytest.mark.parametrize("shape", [(3, 5), (4,), (0, 4), (4, 0)])
def test_wrong_shapes(base: Path, lora: Path, role: str, shape: tuple[int, ...]) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save({**LORA, f"{name}.{role}": torch.zeros(shape)}, lora)
    assert name in refused(base, lora)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("role", ["lora_up.weight", "lora_down.weight", "alpha"])
def test_numbers_that_are_none(base: Path, lora: Path, role: str, value: float) -> None:
    key = f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.{role}"
    damaged = LORA[key].clone()
    damaged.view(-1)[-1] = value
    save({**LORA, key: damaged}, lora)
    said = refused(base, lora)
    assert str(lora) in said
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q" in said


def test_nan_in_a_changed_weight_of_the_base(tmp_path: Path, lora: Path) -> None:
    key = f"{UNET}middle_block.1.proj_in.weight"
    broken = BASE[key].clone()
    broken[3, 4] = float("nan")
    assert key in refused(save({**BASE, key: broken}, tmp_path / "base.safetensors"), lora)


def test_a_half_pair(base: Path, lora: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save({key: tensor for key, tensor in LORA.items() if key != f"{name}.lora_up.weight"}, lora)
    assert name in refused(base, lora)


def test_an_integer_weight_is_not_merged_into(tmp_path: Path, lora: Path) -> None:
    key = f"{UNET}middle_block.1.proj_in.weight"
    quantised = {**BASE, key: torch.zeros(BASE[key].shape, dtype=torch.int8)}
    said = refused(save(quantised, tmp_path / "base.safetensors"), lora)
    assert "mid_block_attentions_0_proj_in" in said
