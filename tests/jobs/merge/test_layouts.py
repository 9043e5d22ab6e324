"""Traps of real layouts: fused rows, transposes, wide inputs, markers, and kinds of change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from merge_files import BASE, LORA, PLACES, POSITION_IDS, run
from models import (
    SD1_UNET,
    SDXL_TEXTS,
    UNET,
    assert_merged,
    delta,
    error_in_ulps,
    expected,
    kohya_lora,
    load,
    save,
    sd1,
    sd1_modules,
    sd1_places,
    sdxl,
    sdxl_modules,
    sdxl_places,
)

import sdkit


def test_fused_rows_and_the_transposed_projection_of_sdxl(tmp_path: Path, xl: Path, out: Path) -> None:
    adapter = kohya_lora(sdxl_modules())
    report = sdkit.merge(xl, {save(adapter, tmp_path / "lora.safetensors"): 0.8}, out)
    assert_merged(out, sdxl(), expected(sdxl(), adapter, sdxl_places(), 0.8))
    fused = 2 * 2  # two layers' q, k and v are one tensor each: two tensors fewer per layer
    assert report.matched - report.changed == fused


def test_only_the_rows_of_the_changed_projection_change(tmp_path: Path, xl: Path, out: Path) -> None:
    name = "lora_te2_text_model_encoder_layers_1_self_attn_k_proj"
    adapter = kohya_lora({name: sdxl_modules()[name]})
    sdkit.merge(xl, save(adapter, tmp_path / "lora.safetensors"), out)
    key = f"{SDXL_TEXTS[1]}transformer.resblocks.1.attn.in_proj_weight"
    before, after = sdxl()[key], load(out)[key]
    assert torch.equal(after[:48], before[:48])
    assert torch.equal(after[96:], before[96:])
    assert error_in_ulps(after[48:96], before[48:96].double() + delta(adapter, name)) <= 0.51


def test_text_projection_is_transposed(tmp_path: Path, xl: Path, out: Path) -> None:
    # transformers computes x @ weight.T with this weight, OpenCLIP x @ text_projection. The matrix is square, so that
    # only numbers can tell.
    name = "lora_te2_text_projection"
    up, down = torch.zeros(48, 1), torch.zeros(1, 48)
    up[3, 0], down[0, 5] = 1.0, 0.25  # weight[3, 5] += 0.25
    adapter = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    sdkit.merge(xl, save(adapter, tmp_path / "lora.safetensors"), out)
    key = f"{SDXL_TEXTS[1]}text_projection"
    change = load(out)[key].double() - sdxl()[key].double()
    assert change[5, 3] == pytest.approx(0.25, abs=1e-3)
    change[5, 3] = 0.0
    assert not change.any()


@pytest.mark.parametrize("channels", [9, 8, 5])
def test_a_plain_locon_changes_the_first_channels_of_a_wide_input(tmp_path: Path, out: Path, channels: int) -> None:
    wide = replace(SD1_UNET, in_channels=channels)
    tensors = sd1(unet=wide)
    base = save(tensors, tmp_path / "base.safetensors")
    report = sdkit.merge(base, {save(LORA, tmp_path / "lora.safetensors"): 0.8}, out)
    assert_merged(out, tensors, expected(tensors, LORA, sd1_places(wide), 0.8))
    key = f"{UNET}input_blocks.0.0.weight"
    assert torch.equal(load(out)[key][:, 4:], tensors[key][:, 4:])
    assert report.matched == len(sd1_modules())


def test_a_lora_of_an_inpainting_model_does_not_fit_a_plain_one(tmp_path: Path, base: Path, out: Path) -> None:
    wide = kohya_lora(sd1_modules(replace(SD1_UNET, in_channels=9)))
    result = run(base, save(wide, tmp_path / "lora.safetensors"), "-o", out)
    assert result.exit_code == 1
    assert "[32, 9, 3, 3]" in result.stderr
    assert "[32, 4, 3, 3]" in result.stderr


def test_integers_markers_and_copies_stay(tmp_path: Path, lora: Path, out: Path) -> None:
    tensors = {
        **BASE,
        "v_pred": torch.zeros(0),
        "ztsnr": torch.zeros(0),
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(3, dtype=torch.float32),
        "alphas_cumprod": torch.linspace(1, 0, 1000),
        "global_step": torch.tensor(470000),
    }
    report = sdkit.merge(save(tensors, tmp_path / "base.safetensors"), {lora: 0.8}, out)
    assert_merged(out, tensors, expected(BASE, LORA, PLACES, 0.8))
    assert load(out)[POSITION_IDS].dtype == torch.int64
    assert any("EMA" in warning for warning in report.warnings)


def test_markers_survive_another_type(tmp_path: Path, lora: Path, out: Path) -> None:
    tensors = {**BASE, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    sdkit.merge(save(tensors, tmp_path / "base.safetensors"), lora, out, dtype="bf16")
    merged = load(out)
    assert merged["v_pred"].shape == merged["ztsnr"].shape == (0,)
    assert torch.equal(merged[POSITION_IDS], torch.arange(77)[None])


def test_drifted_position_ids_are_left_alone(tmp_path: Path, lora: Path, out: Path) -> None:
    tensors = {**BASE, POSITION_IDS: torch.arange(77, dtype=torch.float16)[None] * 0.5}
    sdkit.merge(save(tensors, tmp_path / "base.safetensors"), lora, out)
    assert_merged(out, tensors, expected(BASE, LORA, PLACES, 1.0))


def test_alpha_may_be_missing_or_an_integer(tmp_path: Path, base: Path, out: Path) -> None:
    adapter = kohya_lora(sd1_modules(), rank=4, alpha=None)
    whole = {f"{name}.alpha": torch.tensor(2) for name in list(sd1_modules())[::2]}
    sdkit.merge(base, save({**adapter, **whole}, tmp_path / "lora.safetensors"), out)
    assert_merged(out, BASE, expected(BASE, {**adapter, **whole}, PLACES, 1.0))


def test_a_tucker_core_counts(tmp_path: Path, base: Path, out: Path) -> None:
    name = "lora_unet_mid_block_resnets_0_conv1"
    rows, columns = sd1_modules()[name][:2]
    generator = torch.Generator().manual_seed(5)
    shapes = ([rows, 3, 1, 1], [3, 2, 3, 3], [2, columns, 1, 1])
    up, mid, down = (torch.randn(shape, generator=generator) for shape in shapes)
    parts = {"lora_up": up, "lora_mid": mid, "lora_down": down}
    adapter = {f"{name}.{part}.weight": tensor * 0.1 for part, tensor in parts.items()}
    sdkit.merge(base, {save(adapter, tmp_path / "lora.safetensors"): 0.5}, out)
    change = torch.einsum("or,rskl,si->oikl", up[:, :, 0, 0].double(), mid.double(), down[:, :, 0, 0].double()) * 1e-3
    key = PLACES[name].key
    assert_merged(out, BASE, {key: BASE[key].double() + 0.5 * change})


def test_other_kinds_of_change_are_baked_too(tmp_path: Path, base: Path, out: Path) -> None:
    linear = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    conv = "lora_unet_mid_block_resnets_0_conv1"
    generator = torch.Generator().manual_seed(6)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    loha = {f"{conv}.hada_w1_a": matrix(64, 2), f"{conv}.hada_w1_b": matrix(2, 576)}
    loha |= {f"{conv}.hada_w2_a": matrix(64, 2), f"{conv}.hada_w2_b": matrix(2, 576)}
    lokr = {f"{linear}.lokr_w1": matrix(4, 8), f"{linear}.lokr_w2": matrix(16, 8), f"{linear}.alpha": torch.tensor(1e9)}
    bias = {f"{conv}.diff_b": matrix(64)}
    sdkit.merge(base, {save({**loha, **lokr, **bias}, tmp_path / "lycoris.safetensors"): 0.5}, out)
    first = loha[f"{conv}.hada_w1_a"].double() @ loha[f"{conv}.hada_w1_b"].double()
    second = loha[f"{conv}.hada_w2_a"].double() @ loha[f"{conv}.hada_w2_b"].double()
    product = torch.kron(lokr[f"{linear}.lokr_w1"].double(), lokr[f"{linear}.lokr_w2"].double())
    changes = {
        PLACES[conv].key: (first * second).view(64, 64, 3, 3),
        PLACES[linear].key: product,
        PLACES[conv].key.replace("weight", "bias"): bias[f"{conv}.diff_b"].double(),
    }
    assert_merged(out, BASE, {key: BASE[key].double() + 0.5 * change for key, change in changes.items()})
