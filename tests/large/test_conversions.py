"""`sdkit convert` there and back on files of the real shapes, compared by safetensors' own reader. Gigabytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from process import run
from safetensors import safe_open

pytestmark = pytest.mark.large

MEMORY_MIB = 300


def assert_identical(one: Path, other: Path) -> None:
    """Every tensor has the same name, type, shape and bytes."""
    with safe_open(one, "pt") as before, safe_open(other, "pt") as after:
        assert set(before.keys()) == set(after.keys())
        for name in before.keys():  # noqa: SIM118 - it is no dictionary
            left, right = before.get_tensor(name), after.get_tensor(name)
            assert (left.dtype, left.shape) == (right.dtype, right.shape), name
            assert torch.equal(left.flatten().view(torch.uint8), right.flatten().view(torch.uint8)), name


@pytest.mark.parametrize("name", ["sd15_a", "sdxl_a"])
def test_single_file_to_folder_to_single_file(made: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    source, folder, back = made(name), tmp_path / "folder", tmp_path / "back.safetensors"
    try:
        for given, to, out in ((source, "diffusers", folder), (folder, "single", back)):
            report = run("convert", given, "--to", to, "-o", out)
            assert report["proof"]["exact"] and report["unmatched"] == []
            dropped = [name for drop in report["dropped"] for name in drop["names"]]
            assert all(name.startswith("tokenizer") for name in dropped) and bool(dropped) == (given == folder)
            assert report["peak_memory_mib"] <= MEMORY_MIB
        assert_identical(source, back)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        back.unlink(missing_ok=True)
