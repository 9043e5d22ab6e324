"""`sdkit.merge` and `sdkit merge` from end to end, on small models in the real layouts."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from models import (
    SD1_TEXT,
    SD1_UNET,
    SDXL_TEXTS,
    TEXT,
    UNET,
    Tensors,
    assert_merged,
    bytes_of,
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
    ulp,
)
from safetensors import safe_open

import sdkit
from sdkit.cli.main import main
from sdkit.core.errors import SdkitError, UsageError
from sdkit.families.clip import text_parameters
from sdkit.families.unet import unet_parameters
from sdkit.weights import positional

PLACES = sd1_places()
BASE = sd1()
LORA = kohya_lora(sd1_modules())
POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(BASE, tmp_path / "base.safetensors", {"format": "pt"})


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return save(LORA, tmp_path / "lora.safetensors")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["merge", *map(str, arguments)])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


# --- strengths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "strength"),
    [
        (["lora.safetensors"], 1.0),
        (["lora.safetensors", "--alpha", "0.8"], 0.8),
        (["lora.safetensors", "--alpha", "-1.25"], -1.25),
        (["lora.safetensors=0.5", "--alpha", "0.8"], 0.5),
        (["lora.safetensors=-0.5"], -0.5),
    ],
)
def test_strength(
    monkeypatch: pytest.MonkeyPatch, base: Path, lora: Path, out: Path, arguments: list[str], strength: float
) -> None:
    monkeypatch.chdir(base.parent)
    result = run("base.safetensors", *arguments, "-o", "out.safetensors")
    assert result.exit_code == 0, result.stderr
    assert_merged(out, BASE, expected(BASE, LORA, PLACES, strength))


def test_the_keys_keep_their_order(base: Path, lora: Path, out: Path) -> None:
    sdkit.merge(base, lora, out)
    assert keys_in_file_order(out) == keys_in_file_order(base)


def keys_in_file_order(path: Path) -> list[str]:
    data = path.read_bytes()
    fields = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return [key for key in fields if key != "__metadata__"]


def test_components_have_factors_of_their_own(base: Path, lora: Path, out: Path) -> None:
    sdkit.merge(base, {lora: 0.8}, out, unet_alpha=0.5, te_alpha=-2.0)
    factors = {"lora_unet": 0.5, "lora_te": -2.0}
    assert_merged(out, BASE, expected(BASE, LORA, PLACES, lambda name: 0.8 * factors["_".join(name.split("_")[:2])]))


@pytest.mark.parametrize(("option", "prefix"), [("unet_alpha", "lora_unet"), ("te_alpha", "lora_te_")])
def test_a_factor_of_zero_leaves_the_component_alone(
    base: Path, lora: Path, out: Path, option: str, prefix: str
) -> None:
    report = sdkit.merge(base, lora, out, **{option: 0.0})
    rest = {key: tensor for key, tensor in LORA.items() if not key.startswith(prefix)}
    assert_merged(out, BASE, expected(BASE, rest, PLACES, 1.0))
    assert report.changed == len({key.partition(".")[0] for key in rest})


def test_several_adapters_are_one_sum_rounded_once(tmp_path: Path, base: Path, lora: Path, out: Path) -> None:
    second = kohya_lora(sd1_modules(), rank=7, alpha=None, seed=2)
    report = sdkit.merge(base, [(lora, 0.5), (save(second, tmp_path / "second.safetensors"), -0.3)], out)
    once = expected(BASE, LORA, PLACES, 0.5)
    assert_merged(out, BASE, expected({**BASE, **once}, second, PLACES, -0.3))
    assert [adapter.matched for adapter in report.adapters] == [len(sd1_modules())] * 2
    assert report.changed == len(sd1_modules())


def test_merging_what_cancels_gives_the_base(base: Path, lora: Path, out: Path) -> None:
    sdkit.merge(base, [(lora, 0.5), (lora, -0.5)], out)
    merged = load(out)
    assert all(torch.equal(merged[key], before) for key, before in BASE.items())  # but for the sign of a zero


def test_nothing_to_do_is_an_error(base: Path, lora: Path, out: Path) -> None:
    with pytest.raises(SdkitError, match="nothing would change"):
        sdkit.merge(base, {lora: 0.0}, out)
    assert not out.exists()


@pytest.mark.parametrize("strength", ["inf", "nan"])
def test_a_strength_is_a_finite_number(base: Path, lora: Path, out: Path, strength: str) -> None:
    result = run(base, f"{lora}={strength}", "-o", out)
    assert result.exit_code == 2
    assert "no finite number" in result.stderr


@pytest.mark.parametrize("option", ["unet_alpha", "te_alpha"])
def test_a_factor_is_a_finite_number(base: Path, lora: Path, out: Path, option: str) -> None:
    with pytest.raises(UsageError, match="finite"):
        sdkit.merge(base, lora, out, **{option: float("nan")})


# --- blocks ------------------------------------------------------------------------------------------------------


def sd1_block(name: str) -> str:
    """The web UIs' name of the block a module lies in."""
    key = PLACES[name].key.removeprefix(UNET)
    part, index = key.split(".")[0], key.split(".")[1]
    if key.startswith("input_blocks."):
        return f"IN{int(index):02d}"
    if key.startswith("output_blocks."):
        return f"OUT{int(index):02d}"
    if key.startswith("out."):
        return "OUT11"
    return "M00" if part == "middle_block" else "BASE"


