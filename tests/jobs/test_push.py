from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path

import models
import pytest
import torch
import yaml
from hub_server import TOKEN, Hub, card
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load, load_file

import sdkit
from sdkit.core.errors import CredentialsError, SdkitError, UsageError
from sdkit.generation.parameters import png
from sdkit.hubs._card import About, write_card
from sdkit.jobs.models.files import add_models
from sdkit.jobs.models.show import draw_lineage, model_lineage, show_model
from sdkit.jobs.pull import pull
from sdkit.jobs.push import push
from sdkit.registry import open_registry
from sdkit.registry.exchange import exported, import_json
from sdkit.registry.lineage import dot
from sdkit.weights import open_weights


@pytest.fixture(autouse=True)
def signed_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    shapes = dict(list(models.sd1_modules().items())[:6])
    recipe = {
        "verb": "train",
        "method": "lora",
        "parents": [{"name": "base", "id": "quick1-1-ab", "role": "base", "source": "hf:org/base/a.safetensors@1"}],
        "options": {"rank": 2, "steps": 10, "sample": "/home/me/prompts.txt"},
        "pictures": 5,
    }
    metadata = {"sdkit.recipe": json.dumps(recipe), "sdkit.version": "0.1.0", "sdkit.trigger_words": '["sks fox"]'}
    return models.save(models.kohya_lora(shapes, rank=2, alpha=1.0), tmp_path / "fox.safetensors", metadata)


def test_what_is_pushed_is_what_is_pulled(hub: Hub, lora: Path) -> None:
    report = push(lora, "hf:me/fox", licence="openrail")
    assert report.page == f"{hub.url}/me/fox"
    repository = hub.repositories["me/fox"]
    assert len(repository.commits) == 1  # one commit
    assert repository.files.keys() == {"fox.safetensors", "README.md"}
    assert repository.files["fox.safetensors"] == lora.read_bytes()
    again = pull("hf:me/fox")
    assert again.state == "here"
    assert Path(again.output) == lora


def test_the_card_says_what_is_known(hub: Hub, lora: Path, tmp_path: Path) -> None:
    settings = 'a "sks" fox: red\nNegative prompt: blurry\nSteps: 5, Sampler: Euler, CFG scale: 3, Seed: 1, Size: 8x8'
    (tmp_path / "one.png").write_bytes(png(Image.new("RGB", (8, 8)), settings))
    push(lora, "hf:me/fox", licence="openrail", samples=[tmp_path / "one.png"])
    text = hub.repositories["me/fox"].files["README.md"].decode()
    head = ModelCard(text).data.to_dict()
    assert head == {
        "license": "openrail",
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "lora", "template:sd-lora", "diffusers"],
        "instance_prompt": "sks fox",
        "widget": [
            {
                "text": 'a "sks" fox: red',
                "parameters": {"negative_prompt": "blurry"},
                "output": {"url": "images/1.png"},
            }
        ],
    }
    assert "images/1.png" in hub.repositories["me/fox"].files
    for words in ("<Gallery />", "`sks fox`", "| rank | 2 |", "| pictures | 5 |", "train (lora)", "hf:org/base"):
        assert words in text
    assert hashlib.sha256(lora.read_bytes()).hexdigest() in text
    assert "/home/me" not in text


@pytest.mark.parametrize(
    ("kind", "family", "tag"),
    [("lora", "sdxl", "stable-diffusion-xl"), ("textual-inversion", "sd1", "textual_inversion")],
)
def test_tags_say_kind_and_family(kind: str, family: str, tag: str) -> None:
    assert tag in ModelCard(write_card(About("fox", "me/fox", kind, family))).data.tags


def test_nothing_in_a_file_can_forge_a_card(hub: Hub, tmp_path: Path) -> None:
    evil = "a\n---\nlicense: mit\n---\n<script>|x|\x1b[2J"
    shapes = dict(list(models.sd1_modules().items())[:2])
    metadata = {"modelspec.trigger_phrase": evil, "modelspec.license": "my: own\n---\nlicense: mit"}
    path = models.save(models.kohya_lora(shapes, rank=1, alpha=1.0), tmp_path / "evil.safetensors", metadata)
    text = push(path, "hf:me/evil", dry_run=True).card
    assert text.count("\n---\n") == 1
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "other"
    body = text.split("\n---\n")[1]
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    assert "<script>" not in re.sub("`[^`\n]*`", "", body)  # only in a span of code, where it is shown as it is


def test_a_plan_uploads_nothing(hub: Hub, lora: Path) -> None:
    report = push(lora, "hf:me/fox", dry_run=True)
    assert [file.name for file in report.files] == ["fox.safetensors", "README.md"]
    assert "no licence is known" in report.notes[0]
    assert hub.repositories == {}


def test_private_and_pull_requests(hub: Hub, lora: Path) -> None:
    push(lora, "hf:me/fox", private=True)
    assert hub.repositories["me/fox"].private
    other = hub.add("other/fox", {"README.md": card(license="mit")})
    report = push(lora, "hf:other/fox", create_pr=True)
    assert report.page == f"{hub.url}/other/fox/discussions/1"
    assert other.pulls[0]["fox.safetensors"] == lora.read_bytes()
    assert "fox.safetensors" not in other.files


