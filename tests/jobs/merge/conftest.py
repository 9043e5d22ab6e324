"""Files that are merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from merge_files import BASE, LORA
from models import save, sdxl


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(BASE, tmp_path / "base.safetensors", {"format": "pt"})


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return save(LORA, tmp_path / "lora.safetensors")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


@pytest.fixture
def xl(tmp_path: Path) -> Path:
    return save(sdxl(), tmp_path / "xl.safetensors")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A LoRA that brings a token along."""
    return save({**LORA, "bundle_emb.dog.string_to_param.*": torch.ones(2, 32)}, tmp_path / "bundle.safetensors")
