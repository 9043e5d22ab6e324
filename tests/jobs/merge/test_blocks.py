"""Strengths by block, in the spellings of the web UIs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from merge_files import BASE, LORA, PLACES, run
from models import UNET, assert_merged, bytes_of, expected, kohya_lora, load, save, sdxl, sdxl_modules

import sdkit


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