def test_a_card_somebody_wrote_stays(hub: Hub, lora: Path) -> None:
    mine = card(license="mit")
    repository = hub.add("me/fox", {"README.md": mine})
    report = push(lora, "hf:me/fox")
    assert repository.files["README.md"] == mine
    assert "--replace-card" in report.notes[0]
    push(lora, "hf:me/fox", replace_card=True)
    written = repository.files["README.md"]
    assert written != mine
    push(lora, "hf:me/fox", licence="openrail")  # sdkit's own card is renewed
    assert b"license: openrail" in repository.files["README.md"]


def test_paths_in_a_header_stay_here(hub: Hub, tmp_path: Path) -> None:
    shapes = dict(list(models.sd1_modules().items())[:6])
    metadata = {"ss_dataset_dirs": '{"/home/ann/dogs": 1}', "ss_output_name": "dog", "ss_tag_frequency": "{}"}
    path = models.save(models.kohya_lora(shapes, rank=2, alpha=1.0), tmp_path / "dog.safetensors", metadata)
    report = push(path, "hf:me/dog")
    sent = tmp_path / "sent.safetensors"
    sent.write_bytes(hub.repositories["me/dog"].files["dog.safetensors"])
    assert b"/home/ann" not in sent.read_bytes()
    with open_weights(sent) as there, open_weights(path) as here:
        assert there.metadata == {"ss_output_name": "dog", "ss_tag_frequency": "{}"}
        assert {name: there.read(info) for name, info in there.tensors.items()} == {
            name: here.read(info) for name, info in here.tensors.items()
        }
    assert any("ss_dataset_dirs" in note for note in report.notes)
    assert any("captions" in note for note in report.notes)


def test_a_checkpoint_is_converted_on_the_way(hub: Hub, tiny_base: Path) -> None:
    push(tiny_base, "hf:me/sd")
    assert "unet/config.json" in hub.repositories["me/sd"].files
    head = ModelCard(hub.repositories["me/sd"].files["README.md"].decode()).data.to_dict()
    assert "base_model_relation" not in head
    push(tiny_base, "hf:me/single", to=["single"])
    assert hub.repositories["me/single"].files.keys() == {"base.safetensors", "README.md"}


