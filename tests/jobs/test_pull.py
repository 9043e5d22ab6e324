from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import yaml
from drawn import picture
from hub_server import TOKEN, Hub, card
from web import Answer

import sdkit
from sdkit.core.errors import SdkitError, UsageError
from sdkit.jobs import pull as pull_module
from sdkit.jobs.inspect import inspect
from sdkit.jobs.models.files import add_models
from sdkit.jobs.models.listing import list_models
from sdkit.jobs.models.show import show_model
from sdkit.jobs.pull import local_path, pull
from sdkit.registry import open_registry
from sdkit.weights import open_weights
from sdkit.weights.metadata import read_recipe


def lora(folder: Path, seed: int = 0) -> bytes:
    path = folder / f"lora-{seed}.safetensors"
    shapes = dict(list(models.sd1_modules().items())[:6])
    return models.save(models.kohya_lora(shapes, rank=2, alpha=1.0, seed=seed), path).read_bytes()


@pytest.fixture
def fox(hub: Hub, tmp_path: Path) -> bytes:
    data = lora(tmp_path)
    about = card(license="openrail", base_model="org/base", instance_prompt="a sks fox")
    hub.add("org/fox", {"pytorch_lora_weights.safetensors": data, "README.md": about})
    return data


def test_a_pulled_model_is_registered_with_what_the_hub_says(fox: bytes) -> None:
    report = pull("hf:org/fox")
    assert (report.state, report.kind, report.name) == ("pulled", "lora", "fox")
    assert Path(report.output).read_bytes() == fox
    with open_registry() as registry:
        model = registry.model(registry.find("fox").id)
    assert model.licences == ("openrail",)
    assert model.entry.triggers == ("a sks fox",)
    asked, full = model.sources
    assert (asked.reference, full.reference) == ("hf:org/fox", "hf:org/fox/pytorch_lora_weights.safetensors")
    assert f"{full.reference}@{full.revision}" == report.pinned and asked.revision == full.revision
    assert model.origins == (full.url,)
    assert model.files[0].sha256 == hashlib.sha256(fox).hexdigest()


def test_a_model_is_known_by_where_it_was_pulled_from(fox: bytes) -> None:
    report = pull("hf:org/fox")
    for reference in (report.pinned, report.pinned.partition("@")[0]):
        assert show_model(reference).model.entry.name == report.name
    with pytest.raises(SdkitError, match="no model is called 'hf:org/hare'"):
        show_model("hf:org/hare")


@pytest.mark.parametrize("reference", ["hf:org/fox@{}", "https://huggingface.co/org/fox/tree/{}"])
def test_a_commit_that_is_here_is_not_asked_for_again(fox: bytes, hub: Hub, reference: str) -> None:
    """Also where the reference names no file; it is the same one then."""
    first = pull("hf:org/fox")
    pinned = reference.format(first.pinned.rpartition("@")[2])
    hub.web.requests.clear()
    again = pull(pinned)
    assert (again.state, again.pinned, again.output) == ("here", first.pinned, first.output)
    assert not hub.web.requests


def test_what_the_card_shows_comes_too(hub: Hub, tmp_path: Path) -> None:
    shown = card(
        widget=[{"text": "a", "output": {"url": "../x.png"}}, {"text": "b", "output": {"url": "images/b.png"}}]
    )
    files = {"fox.safetensors": lora(tmp_path), "README.md": shown, "images/b.png": picture("PNG")}
    hub.add("org/fox", files)
    report = pull("hf:org/fox")
    assert Path(report.preview).read_bytes() == picture("PNG")
    files["README.md"] = card(widget=[{"output": {"url": "images/b.png"}}], tags=["not-for-all-audiences"])
    hub.add("org/hare", {**files, "fox.safetensors": lora(tmp_path, seed=1)})
    assert pull("hf:org/hare").preview == ""


