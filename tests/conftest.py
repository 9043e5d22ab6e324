"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny import write_configs


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real files that the environment variable SDKIT_TEST_DATA names; it has a folder ``data``."""
    folder = os.environ.get("SDKIT_TEST_DATA", "")
    if not folder:
        pytest.skip("SDKIT_TEST_DATA does not name the folder of real files")
    return Path(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test computes goes into the cache of the person who runs it."""
    monkeypatch.setenv("SDKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1 pipeline folder with random weights; see `tiny`."""
    from sdkit.runtime.create import create_base

    folder = tmp_path_factory.mktemp("tiny")
    create_base(write_configs(folder / "configs"), folder / "base")
    return folder / "base"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five captioned pictures of 16 by 16 pixels, in two shapes."""
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        size = (16, 16) if number < 3 else (12, 24)
        Image.new("RGB", size, (50 * number, 255 - 40 * number, 90)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a ball, {number}")
    return folder