EVERY_BLOCK = ["BASE", *(f"IN{i:02d}" for i in range(12)), "M00", *(f"OUT{i:02d}" for i in range(12))]
ATTENTION = ["BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{i:02d}" for i in range(3, 12))]


def numbers(names: list[str]) -> dict[str, float]:
    return {name: round(0.1 * (index + 1), 1) for index, name in enumerate(names)}


@pytest.mark.parametrize(
    ("spec", "factors"),
    [
        ("IN04=0.5,OUT*=0.2", {"IN04": 0.5, **{name: 0.2 for name in EVERY_BLOCK if name.startswith("OUT")}}),
        ("OUT*=0.2,OUT05=0", {**{name: 0.2 for name in EVERY_BLOCK if name.startswith("OUT")}, "OUT05": 0.0}),
        ("BASE=0,MID=-1", {"BASE": 0.0, "M00": -1.0}),
        ('{"IN0[12]": 0.25}', {"IN01": 0.25, "IN02": 0.25}),
        (",".join(map(str, numbers(EVERY_BLOCK).values())), numbers(EVERY_BLOCK)),
        (json.dumps(list(numbers(ATTENTION).values())), numbers(ATTENTION)),
    ],
)
def test_blocks(base: Path, lora: Path, out: Path, spec: str, factors: Mapping[str, float]) -> None:
    result = run(base, lora, "-o", out, "--blocks", spec, "--alpha", "0.5")
    assert result.exit_code == 0, result.stderr
    assert_merged(out, BASE, expected(BASE, LORA, PLACES, lambda name: 0.5 * factors.get(sd1_block(name), 1.0)))


def test_a_mapping_of_blocks(base: Path, lora: Path, out: Path) -> None:
    sdkit.merge(base, lora, out, blocks={"M00": 0.5})
    assert_merged(out, BASE, expected(BASE, LORA, PLACES, lambda name: 0.5 if sd1_block(name) == "M00" else 1.0))


@pytest.mark.parametrize("count", [12, 20])
def test_lists_of_blocks_fit_sdxl(tmp_path: Path, out: Path, count: int) -> None:
    base = save(sdxl(), tmp_path / "base.safetensors")
    lora = save(kohya_lora(sdxl_modules()), tmp_path / "lora.safetensors")
    factors = [0.0] * count
    factors[0] = 1.0  # BASE: the text encoders and what lies outside the blocks
    report = sdkit.merge(base, lora, out, blocks=factors)
    before = load(base)
    changed = [key for key, tensor in load(out).items() if bytes_of(tensor) != bytes_of(before[key])]
    assert len(changed) == report.changed > 0
    assert not [key for key in changed if ".transformer_blocks." in key]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("IN99=0.5", "no block is called 'IN99'"),
        ("1,2,3", "3 numbers"),
        ("IN04=much", "is not a number"),
        ("", "empty"),
        ('{"IN04": 0.5', "no valid JSON"),
        ("IN04=nan", "finite"),
    ],
)
def test_wrong_blocks_are_a_usage_error(base: Path, lora: Path, out: Path, spec: str, message: str) -> None:
    result = run(base, lora, "-o", out, "--blocks", spec)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


# --- element types -----------------------------------------------------------------------------------------------

TYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


