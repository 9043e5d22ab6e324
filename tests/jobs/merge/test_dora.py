"""A DoRA merged as it was trained, or as a program draws it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from merge_files import BASE, run
from models import load, save

import sdkit
from sdkit.core.errors import SdkitError, UsageError

NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
KEY = "middle_block.1.transformer_blocks.0.attn2.to_q"
WEIGHT = BASE[f"model.diffusion_model.{KEY}.weight"].double()
UP, DOWN = torch.randn(len(WEIGHT), 2), torch.randn(2, WEIGHT.shape[1])
MOVED = WEIGHT + UP.double() @ DOWN.double()
LENGTHS = WEIGHT.norm(dim=1, keepdim=True) * 1.5


@pytest.fixture
def dora(tmp_path: Path) -> Path:
    pair = {f"{NAME}.lora_down.weight": DOWN, f"{NAME}.lora_up.weight": UP, f"{NAME}.alpha": torch.tensor(2.0)}
    return save({**pair, f"{NAME}.dora_scale": LENGTHS.float()}, tmp_path / "dora.safetensors")


@pytest.mark.parametrize(
    ("program", "norms"),
    [
        ("exact", MOVED.norm(dim=1, keepdim=True)),
        ("comfyui", WEIGHT.norm(dim=1, keepdim=True)),
        ("a1111", MOVED.norm(dim=0, keepdim=True)),
    ],
)
def test_a_dora_is_merged_as_it_is_drawn(base: Path, dora: Path, out: Path, program: str, norms: torch.Tensor) -> None:
    result = run(base, f"{dora}=0.6", "-o", out, "--dora", program, "--dtype", "fp32")
    assert result.exit_code == 0, result.stderr
    merged = load(out)[f"model.diffusion_model.{KEY}.weight"].double()
    assert torch.allclose(merged, WEIGHT + 0.6 * (MOVED * LENGTHS / norms - WEIGHT), atol=1e-5)


def test_the_program_is_part_of_the_recipe(base: Path, dora: Path, out: Path) -> None:
    sdkit.merge(base, dora, out, dora="comfyui")
    assert sdkit.reproduce(out, [base.parent]).identical


def test_a_program_without_a_dora_is_refused(base: Path, lora: Path, out: Path) -> None:
    with pytest.raises(UsageError, match="no adapter holds a DoRA of output features"):
        sdkit.merge(base, lora, out, dora="a1111")
    with pytest.raises(UsageError, match="not a way to draw a DoRA"):
        sdkit.merge(base, lora, out, dora="forge")  # type: ignore[arg-type]
    assert not out.exists()


def test_a_dora_is_not_subtracted_whatever_drew_it(base: Path, dora: Path, out: Path) -> None:
    sdkit.merge(base, dora, out, dora="comfyui")
    with pytest.raises(SdkitError, match="cannot be subtracted"):
        sdkit.unmerge(out, [dora])
