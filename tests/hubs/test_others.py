"""Plain addresses, and other file systems."""

from __future__ import annotations

import hashlib
from pathlib import Path

import models
import pytest
from web import Answer, Request, file_answer, serve

from sdkit.core.errors import SdkitError, UsageError
from sdkit.hubs import folder, hub_name
from sdkit.jobs.inspect import inspect
from sdkit.jobs.pull import local_path, pull, source_of
from sdkit.jobs.push import push


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    shapes = dict(list(models.sd1_modules().items())[:6])
    return models.save(models.kohya_lora(shapes, rank=2, alpha=1.0), tmp_path / "fox.safetensors")


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("https://example.com/fox.safetensors", "https"),
        ("http://example.com/fox.safetensors", None),
        ("http://localhost:1/fox.safetensors", "https"),
        ("https://huggingface.co/org/fox", "huggingface"),
        ("s3://bucket/fox.safetensors", "folder"),
        ("file:///tmp/fox.safetensors", "folder"),
    ],
)
def test_addresses_find_their_hub(reference: str, name: str | None) -> None:
    assert hub_name(reference) == name


def test_an_address_is_pulled_and_pinned_by_its_sha256(fox: Path) -> None:
    data, sha256 = fox.read_bytes(), hashlib.sha256(fox.read_bytes()).hexdigest()
    with serve(lambda request: file_answer(request, data)) as web:
        url = f"{web.url}/models/fox.safetensors"
        assert inspect(url).kind == "lora"
        report = pull(f"{url}#sha256={sha256}", name="fox")
        assert (report.kind, report.pinned) == ("lora", f"{url}#sha256={sha256}")
        assert Path(report.output).read_bytes() == data
        asked = len(web.requests)
        assert local_path(f"{url}#sha256={sha256}") == Path(report.output)
        assert len(web.requests) == asked
        with pytest.raises(SdkitError, match="not " + "0" * 64):
            pull(f"{url}#sha256={'0' * 64}")


def test_what_an_address_has_now_is_pulled(fox: Path, tmp_path: Path) -> None:
    """Without a pin, and whatever it had before; what has not changed is not downloaded again."""
    other = models.save(models.kohya_lora({"unet.x": (4, 4)}, rank=1), tmp_path / "b.safetensors")
    served = [fox]
    with serve(lambda request: file_answer(request, served[-1].read_bytes(), etag=f'"{len(served)}"')) as web:
        url = f"{web.url}/fox.safetensors"
        first, again = pull(url), pull(url)
        assert (first.state, again.state) == ("pulled", "here") and again.output == first.output
        served.append(other)
        assert Path(pull(url).output).read_bytes() == other.read_bytes()
        assert Path(first.output).read_bytes() == fox.read_bytes()


def test_a_pinned_address_is_always_named_so(fox: Path) -> None:
    """Or a merge would name its parent otherwise the second time."""
    sha256 = hashlib.sha256(fox.read_bytes()).hexdigest()
    with serve(lambda request: file_answer(request, fox.read_bytes())) as web:
        reference = f"{web.url}/fox.safetensors#sha256={sha256}"
        told = [source_of(local_path(reference)) for _ in range(2)]
    assert told == [{"source": reference, "sha256": sha256}] * 2


def test_an_address_without_a_pin_is_told(fox: Path) -> None:
    with serve(lambda request: file_answer(request, fox.read_bytes())) as web:
        assert "#sha256=" in pull(f"{web.url}/fox.safetensors").notes[0]


@pytest.mark.parametrize("path", ["/", "/a/%2e%2e", "/con.safetensors", "/..%2ffox.safetensors"])
def test_addresses_without_a_safe_name_are_refused(path: str) -> None:
    with serve(lambda request: Answer(200, b"1")) as web, pytest.raises(SdkitError):
        pull(f"{web.url}{path}")


def test_a_page_is_no_model() -> None:
    def page(request: Request) -> Answer:
        return file_answer(request, b"<!DOCTYPE html>" + b" " * 5000, headers={"Content-Type": "text/html"})

    with serve(page) as web, pytest.raises(SdkitError):
        pull(f"{web.url}/fox.safetensors")


def test_a_folder_is_pushed_to_and_pulled_from(fox: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    shelf = f"file://{tmp_path}/shelf"
    report = push(fox, shelf, licence="mit")
    assert (tmp_path / "shelf" / "fox.safetensors").read_bytes() == fox.read_bytes()
    assert (tmp_path / "shelf" / "README.md").read_text() == report.card
    assert pull(f"{shelf}/fox.safetensors", tmp_path / "again.safetensors").kind == "lora"
    assert inspect(shelf).kind == "lora"
    with pytest.raises(UsageError):
        push(fox, shelf, private=True)


def test_a_changed_file_of_a_folder_is_pulled_anew(fox: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    other = models.save(models.kohya_lora({"unet.x": (4, 4)}, rank=1), tmp_path / "b.safetensors")
    reference = f"file://{fox}"
    old = fox.read_bytes()
    first = pull(reference)
    assert pull(reference).output == first.output
    other.replace(fox)
    assert Path(pull(reference).output).read_bytes() == fox.read_bytes() != old == Path(first.output).read_bytes()


def test_no_bucket_is_made(fox: Path) -> None:
    """A misspelled one would be somebody else's, or public."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    check = folder._check_bucket
    check(system, "/rooted/models", "memory://rooted/models")
    with pytest.raises(SdkitError, match="there is no bucket mybuckte"):
        check(system, "mybuckte/models", "s3://mybuckte/models")


def test_a_pipeline_is_pulled_from_memory(tiny_base: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").put(str(tiny_base), "/bucket/sd", recursive=True)
    report = pull("memory://bucket/sd", tmp_path / "sd")
    assert (report.kind, report.family) == ("checkpoint", "sd1")
    for path in tiny_base.rglob("*"):
        if path.is_file():
            assert (tmp_path / "sd" / path.relative_to(tiny_base)).read_bytes() == path.read_bytes()


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(SdkitError, match="there is nothing"):
        pull(f"file://{tmp_path}/none.safetensors")
    with pytest.raises(UsageError, match="nosuch"):
        pull("nosuch://bucket/fox.safetensors")