def test_pushing_needs_a_token_that_may(hub: Hub, lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("", "hf_WrongWrongWrong"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(CredentialsError) as error:
            push(lora, "hf:me/fox")
        assert "hf_Wrong" not in f"{error.value.message} {error.value.hint}"
    assert hub.repositories == {}


@pytest.mark.parametrize("reference", ["hf:me", "hf:me/fox/file", "hf:me/fox@main", "https://example.com/a"])
def test_only_repositories_can_be_pushed_to(hub: Hub, lora: Path, reference: str) -> None:
    with pytest.raises(UsageError):
        push(lora, reference)


def test_the_token_is_in_no_card_log_or_database(hub: Hub, lora: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    push(lora, "hf:me/fox", licence="openrail")
    kept = [data for repository in hub.repositories.values() for data in repository.files.values()]
    with open_registry() as registry:
        model = registry.model(registry.find("fox").id)
    assert any(source.reference == "hf:me/fox/fox.safetensors" for source in model.sources)
    assert TOKEN not in caplog.text + repr(model)
    assert "Signature=" not in caplog.text
    assert not any(TOKEN.encode() in data for data in kept)
    assert not any("authorization" in request.headers for request in hub.storage.requests)


def test_the_registry_knows_the_base(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/base", {"base.safetensors": models.save(models.sd1(), tmp_path / "base.safetensors").read_bytes()})
    base = Path(pull("hf:org/base").output)
    shapes = dict(list(models.sd1_modules().items())[:6])
    fox = models.save(models.kohya_lora(shapes, rank=2, alpha=1.0), tmp_path / "fox.safetensors")
    add_models([fox])
    sdkit.merge(base, {fox: 1.0}, tmp_path / "out.safetensors")  # by its path, so only the registry knows
    head = ModelCard(push(tmp_path / "out.safetensors", "hf:me/out", dry_run=True).card).data.to_dict()
    assert (head["base_model"], head["base_model_relation"]) == ("org/base", "merge")
    assert "merge" in head["tags"]


def test_lineage_says_where_a_model_was_published(hub: Hub, lora: Path, tmp_path: Path) -> None:
    add_models([lora])
    pushed = push(lora, "hf:me/fox")
    push(lora, "hf:me/fox")  # the same bytes: no further commit, and nothing new to say
    proposed = push(lora, "hf:me/fox", create_pr=True)
    shown = show_model("fox")
    assert {one.reference for one in shown.model.published} == {"hf:me/fox"}
    first = shown.model.published[0]
    assert (first.url, first.files) == (pushed.page, ("fox.safetensors",))
    assert first.revision
    assert proposed.page in [one.url for one in shown.model.published]
    assert shown.tree[-1] == "published: hf:me/fox"
    found = model_lineage("fox")
    assert found.descendants == ()
    assert any('label="publish hf:me/fox"' in line for line in dot(found))
    model = next(one for one in found.as_dict()["models"] if one["name"] == "fox")
    assert model["published"][0]["reference"] == "hf:me/fox"
    draw_lineage("fox", tmp_path / "lineage.png")
    with open_registry() as registry:
        assert [entry.name for entry in registry.entries(["me/fox"])] == ["fox"]
        table = exported(registry, [shown.model.entry.id])
        registry.remove(shown.model.entry.id)
        assert registry.entries(["fox"], everything=True) == []
    (tmp_path / "models.json").write_text(json.dumps(table))
    with open_registry(tmp_path / "other") as other:
        import_json(other, tmp_path / "models.json")
        assert other.model(other.find("fox").id).published == shown.model.published


def test_a_plan_is_no_publication(hub: Hub, lora: Path) -> None:
    add_models([lora])
    push(lora, "hf:me/fox", dry_run=True)
    assert show_model("fox").model.published == ()


@pytest.fixture
def known_lora(tmp_path: Path) -> Path:
    """One of SD1's own size, which its header tells, so that its modules have names in every format."""
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
    shapes = {f"{block}_attn1_to_q": (320, 320), f"{block}_attn2_to_k": (320, 768), f"{block}_attn2_to_q": (320, 320)}
    return models.save(models.kohya_lora(shapes, rank=2, alpha=1.0), tmp_path / "fox.safetensors")


def test_an_adapter_is_converted_and_proven_on_the_way(hub: Hub, known_lora: Path) -> None:
    lora = known_lora
    add_models([lora])
    report = push(lora, "hf:me/fox", to=["peft", "diffusers"])
    files = hub.repositories["me/fox"].files
    assert files.keys() == {
        "fox-diffusers.safetensors",
        "peft/adapter_config.json",
        "peft/adapter_model.safetensors",
        "README.md",
    }
    assert len([note for note in report.notes if "changes read back" in note]) == 2
    assert 'weight_name="fox-diffusers.safetensors"' in report.card
    source, written = load_file(lora), load(files["fox-diffusers.safetensors"])
    own = load(files["peft/adapter_model.safetensors"])
    config = json.loads(files["peft/adapter_config.json"])
    ups = [name for name in source if name.endswith("lora_up.weight")]
    assert ups
    for up in ups:
        stem = up.removesuffix(".lora_up.weight")
        rank = source[up].shape[1]
        meant = product(source[up], source[f"{stem}.lora_down.weight"]) * source[f"{stem}.alpha"].item() / rank
        module = stem.removeprefix("lora_unet_")
        (b,) = [
            name for name in written if name.endswith("lora_B.weight") and flat(name).startswith(f"unet_{module}_lora")
        ]
        (other,) = [name for name in own if name.endswith("lora_B.weight") and f"model_{module}_lora" in flat(name)]
        alpha = json.loads(metadata_of(files["fox-diffusers.safetensors"])["lora_adapter_metadata"])["unet.lora_alpha"]
        assert torch.equal(product(written[b], written[b.replace("lora_B", "lora_A")]) * alpha / rank, meant)
        scale = config["lora_alpha"] / config["r"]
        assert torch.equal(product(own[other], own[other.replace("lora_B", "lora_A")]) * scale, meant)
    with open_registry() as registry:  # what was made on the way is no model of this person
        assert [entry.name for entry in registry.entries()] == ["fox"]
    published = show_model("fox").model
    assert "fox-diffusers.safetensors" in published.published[0].files
    assert published.sources == ()  # its own bytes are not there


def product(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return up.double().flatten(1) @ down.double().flatten(1)


def flat(name: str) -> str:
    return name.replace(".", "_")


def metadata_of(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def test_one_form_lies_at_the_root(hub: Hub, known_lora: Path) -> None:
    report = push(known_lora, "hf:me/fox", to=["peft"])
    assert "load_lora_weights" not in report.card  # which does not read PEFT's folders
    assert hub.repositories["me/fox"].files.keys() >= {"adapter_config.json", "adapter_model.safetensors"}


def test_a_conversion_that_needs_more_names_the_command_that_takes_it(hub: Hub, lora: Path) -> None:
    with pytest.raises(SdkitError, match="peft needs names for its modules") as caught:
        push(lora, "hf:me/fox", to=["peft"])
    assert "sdkit convert" in caught.value.hint
    assert hub.repositories == {}


@pytest.mark.parametrize(("form", "reason"), [("nothing", "nothing is written"), ("hypernetwork", "has no place")])
def test_every_form_is_known_before_one_is_made(hub: Hub, lora: Path, form: str, reason: str) -> None:
    with pytest.raises(SdkitError, match=reason):
        push(lora, "hf:me/fox", to=["peft", form])
    assert hub.repositories == {}