def test_what_is_here_is_not_downloaded_again(fox: bytes, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(fox)
    add_models([tmp_path / "mine.safetensors"], hash=True)
    report = pull("hf:org/fox")
    assert report.state == "here"
    assert Path(report.output) == tmp_path / "mine.safetensors"
    assert hub.storage.requests == []
    (tmp_path / "mine.safetensors").write_bytes(fox[:-1] + b"?")
    assert pull("hf:org/fox").state == "pulled"


def test_a_plan_downloads_nothing(fox: bytes, cache: Path) -> None:
    report = pull("hf:org/fox", dry_run=True)
    assert (report.state, report.kind, report.output) == ("planned", "lora", "")
    assert list_models().models == ()
    assert not cache.exists()


@pytest.mark.parametrize("as_folder", [True, False])
def test_an_output_is_a_file_or_a_folder_to_put_it_in(fox: bytes, tmp_path: Path, as_folder: bool) -> None:
    target = tmp_path / "out"
    target.mkdir()
    report = pull("hf:org/fox", target if as_folder else target / "fox.safetensors", name="red")
    assert Path(report.output) == target / "fox.safetensors"
    assert local_path("red") == target / "fox.safetensors"
    with pytest.raises(SdkitError, match="already exists"):
        pull("hf:org/fox", target / "fox.safetensors")


def test_a_pin_that_does_not_hold_stops_before_the_download(fox: bytes, hub: Hub) -> None:
    with pytest.raises(SdkitError, match="not " + "0" * 64):
        pull("hf:org/fox#sha256=" + "0" * 64)
    assert hub.storage.requests == []
    assert pull("hf:org/fox#sha256=" + hashlib.sha256(fox).hexdigest()).state == "pulled"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.safetensors", b'\x10\0\0\0\0\0\0\0{"a": broken}   ', "not JSON"),
        ("a.safetensors", b"<!DOCTYPE html>" * 200_000, "header would be"),
        ("picture.png", b"1", "no weight file"),
    ],
)
def test_what_is_no_model_is_not_registered(hub: Hub, name: str, data: bytes, message: str) -> None:
    hub.add("org/bad", {name: data})
    with pytest.raises(SdkitError, match=message):
        pull(f"hf:org/bad/{name}")
    assert list_models().models == ()


