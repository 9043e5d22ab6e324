"""What every test may ask for."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys

# Before torch is imported: each of xdist's workers would start a thread per core, and they would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, serve_hub
from tiny import write_configs, write_sdxl_configs

from sdkit.weights import DTYPES
from sdkit.weights.header import build_header


@pytest.fixture(autouse=True)
def gradients_stay_on() -> Iterator[None]:
    """A generator that stops within `torch.no_grad` would take the gradients from every test after it."""
    yield
    torch = sys.modules.get("torch")
    assert torch is None or torch.is_grad_enabled()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real files that the environment variable SDKIT_TEST_DATA names; it has a folder ``data``."""
    folder = os.environ.get("SDKIT_TEST_DATA", "")
    if not folder:
        pytest.skip("SDKIT_TEST_DATA does not name the folder of real files")
    return Path(folder)


@pytest.fixture
def sparse(tmp_path: Path) -> Callable[..., Path]:
    """Make a safetensors file of any size that takes no space: a header, zeros, and `data` in some tensors.

    `sparse({"name": ("F16", [320, 768])}, metadata={…}, data={"name": bytes}, name="model.safetensors")`
    """

    def make(
        tensors: Mapping[str, tuple[str, Sequence[int]]],
        metadata: Mapping[str, str] | None = None,
        data: Mapping[str, bytes] | None = None,
        name: str = "model.safetensors",
    ) -> Path:
        rows = [(key, DTYPES[dtype], tuple(shape)) for key, (dtype, shape) in tensors.items()]
        position = header_size = len(header := build_header(rows, metadata or {}))
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(header)
            for key, dtype, shape in rows:
                file.seek(position)
                file.write((data or {}).get(key, b""))
                position += dtype.nbytes(math.prod(shape))
            file.truncate(max(position, header_size))
        return path

    return make


@pytest.fixture(scope="session")
def real_header() -> Callable[[str], dict[str, Any]]:
    """The table name → [dtype, shape] of a real model in ``tests/headers``, or name → shape of a list of modules."""

    def read(name: str) -> dict[str, Any]:
        table: dict[str, Any] = json.loads((Path(__file__).parent / "headers" / f"{name}.json").read_text())
        return table

    return read


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test computes goes into the cache of the person who runs it."""
    monkeypatch.setenv("SDKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a registry of its own, made when something is registered."""
    monkeypatch.setenv("SDKIT_HOME", str(tmp_path_factory.getbasetemp() / f"home-{next(_HOMES)}"))
    monkeypatch.delenv("SDKIT_REGISTRY", raising=False)


_HOMES = itertools.count()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1 pipeline folder with random weights; see `tiny`."""
    from sdkit.runtime.create import create_base

    folder = tmp_path_factory.mktemp("tiny")
    create_base(write_configs(folder / "configs"), folder / "base")
    return folder / "base"


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion XL pipeline folder with random weights; see `tiny`."""
    from sdkit.runtime.create import create_base

    folder = tmp_path_factory.mktemp("tiny-sdxl")
    create_base(write_sdxl_configs(folder / "configs"), folder / "base")
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


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine that huggingface_hub talks to, with a cache of its own; see `hub_server`."""
    from huggingface_hub import constants

    cache = tmp_path_factory.mktemp("hf")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # Read when huggingface_hub is imported, which has happened; the command line sets them before.
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # this Hub knows LFS alone
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def cache(hub: Hub) -> Path:
    """The folder of that cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
