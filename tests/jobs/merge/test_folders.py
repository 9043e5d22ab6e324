"""Diffusers folders, which stay folders."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from merge_files import BASE, LORA, PLACES, refused
from models import SD1_TEXT, SD1_UNET, TEXT, UNET, assert_merged, expected, load, save, sd1_modules

import sdkit
from sdkit.families.clip import text_parameters
from sdkit.families.unet import unet_parameters
from sdkit.weights import positional


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
