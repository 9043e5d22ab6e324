from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub, card
from web import Answer

from sdkit.core.errors import CredentialsError, SdkitError, UsageError
from sdkit.core.progress import NoProgress
from sdkit.hubs import huggingface, is_reference, load_hub
from sdkit.hubs.http import Client
from sdkit.hubs.huggingface import fetch, resolve

DATA = bytes(range(256)) * 500
QUIET = NoProgress()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits."""
    make = huggingface._client
    monkeypatch.setattr(huggingface, "_client", lambda repo: replace(make(repo), sleep=lambda seconds: None))
    assert isinstance(huggingface._client("a/b"), Client)


@pytest.mark.parametrize(
    "reference",
    ["hf:org/repo", "hf:org/repo/a/b.safetensors@v1", "https://huggingface.co/org/repo/blob/main/a.safetensors"],
)
def test_references_are_known_by_how_they_are_written(reference: str) -> None:
    assert is_reference(reference)
    assert load_hub(reference)[0] == "huggingface"


def test_paths_are_no_references() -> None:
    assert not any(
        map(is_reference, ["a.safetensors", "C:\\a", "C:a", "./hf", "dir/hf:org", "hf", "lora:a.safetensors"])
    )


@pytest.mark.parametrize("reference", ["hf:", "hf:a/../b", "hf:a b/c", "hf:/a/b"])
def test_bad_references_are_refused(reference: str) -> None:
    with pytest.raises(UsageError):
        resolve(reference)


def test_a_file_is_pinned_verified_and_kept_with_its_card(hub: Hub, cache: Path) -> None:
    about = card(license="openrail", base_model="org/base", instance_prompt="a sks fox", tags=["lora"])
    repository = hub.add("org/fox", {"pytorch_lora_weights.safetensors": DATA, "README.md": about, "other.png": b"1"})
    offer = resolve("hf:org/fox")
    assert offer.pinned == f"hf:org/fox/pytorch_lora_weights.safetensors@{repository.head}"
    assert (offer.licence, offer.base_model, offer.triggers) == ("openrail", ("org/base",), ("a sks fox",))
    assert (offer.name, offer.sha256, offer.size) == ("fox", hashlib.sha256(DATA).hexdigest(), len(DATA))

    path = fetch(offer, None, QUIET)
    assert path.read_bytes() == DATA
    assert path.with_name("README.md").read_bytes() == about
    assert not path.with_name("other.png").exists()
    # huggingface_hub itself finds it there without asking.
    from huggingface_hub import hf_hub_download

    name = "pytorch_lora_weights.safetensors"
    assert hf_hub_download("org/fox", name, revision=repository.head, local_files_only=True, cache_dir=cache) == str(
        path
    )


def test_what_is_in_the_cache_is_not_downloaded_again(hub: Hub) -> None:
    hub.add("org/fox", {"fox.safetensors": DATA})
    from huggingface_hub import HfApi, constants

    HfApi(endpoint=hub.url).hf_hub_download("org/fox", "fox.safetensors", cache_dir=constants.HF_HUB_CACHE)
    before = len(hub.storage.requests)
    assert fetch(resolve("hf:org/fox"), None, QUIET).read_bytes() == DATA
    assert len(hub.storage.requests) == before


def test_a_damaged_file_of_the_cache_is_fetched_anew(hub: Hub) -> None:
    hub.add("org/fox", {"fox.safetensors": DATA})
    path = fetch(resolve("hf:org/fox"), None, QUIET)
    path.resolve().write_bytes(b"?" + DATA[1:])
    assert fetch(resolve("hf:org/fox"), None, QUIET).read_bytes() == DATA


def test_a_download_from_the_hub_interrupted_20_times_arrives_whole(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/fox", {"fox.safetensors": DATA})
    hub.storage_answers = [
        lambda answer, at=at: replace(answer, break_after=137 * at % 5000, reset=bool(at % 2)) for at in range(20)
    ]
    fetch(resolve("hf:org/fox"), tmp_path / "fox.safetensors", QUIET)
    assert hub.storage_answers == []
    assert (tmp_path / "fox.safetensors").read_bytes() == DATA


def test_a_revision_is_what_it_was(hub: Hub) -> None:
    repository = hub.add("org/fox", {"fox.safetensors": DATA})
    first = repository.head
    hub.blobs[hashlib.sha256(b"new").hexdigest()] = b"new"
    repository.commit({"fox.safetensors": b"new"})
    assert fetch(resolve("hf:org/fox"), None, QUIET).read_bytes() == b"new"
    assert fetch(resolve(f"hf:org/fox/fox.safetensors@{first}"), None, QUIET).read_bytes() == DATA


def test_a_pipeline_is_a_folder_of_its_best_files(hub: Hub, tmp_path: Path) -> None:
    files = {
        "model_index.json": b"{}",
        "sd.ckpt": b"1",
        "sd.safetensors": b"2",
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": b"3",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"4",
        "unet/diffusion_pytorch_model.bin": b"5",
        "text_encoder/config.json": b"{}",
        "text_encoder/model.fp16.safetensors": b"6",
        "text_encoder/model.safetensors": b"7",
        "tokenizer/vocab.json": b"{}",
        "tokenizer/merges.txt": b"",
        "images/one.png": b"8",
        "README.md": card(license="mit"),
    }
    hub.add("org/sd", files)
    offer = resolve("hf:org/sd")
    assert offer.is_folder
    assert "fp16 safetensors" in offer.why
    assert offer.others == ("hf:org/sd/sd.ckpt", "hf:org/sd/sd.safetensors")
    expected = {
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "README.md",
    }
    cached, written = fetch(offer, None, QUIET), fetch(offer, tmp_path / "sd", QUIET)
    for folder in (cached, written):
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == expected
    component = fetch(resolve("hf:org/sd/unet"), tmp_path / "unet", QUIET)
    found = {path.relative_to(component).as_posix() for path in component.rglob("*") if path.is_file()}
    assert found == {"config.json", "diffusion_pytorch_model.fp16.safetensors", "README.md"}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["learned_embeds.bin", "concept_images/0.jpeg", "token_identifier.txt"], ["learned_embeds.bin"]),
        (["a.ckpt", "a.safetensors"], ["a.safetensors"]),
        (["a.safetensors", "a-fp16.safetensors"], ["a-fp16.safetensors"]),
        (["v1-5-pruned.safetensors", "v1-5-pruned-emaonly.safetensors"], ["v1-5-pruned-emaonly.safetensors"]),
        (["pytorch_lora_weights.safetensors", "fox.safetensors"], ["pytorch_lora_weights.safetensors"]),
        (
            ["adapter_config.json", "adapter_model.safetensors", "optimizer.bin"],
            ["adapter_config.json", "adapter_model.safetensors"],
        ),
        (["fox.safetensors", "optimizer.pt", "checkpoint-5/fox.safetensors"], ["fox.safetensors"]),
        (
            [
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "pytorch_model.bin",
            ],
            [
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
        ),
    ],
)
def test_the_right_file_is_chosen(hub: Hub, names: list[str], chosen: list[str]) -> None:
    hub.add("org/fox", {name: name.encode() for name in names})
    assert sorted(file.name for file in resolve("hf:org/fox").files) == sorted(chosen)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.safetensors", "b.safetensors"], "several models"),
        (["README.md"], "no weights"),
        (["x/a.safetensors"], "in folders"),
    ],
)
def test_no_file_is_guessed(hub: Hub, names: list[str], message: str) -> None:
    hub.add("org/fox", {name: b"" for name in names})
    with pytest.raises(UsageError, match=message) as error:
        resolve("hf:org/fox")
    assert names[0] in error.value.hint


def test_a_file_that_is_not_there_is_named_with_those_that_are(hub: Hub) -> None:
    hub.add("org/fox", {"a.safetensors": b""})
    with pytest.raises(UsageError, match=r"no file 'b\.safetensors'") as error:
        resolve("hf:org/fox/b.safetensors")
    assert "a.safetensors" in error.value.hint


# Credentials


def test_gated_private_and_missing_are_told_apart(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.add("org/gated", {"a.safetensors": DATA}, gated=True)
    hub.add("org/private", {"a.safetensors": DATA}, private=True)
    said = {}
    for token in ("", TOKEN):
        monkeypatch.setenv("HF_TOKEN", token)
        for name in ("gated", "missing", *(["private"] if not token else [])):
            with pytest.raises(CredentialsError) as error:
                fetch(resolve(f"hf:org/{name}"), tmp_path / f"{name}{len(token)}", QUIET)
            assert error.value.exit_code == 4
            said[name, bool(token)] = f"{error.value.message} {error.value.hint}"
    assert f"accept its terms at {hub.url}/org/gated" in said["gated", False]
    assert "HF_TOKEN" in said["gated", False]
    assert "not let your account in" in said["gated", True]
    assert "or it is private" in said["missing", False] and "or it is private" in said["private", False]
    assert "your token may not read it" in said["missing", True]
    assert not any(TOKEN in text for text in said.values())
    fetch(resolve("hf:org/private"), tmp_path / "private", QUIET)
    hub.readers.add("org/gated")
    assert fetch(resolve("hf:org/gated"), None, QUIET).read_bytes() == DATA


def test_a_wrong_token_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/fox", {"a.safetensors": DATA})
    monkeypatch.setenv("HF_TOKEN", "hf_WrongWrongWrong")
    with pytest.raises(CredentialsError) as error:
        resolve("hf:org/fox")
    assert "hf_WrongWrongWrong" not in f"{error.value.message} {error.value.hint}"


def test_the_token_is_in_no_log_and_not_shown_to_the_storage(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("org/fox", {"a.safetensors": DATA, "README.md": card(license="mit")}, private=True)
    offer = resolve("hf:org/fox")
    fetch(offer, None, QUIET)
    fetch(offer, tmp_path / "a.safetensors", QUIET)
    assert any("authorization" in request.headers for request in hub.web.requests)
    assert not any("authorization" in request.headers for request in hub.storage.requests)
    assert TOKEN not in caplog.text + repr(offer)
    assert "Signature=" not in caplog.text
    assert len(caplog.records) > 5


def test_an_unknown_revision_is_told(hub: Hub) -> None:
    hub.add("org/fox", {"a.safetensors": DATA})
    with pytest.raises(SdkitError, match="no revision 'v9'"):
        resolve("hf:org/fox@v9")


def test_too_many_requests_are_waited_out(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/fox", {"a.safetensors": DATA})
    offer = resolve("hf:org/fox")
    hub.busy = [Answer(429, b"", {"Retry-After": "1"}), Answer(503)]
    fetch(offer, tmp_path / "a.safetensors", QUIET)
    assert (tmp_path / "a.safetensors").read_bytes() == DATA


def test_another_file_than_the_hub_promises_is_refused(hub: Hub, cache: Path) -> None:
    hub.add("org/fox", {"a.safetensors": DATA})
    offer = resolve("hf:org/fox")
    hub.blobs[offer.sha256] = DATA[::-1]
    with pytest.raises(SdkitError, match="not " + offer.sha256):
        fetch(offer, None, QUIET)
    assert not [path for path in cache.rglob("*") if path.is_file() and "blobs" in path.parts]


def test_offline_takes_what_the_cache_holds(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.add("org/fox", {"a.safetensors": DATA})
    pinned = resolve("hf:org/fox")
    path = fetch(pinned, None, QUIET)
    asked = len(hub.web.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offer = resolve(pinned.pinned)
    assert fetch(offer, None, QUIET) == path
    assert (offer.pinned, offer.sha256) == (pinned.pinned, pinned.sha256)
    with pytest.raises(SdkitError, match="not in the cache"):
        resolve("hf:org/other")
    assert len(hub.web.requests) == asked


def test_a_header_costs_a_hundred_kilobytes(hub: Hub) -> None:
    import numpy as np
    from safetensors.numpy import save

    from sdkit.hubs.remote import open_remote

    shapes = {"lora_down.weight": (64, 640), "lora_up.weight": (640, 64), "alpha": ()}
    tensors = {
        f"lora_unet_{number}.{part}": np.full(shape, 4, np.float16)
        for number in range(40)
        for part, shape in shapes.items()
    }
    data = save(tensors, {"ss_output_name": "fox"})
    assert len(data) > 6_000_000
    hub.add("org/fox", {"a.safetensors": data})
    offer = resolve("hf:org/fox")
    with open_remote(offer.files[0], partial(huggingface.read_range, offer.files[0])) as weights:
        assert weights.tensors.keys() == tensors.keys()
        assert weights.metadata == {"ss_output_name": "fox"}
        assert weights.scalar("lora_unet_3.alpha") == 4.0
        one = weights.tensors["lora_unet_7.lora_up.weight"]
        assert weights.read(one)[:4] == np.full(2, 4, np.float16).tobytes()
    sent = 0
    for request in hub.storage.requests:
        start, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        sent += int(last) + 1 - int(start)
    assert sent < 100_100 + one.nbytes


def test_checkpoints_are_told_by_their_pipelines(hub: Hub) -> None:
    """The class tells SDXL; SD1 and SD2 share one, so they are told by what they were made from."""
    old, new = "diffusers:StableDiffusionPipeline", "diffusers:StableDiffusionXLPipeline"
    hub.add("org/one", {"README.md": card(tags=[old, "base_model:CompVis/stable-diffusion-v1-4"])})
    hub.add("org/two", {"README.md": card(tags=[old, "base_model:stabilityai/stable-diffusion-2-1"])})
    hub.add("org/large", {"README.md": card(tags=[new])})
    hub.add("org/adapter", {"README.md": card(tags=["lora", "base_model:stabilityai/stable-diffusion-xl-base-1.0"])})

    def names(**what: str) -> set[str]:
        return {one.name for one in huggingface.search("", **what)}

    assert names(kind="checkpoint") == {"one", "two", "large"}
    assert names(kind="checkpoint", family="sdxl") == {"large"}
    assert names(kind="checkpoint", family="sd1") == {"one"}
    assert names(family="sdxl") == {"large", "adapter"}
    assert [one.kind for one in huggingface.search("large")] == ["checkpoint"]


def test_searching_follows_pages_to_the_limit(hub: Hub) -> None:
    for number in range(7):
        hub.add(f"org/fox-{number}", {"README.md": card(tags=["lora"])}).downloads = 10 * number
    hub.page = 2
    assert [one.downloads for one in huggingface.search("fox", kind="lora", limit=5)] == [60, 50, 40, 30, 20]
    assert len([one for one in hub.web.requests if one.path == "/api/models"]) == 3


def test_searching_goes_by_the_tags(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    base = "base_model:stabilityai/stable-diffusion-xl-base-1.0"
    hub.add("org/fox", {"README.md": card(license="openrail", tags=["lora", base])})
    hub.add("org/fox-sd1", {"README.md": card(tags=["lora", "base_model:CompVis/stable-diffusion-v1-4"])})
    hub.add("org/hare", {"README.md": card(tags=["lora", base])})
    hub.add("org/fox-word", {"README.md": card(tags=["textual_inversion"])})
    (found,) = huggingface.search("fox", kind="lora", family="sdxl")
    assert (found.reference, found.kind, found.licence) == ("hf:org/fox", "lora", "openrail")
    assert found.base == "stabilityai/stable-diffusion-xl-base-1.0"
    assert {one.reference for one in huggingface.search("fox")} == {"hf:org/fox", "hf:org/fox-sd1", "hf:org/fox-word"}
    assert [one.reference for one in huggingface.search("fox", family="sd1")] == ["hf:org/fox-sd1"]
    asked = len(hub.web.requests)
    assert huggingface.search("fox", kind="hypernetwork") == [] and len(hub.web.requests) == asked
    hub.busy.append(Answer(500, b"no"))
    hub.busy += [Answer(500, b"no")] * 8
    with pytest.raises(SdkitError, match="cannot be searched"):
        huggingface.search("fox")
    assert not [record for record in caplog.records if "Retrying" in record.getMessage()]  # which nobody can act on


def test_a_hub_out_of_reach_is_told_in_words(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    with pytest.raises(SdkitError, match=r"^hf:org/fox: http://127.0.0.1:9 .HF_ENDPOINT. cannot be reached: ") as error:
        resolve("hf:org/fox")
    assert "Errno" not in error.value.message and "HF_HUB_OFFLINE=1" in error.value.hint
    began = time.monotonic()
    with pytest.raises(SdkitError, match="^cannot be searched: http://127.0.0.1:9 .*cannot be reached: "):
        huggingface.search("fox")
    assert time.monotonic() - began < 5  # the library would try for half a minute
