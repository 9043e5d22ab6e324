"""Element types: what is kept, rounded once or at random, and what overflows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from merge_files import BASE, LORA, PLACES, run, sha256
from models import (
    UNET,
    Tensors,
    assert_merged,
    bytes_of,
    delta,
    error_in_ulps,
    expected,
    load,
    save,
    sd1,
    sd1_modules,
    ulp,
)

import sdkit

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
