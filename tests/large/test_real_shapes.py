"""`sdkit merge` on files of the real shapes, against a reference that shares no code with it. Minutes and gigabytes."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import oracle
import pytest
import torch
from process import run
from safetensors import safe_open

Made = Callable[[str], Path]
pytestmark = pytest.mark.large

STRENGTH = 0.8
MEMORY_MIB = 260
POSITIONS = {
    "sd15_a": ["cond_stage_model.transformer.text_model.embeddings.position_ids"],
    "sdxl_a": ["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"],
}


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """An output path; what lies there goes away at once, because it is large."""
    path = tmp_path / "out.safetensors"
    yield path
    for file in tmp_path.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def disney(test_data: Path) -> Path:
    return test_data / "data" / "adapters" / "lora-cloneofsimo" / "lora_disney.safetensors"


@pytest.fixture(scope="module")
def places(made: Made, test_data: Path) -> dict[str, oracle.Place]:
    config = test_data / "data" / "models" / "stable-diffusion-v1-5" / "unet" / "config.json"
    return oracle.sd1_places(made("sd15_a"), config)


def check_positions(base: Path, merged: Path, keys: list[str]) -> None:
    with safe_open(base, "pt") as before, safe_open(merged, "pt") as after:
        for key in keys:
            assert after.get_tensor(key).dtype == torch.int64
            assert torch.equal(after.get_tensor(key), before.get_tensor(key))
            assert torch.equal(after.get_tensor(key).flatten(), torch.arange(77))


def test_lora_into_sd15(made: Made, out: Path, places: dict[str, oracle.Place]) -> None:
    base, lora = made("sd15_a"), made("lora15")
    report = run("merge", base, lora, "--alpha", STRENGTH, "-o", out)
    changes = oracle.kohya_changes(lora, STRENGTH, places)
    assert (report["matched"], report["changed"], len(changes)) == (264, 264, 264)
    assert report["peak_memory_mib"] <= MEMORY_MIB
    oracle.check(base, out, changes)
    check_positions(base, out, POSITIONS["sd15_a"])


def test_lora_into_sdxl(made: Made, out: Path) -> None:
    base, lora = made("sdxl_a"), made("loraxl")
    report = run("merge", base, lora, "--alpha", STRENGTH, "-o", out)
    changes = oracle.kohya_changes(lora, STRENGTH, oracle.sdxl_places(base))
    # 32 layers' q, k and v share a tensor: 986 modules are 986 - 2 * 32 tensors.
    assert (report["matched"], report["changed"], len(changes)) == (986, 922, 922)
    assert report["peak_memory_mib"] <= MEMORY_MIB
    oracle.check(base, out, changes)
    check_positions(base, out, POSITIONS["sdxl_a"])


def test_a_real_lora_into_sd15(made: Made, disney: Path, out: Path, places: dict[str, oracle.Place]) -> None:
    base = made("sd15_a")
    report = run("merge", base, disney, "--alpha", STRENGTH, "-o", out)
    changes = oracle.positional_changes(disney, STRENGTH, places)
    assert (report["matched"], report["changed"], len(changes)) == (192, 192, 16 * 9 + 12 * 4)
    oracle.check(base, out, changes)
    with safe_open(disney, "pt") as file:
        for path, token in zip(report["saved"], ("<s1>", "<s2>"), strict=True):
            with safe_open(path, "pt") as saved:
                assert torch.equal(saved.get_tensor(token), file.get_tensor(token))


def test_two_loras_are_one_sum(made: Made, out: Path, places: dict[str, oracle.Place]) -> None:
    base, one, other = made("sd15_a"), made("lora15"), made("lora15_fp16")
    report = run("merge", base, f"{one}=0.5", f"{other}=-0.3", "-o", out)
    changes = oracle.added(oracle.kohya_changes(one, 0.5, places), oracle.kohya_changes(other, -0.3, places))
    assert (report["matched"], report["changed"]) == (528, 264)
    oracle.check(base, out, changes)


def test_the_bytes_do_not_depend_on_threads(made: Made, out: Path) -> None:
    hashes = set()
    for threads in (1, 2, 3):
        run("merge", made("sd15_a"), made("lora15"), "--alpha", STRENGTH, "-o", out, "--threads", threads, "--force")
        hashes.add(sha256(out))
    assert len(hashes) == 1


@pytest.mark.parametrize("name", ["BF16", "F32"])
def test_other_types_are_as_exact(made: Made, out: Path, places: dict[str, oracle.Place], name: str) -> None:
    base, lora = out.with_name(f"{name}.safetensors"), made("lora15")
    cast(made("sd15_a"), base, name)
    report = run("merge", base, lora, "--alpha", STRENGTH, "-o", out)
    assert report["changed"] == 264
    oracle.check(base, out, oracle.kohya_changes(lora, STRENGTH, places))
    check_positions(base, out, POSITIONS["sd15_a"])


def cast(source: Path, target: Path, name: str) -> None:
    """Write a copy whose float tensors are of another type, one tensor at a time."""
    fields, offset = {}, 0
    for key, entry in oracle.header(source).items():
        dtype = name if entry["dtype"] == "F16" else entry["dtype"]
        size = (entry["data_offsets"][1] - entry["data_offsets"][0]) * (2 if (dtype, name) == ("F32", "F32") else 1)
        fields[key] = {"dtype": dtype, "shape": entry["shape"], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(fields).encode()
    kind = {"BF16": torch.bfloat16, "F32": torch.float32}[name]
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in oracle.tensors(source):
            values = tensor.to(kind) if tensor.is_floating_point() else tensor
            file.write(memoryview(values.contiguous().flatten().view(torch.uint8).numpy()))


def test_undo_restores_every_byte(made: Made, out: Path) -> None:
    base, undo = made("sd15_a"), out.with_name("merge.undo")
    run("merge", base, made("lora15"), "--alpha", STRENGTH, "-o", out, "--undo", undo)
    assert sha256(out) != sha256(base)
    restored = out.with_name("restored.safetensors")
    report = run("unmerge", out, "--undo", undo, "-o", restored)
    assert report["exact"] is True
    assert sha256(restored) == sha256(base)


def test_unmerging_by_subtraction_is_within_a_unit(made: Made, out: Path) -> None:
    base, lora = made("sd15_a"), made("lora15")
    run("merge", base, lora, "--alpha", STRENGTH, "-o", out)
    restored = out.with_name("restored.safetensors")
    report = run("unmerge", out, lora, "-o", restored)
    assert report["exact"] is False
    assert report["subtraction"]["adapters"][0]["strength"] == -STRENGTH
    files = zip(oracle.tensors(base), oracle.tensors(out), oracle.tensors(restored), strict=True)
    for (key, before), (_, merged), (_, after) in files:
        if not before.is_floating_point():
            assert torch.equal(before, after), key
            continue
        # Each of the two roundings is half a unit of what was stored then, the larger of the two numbers' units.
        larger = torch.maximum(before.double().abs(), merged.double().abs())
        step = torch.ldexp(torch.full_like(larger, 2.0**-10), torch.frexp(larger)[1] - 1).clamp_(min=2.0**-24)
        assert float(((after.double() - before.double()).abs() / step).max()) <= 1.02, key
