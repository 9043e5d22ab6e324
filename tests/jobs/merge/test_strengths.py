"""How much of an adapter goes in: strengths, and factors for components."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from merge_files import BASE, LORA, PLACES, keys_in_file_order, run
from models import assert_merged, expected, kohya_lora, load, save, sd1_modules

import sdkit
from sdkit.core.errors import SdkitError, UsageError


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
