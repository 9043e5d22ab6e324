"""A bucket of S3: moto answers as S3 does, and s3fs asks it. Both are large, so `make test-s3` installs them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import models
import pytest
import requests

from sdkit.core.errors import CredentialsError, SdkitError
from sdkit.jobs.inspect import inspect
from sdkit.jobs.models.show import show_model
from sdkit.jobs.pull import pull
from sdkit.jobs.push import push

s3fs = pytest.importorskip("s3fs", reason="`make test-s3` installs s3fs")
server = pytest.importorskip("moto.server", reason="`make test-s3` installs moto")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket, and credentials for it."""
    s3 = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    url = "http://{}:{}".format(*s3.get_host_and_port())
    requests.post(f"{url}/moto-api/reset", timeout=10)  # servers of a process share what lies on them
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-s3")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("shelf")
    yield "s3://shelf"
    s3fs.S3FileSystem.clear_instance_cache()
    s3.stop()


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    shapes = dict(list(models.sd1_modules().items())[:6])
    return models.save(models.kohya_lora(shapes, rank=2, alpha=1.0), tmp_path / "fox.safetensors")


def test_a_model_goes_to_a_prefix_and_comes_back(bucket: str, fox: Path, tmp_path: Path) -> None:
    report = push(fox, f"{bucket}/loras/fox", licence="mit")
    system = s3fs.S3FileSystem()
    assert sorted(system.ls("shelf/loras/fox")) == ["shelf/loras/fox/README.md", "shelf/loras/fox/fox.safetensors"]
    assert system.cat("shelf/loras/fox/README.md").decode() == report.card
    assert inspect(f"{bucket}/loras/fox").kind == "lora"
    pulled = pull(f"{bucket}/loras/fox", tmp_path / "again.safetensors")
    assert Path(pulled.output).read_bytes() == fox.read_bytes()
    assert show_model("fox").model.published[0].reference == f"{bucket}/loras/fox"


def test_an_object_is_pulled_once_until_it_changes(bucket: str, fox: Path, tmp_path: Path) -> None:
    other = models.save(models.kohya_lora({"unet.x": (4, 4)}, rank=1), tmp_path / "b.safetensors")
    system, reference = s3fs.S3FileSystem(), f"{bucket}/fox.safetensors"
    system.put(str(fox), "shelf/fox.safetensors")
    assert [pull(reference).state for _ in range(2)] == ["pulled", "here"]
    pinned = f"{reference}#sha256={hashlib.sha256(fox.read_bytes()).hexdigest()}"
    system.put(str(other), "shelf/fox.safetensors")
    assert Path(pull(reference).output).read_bytes() == other.read_bytes()
    assert Path(pull(pinned).output).read_bytes() == fox.read_bytes()  # which is here


def test_what_is_wrong_is_told(bucket: str, fox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SdkitError, match="there is nothing"):
        pull(f"{bucket}/none.safetensors")
    with pytest.raises(SdkitError, match="there is no bucket shlef"):
        push(fox, "s3://shlef/fox")
    assert s3fs.S3FileSystem().ls("") == ["shelf"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(CredentialsError, match="credentials"):
        pull(f"{bucket}/fox.safetensors")