@pytest.mark.parametrize("name", TYPES)
def test_a_chosen_type_holds_for_every_float_and_rounds_once(base: Path, lora: Path, out: Path, name: str) -> None:
    sdkit.merge(base, {lora: 0.8}, out, dtype=name)
    merged, changed = load(out), expected(BASE, LORA, PLACES, 0.8)
    for key, before in BASE.items():
        if not before.is_floating_point():
            assert torch.equal(merged[key], before)
            continue
        assert merged[key].dtype == TYPES[name]
        assert error_in_ulps(merged[key], changed.get(key, before.double())) <= 0.51, key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2])
def test_the_bases_own_type_stays(tmp_path: Path, lora: Path, out: Path, dtype: torch.dtype) -> None:
    tensors = sd1(dtype=dtype)
    sdkit.merge(save(tensors, tmp_path / "base.safetensors"), {lora: 0.8}, out)
    assert_merged(out, tensors, expected(tensors, LORA, PLACES, 0.8))


@pytest.mark.parametrize("name", ["bf16", "fp8_e4m3", "fp16"])
def test_stochastic_rounding_is_seeded_and_right_on_average(base: Path, lora: Path, out: Path, name: str) -> None:
    exact, drift, count = expected(BASE, LORA, PLACES, 0.01), 0.0, 0
    results = {}
    for seed in (1, 1, 2):
        sdkit.merge(base, {lora: 0.01}, out, dtype=name, stochastic=seed, force=True)
        assert results.setdefault(seed, sha256(out)) == sha256(out)
    assert len(set(results.values())) == 2
    merged = load(out)
    for key, values in exact.items():
        steps = ((merged[key].double() - values) / ulp(values, TYPES[name])).flatten()
        assert float(steps.abs().max()) <= 1.0 + 1e-3  # one of the two neighbours
        drift, count = drift + float(steps.sum()), count + steps.numel()
    # Each error has a standard deviation of at most half a unit.
    assert abs(drift / count) < 5 * 0.5 / count**0.5


def test_coarse_types_are_mentioned(tmp_path: Path, lora: Path, out: Path) -> None:
    report = sdkit.merge(save(sd1(dtype=torch.bfloat16), tmp_path / "base.safetensors"), lora, out)
    assert any("BF16" in warning and "--stochastic" in warning for warning in report.warnings)


def test_an_unknown_type_is_a_usage_error(base: Path, lora: Path, out: Path) -> None:
    result = run(base, lora, "-o", out, "--dtype", "int8")
    assert result.exit_code == 2
    assert "bf16" in result.stderr


def test_overflow_names_the_key(base: Path, lora: Path, out: Path) -> None:
    result = run(base, f"{lora}=1e9", "-o", out)
    assert result.exit_code == 1
    assert "does not fit F16" in result.stderr
    assert any(place.key in result.stderr for place in PLACES.values())
    assert not out.exists()


def test_scaled_fp8_changes_by_what_was_asked(tmp_path: Path, lora: Path, out: Path) -> None:
    tensors, scales = scaled_fp8(BASE)
    report = sdkit.merge(save({**tensors, **scales}, tmp_path / "base.safetensors"), {lora: 0.8}, out)
    merged = load(out)
    assert report.changed == len(sd1_modules())
    for name in sd1_modules():
        key = PLACES[name].key
        scale = float(scales[key.removesuffix("weight") + "scale_weight"])
        wanted = tensors[key].double() * scale + 0.8 * delta(LORA, name).view(tensors[key].shape)
        assert error_in_ulps(merged[key], wanted / scale) <= 0.51, key
    for key, value in scales.items():
        assert bytes_of(merged[key]) == bytes_of(value)