def test_the_cat_toy_of_the_concepts_library(hub: Hub) -> None:
    """A pickle that torch wrote in 2022's way: the token's name and its vector."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save({"<cat-toy>": torch.arange(768.0)}, buffer)
    about = card(license="mit")
    names = {"learned_embeds.bin": buffer.getvalue(), "README.md": about, "token_identifier.txt": b"<cat-toy>"}
    hub.add("sd-concepts-library/cat-toy", {**names, "concept_images/0.jpeg": b"1"})
    report = pull("hf:sd-concepts-library/cat-toy")
    assert (report.name, report.kind) == ("cat-toy", "textual-inversion")
    with open_registry() as registry:
        assert registry.find("cat-toy").triggers == ("<cat-toy>",)
    assert inspect("hf:sd-concepts-library/cat-toy").trigger_words == ("<cat-toy>",)


def test_a_folder_is_pulled_once(hub: Hub, tiny_base: Path) -> None:
    files = {
        path.relative_to(tiny_base).as_posix(): path.read_bytes() for path in tiny_base.rglob("*") if path.is_file()
    }
    hub.add("org/sd", files)
    report = pull("hf:org/sd")
    assert (report.state, report.name, report.kind, report.family) == ("pulled", "sd", "checkpoint", "sd1")
    with open_weights(Path(report.output)) as pulled, open_weights(tiny_base) as given:
        assert pulled.tensors.keys() == given.tensors.keys()
    assert pull("hf:org/sd").state == "here"


# As inputs


@pytest.fixture
def base(hub: Hub, tmp_path: Path) -> Path:
    path = models.save(models.sd1(), tmp_path / "base.safetensors")
    hub.add("org/base", {"base.safetensors": path.read_bytes()})
    return path


def test_references_are_inputs_and_the_result_says_which(fox: bytes, base: Path, hub: Hub, tmp_path: Path) -> None:
    sdkit.merge("hf:org/base", {"hf:org/fox": 0.5}, tmp_path / "out.safetensors")
    (tmp_path / "fox.safetensors").write_bytes(fox)
    models_here = sdkit.merge(base, {tmp_path / "fox.safetensors": 0.5}, tmp_path / "same.safetensors")
    assert models_here.changed
    assert models.load(tmp_path / "out.safetensors").keys() == models.load(tmp_path / "same.safetensors").keys()
    recipe, plain = (_recipe(tmp_path / name) for name in ("out.safetensors", "same.safetensors"))
    commit = hub.repositories["org/fox"].head
    assert recipe["parents"][1]["source"] == f"hf:org/fox/pytorch_lora_weights.safetensors@{commit}"
    assert recipe["parents"][1]["sha256"] == hashlib.sha256(fox).hexdigest()
    assert recipe["parents"][1]["id"] == plain["parents"][1]["id"]
    assert not any("source" in parent for parent in plain["parents"])  # given by their paths


def test_a_file_is_reproduced_from_its_references_alone(
    fox: bytes, base: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path_factory.mktemp("out") / "out.safetensors"
    sdkit.merge("hf:org/base", {"hf:org/fox": 0.5}, out)
    monkeypatch.setenv("SDKIT_HOME", str(tmp_path / "somebody-else"))
    pull_module._SOURCES.clear()
    report = sdkit.reproduce(out)
    assert report.identical


def test_a_sum_of_references_is_reproduced_too(fox: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out" / "sum.safetensors"
    out.parent.mkdir()
    sdkit.combine([("hf:org/fox", 0.5), ("hf:org/fox", 0.25)], out)
    assert _recipe(out)["parents"][0]["source"].startswith("hf:org/fox/")
    monkeypatch.setenv("SDKIT_HOME", str(tmp_path / "somebody-else"))
    pull_module._SOURCES.clear()
    assert sdkit.reproduce(out).identical


@pytest.mark.parametrize(
    "call",
    [
        lambda: sdkit.convert("hf:org/fox", "peft", dtype="none"),
        lambda: sdkit.resize("hf:org/fox", rank=-1),
        lambda: sdkit.scale("hf:org/fox", 0.0),
        lambda: sdkit.combine([("hf:org/fox", float("nan")), "hf:org/fox"]),
        lambda: sdkit.generate("hf:org/base", "a", count=0),
        lambda: sdkit.train("lora", "hf:org/base", ".", rank=-1),
    ],
    ids=["convert", "resize", "scale", "combine", "generate", "train"],
)
def test_wrong_options_are_said_before_anything_is_pulled(fox: bytes, hub: Hub, call: Callable[[], object]) -> None:
    with pytest.raises(SdkitError):
        call()
    assert hub.web.requests == hub.storage.requests == []


def test_recipes_take_references_pinned_by_commit_and_sha256(fox: bytes, base: Path, hub: Hub, tmp_path: Path) -> None:
    sha256, commit = hashlib.sha256(fox).hexdigest(), hub.repositories["org/fox"].head
    adapter = f"hf:org/fox/pytorch_lora_weights.safetensors@{commit}"
    text = {"steps": {"mix": {"merge": ["hf:org/base", {"path": adapter, "sha256": sha256, "strength": 0.5}],
                              "output": "out.safetensors"}}}  # fmt: skip
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(text))
    assert sdkit.run(tmp_path / "mix.yaml").finished
    first = (tmp_path / "out.safetensors").read_bytes()
    assert sdkit.run(tmp_path / "mix.yaml").steps[0].state == "up to date"
    sdkit.merge("hf:org/base", {adapter: 0.5}, tmp_path / "same.safetensors")
    assert (tmp_path / "same.safetensors").read_bytes() == first
    words = {"steps": {"mix": {"merge": ["hf:org/base", f"{adapter}=0.5"], "output": "words.safetensors"}}}
    sdkit.run(words, tmp_path)
    assert (tmp_path / "words.safetensors").read_bytes() == first


def test_a_recipe_that_is_wrong_pulls_nothing(fox: bytes, base: Path, hub: Hub, tmp_path: Path) -> None:
    steps = {
        "mix": {"merge": ["hf:org/base", "hf:org/fox"]},
        "last": {"blend": ["mix", "none.safetensors"], "output": "o"},
    }
    with pytest.raises(UsageError, match="none"):
        sdkit.run({"steps": steps}, tmp_path)
    assert hub.web.requests == []


def test_a_pinned_reference_needs_no_hub_once_it_is_here(fox: bytes, hub: Hub) -> None:
    pinned = pull("hf:org/fox").pinned
    asked = len(hub.web.requests)
    assert local_path(pinned).read_bytes() == fox
    assert len(hub.web.requests) == asked


def test_a_hub_that_is_down_leaves_what_was_pulled_before(fox: bytes, hub: Hub) -> None:
    full = "hf:org/fox/pytorch_lora_weights.safetensors"
    local_path(full)
    hub.busy = [Answer(503)] * 100
    told: list[str] = []
    assert local_path(full, tell=told.append).read_bytes() == fox
    assert "pulled before" in told[0]


# On the command line


def run(*words: str, hub: Hub, cache: Path, **more: str) -> tuple[int, str, str]:
    import os

    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(cache.parent), "HF_HUB_DISABLE_TELEMETRY": "1", **more}
    done = subprocess.run([sys.executable, "-m", "sdkit", *words], capture_output=True, text=True, env=env, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_command_line_pulls_and_merges(fox: bytes, base: Path, hub: Hub, cache: Path, tmp_path: Path) -> None:
    code, out, err = run("inspect", "hf:org/fox", "--json", hub=hub, cache=cache)
    found: dict[str, Any] = json.loads(out)
    assert (code, found["kind"], found["adapter"]["changes"][0]["alpha"]) == (0, "lora", 1.0)
    target = tmp_path / "out.safetensors"
    code, out, err = run("merge", "hf:org/base", "hf:org/fox=0.5", "-o", str(target), "-q", hub=hub, cache=cache)
    assert (code, out, err) == (0, f"{target}\n", "")
    assert _recipe(target)["parents"][0]["source"].startswith("hf:org/base/base.safetensors@")
    assert (cache / "models--org--fox").is_dir()  # below HF_HOME
    code, out, err = run("pull", "hf:org/fox", hub=hub, cache=cache)
    assert (code, err) == (0, "")
    assert out.startswith("is here already: fox")


def test_a_wrong_option_pulls_nothing(fox: bytes, base: Path, hub: Hub, cache: Path) -> None:
    code, _, err = run("merge", "hf:org/base", "hf:org/fox", "--alpha", "much", hub=hub, cache=cache)
    assert code == 2
    assert "much" in err
    assert hub.web.requests == []


def test_a_gated_model_ends_with_4_and_the_page(hub: Hub, cache: Path, tmp_path: Path) -> None:
    hub.add("org/gated", {"a.safetensors": lora(tmp_path)}, gated=True)
    code, _, err = run("pull", "hf:org/gated", hub=hub, cache=cache, HF_TOKEN=TOKEN)
    assert code == 4
    assert f"{hub.url}/org/gated" in err
    assert TOKEN not in err


def test_the_token_is_nowhere_afterwards(
    fox: bytes, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    code, out, err = run(
        "pull", "hf:org/fox", hub=hub, cache=cache, HF_TOKEN=TOKEN, SDKIT_HOME=str(home), SDKIT_DEBUG="1", HF_DEBUG="1"
    )
    assert code == 0
    assert any(request.headers.get("authorization") == f"Bearer {TOKEN}" for request in hub.web.requests)
    kept = [path.read_bytes() for folder in (home, cache) for path in folder.rglob("*") if path.is_file()]
    assert kept
    assert not any(TOKEN.encode() in data for data in [*kept, out.encode(), err.encode()])


def _recipe(path: Path) -> Any:
    with open_weights(path) as weights:
        return read_recipe(weights.metadata)