def scaled_fp8(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """A checkpoint as ComfyUI's scaled fp8 stores it: every matrix divided by a number of its own."""
    stored, scales = dict(tensors), {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    for number, name in enumerate(sd1_modules()):
        key = PLACES[name].key
        scale = 0.001 * (1 + number % 7)
        stored[key] = (tensors[key].float() / scale).clamp(-300, 300).to(torch.float8_e4m3fn)
        scales[key.removesuffix("weight") + "scale_weight"] = torch.tensor(scale)
    return stored, scales


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_an_impossible_scale_is_an_error(tmp_path: Path, lora: Path, out: Path, scale: float) -> None:
    tensors, scales = scaled_fp8(BASE)
    scales[f"{UNET}middle_block.1.proj_in.scale_weight"] = torch.tensor(scale)
    result = run(save({**tensors, **scales}, tmp_path / "base.safetensors"), lora, "-o", out)
    assert result.exit_code == 1
    assert "middle_block.1.proj_in.scale_weight" in result.stderr
    assert "unexpectedly" not in result.stderr


def test_scaled_fp8_keeps_its_type(tmp_path: Path, lora: Path, out: Path) -> None:
    tensors, scales = scaled_fp8(BASE)
    result = run(save({**tensors, **scales}, tmp_path / "base.safetensors"), lora, "-o", out, "--dtype", "fp16")
    assert result.exit_code == 1
    assert "scaled fp8" in result.stderr


# --- traps of real layouts ---------------------------------------------------------------------------------------


@pytest.fixture
def xl(tmp_path: Path) -> Path:
    return save(sdxl(), tmp_path / "xl.safetensors")


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


# --- what is said and written ------------------------------------------------------------------------------------


def test_the_default_output_is_named_after_its_parents(monkeypatch: pytest.MonkeyPatch, base: Path, lora: Path) -> None:
    folder = base.parent / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    result = run(base, lora)
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in folder.iterdir()] == ["base+lora.safetensors"]
    assert "base+lora.safetensors" in result.stdout


def test_a_dry_run_writes_nothing(base: Path, lora: Path, out: Path) -> None:
    before = sorted(base.parent.iterdir())
    result = run(base, lora, "-o", out, "--dry-run", "--undo", base.parent / "undo")
    assert result.exit_code == 0, result.stderr
    assert "nothing was written" in result.stdout
    assert sorted(base.parent.iterdir()) == before


def test_json_is_the_report(base: Path, lora: Path, out: Path) -> None:
    result = run(base, f"{lora}=0.8", "-o", out, "--json")
    report = json.loads(result.stdout)
    count = len(sd1_modules())
    assert {key: report[key] for key in ("family", "matched", "unmatched", "changed", "tensors", "overflowed")} == {
        "family": "sd1",
        "matched": count,
        "unmatched": [],
        "changed": count,
        "tensors": len(BASE),
        "overflowed": [],
    }
    assert report["output"] == str(out)
    assert report["dry_run"] is False
    assert report["seconds"] > 0
    assert report["adapters"][0]["format"] == "kohya"
    assert [(entry["name"], entry["role"]) for entry in report["parents"]] == [
        ("base.safetensors", "base"),
        ("lora.safetensors", "adapter"),
    ]
    assert result.stderr == ""


def test_factors_that_were_asked_for_are_said(base: Path, lora: Path, out: Path) -> None:
    said = run(base, lora, "-o", out, "--te-alpha", "0.5", "--blocks", "IN04=0.5", "--dry-run").stdout
    assert said.startswith("factors: text encoders × 0.5, blocks IN04=0.5\n")
    assert run(base, lora, "-o", out, "--dry-run").stdout.startswith("would merge")


def test_quiet_prints_the_path(base: Path, lora: Path, out: Path) -> None:
    result = run(base, lora, "-o", out, "-q")
    assert (result.stdout, result.stderr) == (f"{out}\n", "")


def test_the_metadata_tell_the_recipe_and_no_secret(tmp_path: Path, lora: Path, out: Path) -> None:
    stale = {"modelspec.hash_sha256": "0xabc", "sshs_model_hash": "abc", "sshs_legacy_hash": "abc"}
    said = {"format": "pt", "modelspec.title": "Mine", "modelspec.prediction_type": "v", "note": "kept"}
    base = save(BASE, tmp_path / "base.safetensors", {**said, **stale})
    sdkit.merge(base, {lora: 0.8}, out, te_alpha=0.5, blocks="IN04=0.5")
    written = metadata(out)
    assert not stale.keys() & written.keys()
    assert {key: written[key] for key in said} == said
    recipe = json.loads(written["sdkit.recipe"])
    assert recipe["verb"] == "merge"
    assert [entry["name"] for entry in recipe["parents"]] == ["base.safetensors", "lora.safetensors"]
    assert recipe["parents"][1]["strength"] == 0.8
    assert (recipe["te_alpha"], recipe["blocks"]) == (0.5, {"IN04": 0.5})
    assert "unet_alpha" not in recipe
    assert written["modelspec.merged_from"] == "base.safetensors, lora.safetensors"
    assert str(tmp_path) not in json.dumps(written)


def test_merging_again_keeps_the_lineage(tmp_path: Path, base: Path, lora: Path, out: Path) -> None:
    sdkit.merge(base, {lora: 0.8}, out)
    again = tmp_path / "again.safetensors"
    sdkit.merge(out, {lora: -0.2}, again)
    recipe = json.loads(metadata(again)["sdkit.recipe"])
    assert recipe["base_recipe"] == json.loads(metadata(out)["sdkit.recipe"])


def test_the_same_command_gives_the_same_bytes(tmp_path: Path, base: Path, lora: Path) -> None:
    hashes = set()
    for number, threads in enumerate((1, 2, 3, None)):
        path = tmp_path / f"{number}.safetensors"
        sdkit.merge(base, {lora: 0.8}, path, threads=threads)
        hashes.add(sha256(path))
    assert len(hashes) == 1


def test_the_same_stochastic_command_gives_the_same_bytes(tmp_path: Path, base: Path, lora: Path) -> None:
    hashes = set()
    for threads in (1, 3):
        path = tmp_path / f"{threads}.safetensors"
        sdkit.merge(base, {lora: 0.8}, path, threads=threads, dtype="bf16", stochastic=7)
        hashes.add(sha256(path))
    assert len(hashes) == 1


# --- files beside the output -------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A LoRA that brings a token along."""
    return save({**LORA, "bundle_emb.dog.string_to_param.*": torch.ones(2, 32)}, tmp_path / "bundle.safetensors")


def test_tokens_are_saved_beside(base: Path, bundle: Path, out: Path) -> None:
    report = sdkit.merge(base, bundle, out)
    assert_merged(out, BASE, expected(BASE, LORA, PLACES, 1.0))
    (saved,) = map(Path, report.saved)
    assert saved == out.with_name("out.dog.safetensors")
    assert torch.equal(load(saved)["dog"], torch.ones(2, 32))
    assert report.adapters[0].tokens == ("dog",)


def test_no_token_is_left_of_a_merge_that_fails(base: Path, bundle: Path, out: Path) -> None:
    with pytest.raises(SdkitError, match="does not fit"):
        sdkit.merge(base, {bundle: 1e9}, out)
    assert sorted(out.parent.iterdir()) == [base, bundle]


@pytest.mark.parametrize("victim", ["base", "lora", "out"])
def test_the_undo_file_replaces_nothing_that_matters(base: Path, lora: Path, out: Path, victim: str) -> None:
    hashes = sha256(base), sha256(lora)
    undo = {"base": base, "lora": lora, "out": out}[victim]
    result = run(base, lora, "-o", out, "--undo", undo, "--force")
    assert result.exit_code == 1
    assert str(undo) in result.stderr
    assert (sha256(base), sha256(lora)) == hashes
    assert not out.exists()


def test_a_token_does_not_replace_an_input(base: Path, bundle: Path) -> None:
    adapter = bundle.rename(bundle.with_name("out.dog.safetensors"))
    before = sha256(adapter)
    result = run(base, adapter, "-o", adapter.with_name("out.safetensors"), "--force")
    assert result.exit_code == 1
    assert "is an input of this merge" in result.stderr
    assert sha256(adapter) == before


def test_undo_and_subtraction(base: Path, lora: Path, out: Path) -> None:
    undo = out.with_name("merge.undo")
    sdkit.merge(base, {lora: 0.8}, out, te_alpha=0.5, blocks="M00=0.1", undo=undo)
    restored = out.with_name("restored.safetensors")
    assert sdkit.unmerge(out, undo=undo, output=restored).exact
    assert restored.read_bytes() == base.read_bytes()
    report = sdkit.unmerge(out, [lora], out.with_name("subtracted.safetensors"))
    assert not report.exact
    merged = load(out)
    for key, tensor in load(Path(report.output)).items():
        larger = torch.maximum(BASE[key].double().abs(), merged[key].double().abs())
        error = (tensor.double() - BASE[key].double()).abs() / ulp(larger, torch.float16)
        assert float(error.max()) <= 1.02, key


# --- bad input: a reason, a hint, exit code 1, nothing left behind, nothing touched ------------------------------


def refused(base: Path, lora: Path, *options: object, output: Path | None = None) -> str:
    """Merge, which must fail without changing anything in the folder; what was said."""
    folder = base.parent
    before = {path: content(path) for path in folder.rglob("*")}
    result = run(base, lora, "-o", output or folder / "out.safetensors", *options)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert "\nhint: " in result.stderr
    assert "unexpectedly" not in result.stderr
    assert result.stdout == ""
    assert {path: content(path) for path in folder.rglob("*")} == before
    return result.stderr


def content(path: Path) -> str:
    return sha256(path) if path.is_file() else "folder"


def with_header(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a file's header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    fields = json.loads(data[8 : 8 + length])
    edit(fields)
    text = json.dumps(fields).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def overlap(path: Path) -> None:
    def edit(fields: dict[str, Any]) -> None:
        tensors = sorted((entry["data_offsets"], key) for key, entry in fields.items() if key != "__metadata__")
        (_, first), (_, second) = next(
            (a, b) for a, b in zip(tensors, tensors[1:], strict=False) if a[0][1] - a[0][0] == b[0][1] - b[0][0] > 4
        )
        fields[second]["data_offsets"] = fields[first]["data_offsets"]

    with_header(path, edit)


def hole(path: Path) -> None:
    def edit(fields: dict[str, Any]) -> None:
        del fields[next(key for key in fields if key != "__metadata__")]

    with_header(path, edit)


def ten_gigabytes(path: Path) -> None:
    path.write_bytes((10 * 1000**3).to_bytes(8, "little") + path.read_bytes()[8:])


def duplicate(path: Path) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip()
    key, entry = next(item for item in json.loads(text).items() if item[0] != "__metadata__")
    text = text[:-1] + f', "{key}": {json.dumps(entry)}}}'.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def cut_inside_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def web_page(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html><html>401 Unauthorized</html>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def evil_pickle(path: Path) -> None:
    """A pickle that, unpickled, would make a file beside itself."""
    command = f"touch {path.parent / 'executed'}"
    path.write_bytes(b"\x80\x02cposix\nsystem\nX" + len(command).to_bytes(4, "little") + command.encode() + b"\x85R.")


def evil_archive(path: Path) -> None:
    """The same in the container of today's torch."""
    evil_pickle(path)
    code = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/version", "3")


DAMAGES = {
    overlap: "overlap",
    hole: "hole",
    ten_gigabytes: "10,000,000,000",
    duplicate: "twice",
    truncated: "truncated",
    cut_inside_the_header: "truncated",
    garbage: "not a safetensors file",
    web_page: "not a safetensors file",
    empty: "only 0 bytes",
    evil_pickle: "posix.system",
    evil_archive: "posix.system",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("victim", ["base", "lora"])
def test_damaged_files(base: Path, lora: Path, damage: Callable[[Path], None], victim: str) -> None:
    path = {"base": base, "lora": lora}[victim]
    damage(path)
    said = refused(base, lora)
    assert str(path) in said
    assert DAMAGES[damage] in said
    assert not (path.parent / "executed").exists()


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


@pytest.mark.parametrize("victim", ["base", "lora"])
@pytest.mark.parametrize("spelling", ["same", "dotted", "symlink", "hardlink", "through a linked folder"])
@pytest.mark.parametrize("options", [[], ["--force"]])
def test_the_output_is_no_input(base: Path, lora: Path, victim: str, spelling: str, options: list[str]) -> None:
    path = {"base": base, "lora": lora}[victim]
    other = path.with_name(f"other-{path.name}")
    if spelling == "dotted":
        other = path.parent / "." / ".." / path.parent.name / path.name
    elif spelling == "symlink":
        other.symlink_to(path)
    elif spelling == "hardlink":
        other.hardlink_to(path)
    elif spelling == "through a linked folder":
        (path.parent / "linked").symlink_to(path.parent)
        other = path.parent / "linked" / path.name
    else:
        other = path
    before = sha256(path)
    result = run(base, lora, "-o", other, *options)
    assert result.exit_code == 1
    assert "is an input of this merge" in result.stderr
    assert sha256(path) == before
    assert other.is_symlink() == (spelling == "symlink")


def test_an_existing_output_stays_unless_forced(base: Path, lora: Path, out: Path) -> None:
    out.write_text("precious")
    assert "already exists" in refused(base, lora, output=out)
    assert out.read_text() == "precious"
    sdkit.merge(base, lora, out, force=True)
    assert_merged(out, BASE, expected(BASE, LORA, PLACES, 1.0))


def test_an_output_in_a_folder_that_is_not_there(base: Path, lora: Path) -> None:
    assert "mkdir -p" in refused(base, lora, output=base.parent / "missing" / "out.safetensors")


def test_a_full_disk_is_seen_beforehand(monkeypatch: pytest.MonkeyPatch, base: Path, lora: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert "the disk has" in refused(base, lora)


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("room", [0, 1000, 100_000, 1_000_000])
def test_a_disk_that_fills_half_way(
    monkeypatch: pytest.MonkeyPatch, base: Path, bundle: Path, room: int, accelerated: bool
) -> None:
    left, write = [room], positional.write

    def limited(descriptor: int, data: memoryview, offset: int) -> None:
        if left[0] < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(data)
        write(descriptor, data, offset)

    monkeypatch.setattr(positional, "write", limited)
    monkeypatch.setattr(positional, "ACCELERATED", accelerated)
    said = refused(base, bundle, "--undo", base.parent / "undo")
    assert "disk" in said or "space" in said


KILLED = """
import os, signal, sys
from sdkit.weights import positional
import sdkit
left, write = [int(sys.argv[4])], positional.write
def limited(descriptor, data, offset):
    left[0] -= len(data)
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write(descriptor, data, offset)
positional.write = limited
sdkit.merge(*sys.argv[1:4], force=True)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="only Linux has files without a name")
@pytest.mark.parametrize("room", [10_000, 1_000_000])
def test_a_killed_process_leaves_the_old_file_and_nothing_else(base: Path, lora: Path, out: Path, room: int) -> None:
    out.write_text("old")
    before = {path: sha256(path) for path in out.parent.iterdir()}
    done = subprocess.run([sys.executable, "-c", KILLED, base, lora, out, str(room)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert {path: sha256(path) for path in out.parent.iterdir()} == before


# --- folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A diffusers folder with the same weights as `BASE`."""
    folder = tmp_path / "pipeline"
    tables = {"unet": (UNET, unet_parameters(SD1_UNET)), "text_encoder": (SD1_TEXT, text_parameters(TEXT, "hf"))}
    index = {name: ["diffusers", "Any"] for name in tables}
    for name, (prefix, table) in tables.items():
        (folder / name).mkdir(parents=True)
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        save({row.hub: BASE[prefix + row.ldm] for row in table}, folder / name / f"{stem}.safetensors")
        (folder / name / "config.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_folder_becomes_a_folder(pipeline: Path, lora: Path, tmp_path: Path) -> None:
    report = sdkit.merge(pipeline, {lora: 0.8}, tmp_path / "merged")
    assert report.matched == len(sd1_modules())
    changed = expected(BASE, LORA, PLACES, 0.8)
    for name, prefix, table in (
        ("unet/diffusion_pytorch_model", UNET, unet_parameters(SD1_UNET)),
        ("text_encoder/model", SD1_TEXT, text_parameters(TEXT, "hf")),
    ):
        before = load(pipeline / f"{name}.safetensors")
        wanted = {row.hub: changed[prefix + row.ldm] for row in table if prefix + row.ldm in changed}
        assert_merged(tmp_path / "merged" / f"{name}.safetensors", before, wanted)
    files = {str(path.relative_to(pipeline)) for path in pipeline.rglob("*")}
    assert {str(path.relative_to(tmp_path / "merged")) for path in (tmp_path / "merged").rglob("*")} == files


def test_a_folder_is_not_replaced_unless_it_is_a_model(pipeline: Path, lora: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("precious")
    assert "holds no model" in refused(pipeline, lora, "--force", output=home)
    merged = tmp_path / "merged"
    sdkit.merge(pipeline, lora, merged)
    assert "already exists" in refused(pipeline, lora, output=merged)
    sdkit.merge(pipeline, lora, merged, force=True)


def test_a_folder_that_holds_an_input_or_lies_in_one_is_no_output(pipeline: Path, lora: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    assert "holds" in refused(pipeline, lora, "--force", output=tmp_path)
    assert "lies inside" in refused(pipeline, lora, output=pipeline / "merged")


def test_a_folder_with_a_full_disk_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, pipeline: Path, lora: Path, tmp_path: Path
) -> None:
    write, left = positional.write, [500_000]

    def limited(descriptor: int, data: memoryview, offset: int) -> None:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor, data, offset)

    monkeypatch.setattr(positional, "write", limited)
    assert "disk became full" in refused(pipeline, lora, output=tmp_path / "merged")
