from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import whole_and_killed
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.formats import read_adapter
from sdkit.jobs import class_pictures
from sdkit.jobs.train import TrainReport
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.install import install
from sdkit.runtime.load import load_backbone
from sdkit.runtime.tensors import read_tensors
from sdkit.weights import open_weights

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two steps a picture, and a cache of the test's own."""
    monkeypatch.setattr(class_pictures, "STEPS", 2)
    monkeypatch.setenv("SDKIT_CACHE", str(tmp_path / "cache"))


def train(base: Path, data: Path, out: Path, **options: Any) -> TrainReport:
    few = {"steps": 2, "lr": 1e-2, "init": "k", "save_dtype": "fp32"}
    report: TrainReport = sdkit.train("custom-diffusion", base, data, out, **{**few, **options})
    return report


def output(backbone: Backbone, text: str) -> torch.Tensor:
    noised = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cond = backbone.encode_text(backbone.tokenize([text]), (16, 16))
        return backbone.denoise(noised, torch.tensor([500]), cond)


def test_cross_attention_alone_learns_and_lies_beside_its_word(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_base, pictures, tmp_path / "my ball", class_="ball", class_images=2, validation=str(pictures))
    place = Path(report.output)
    assert report.saved == (str(place.with_name("my ball.my-ball.safetensors")),)
    assert report.plan.examples["0.png"] == "<my-ball>, a ball, 0"
    assert report.plan.class_pictures is not None and report.plan.class_pictures.prompt == "a ball"

    trained = {name: value for name, value in load_file(place).items() if value.numel()}
    base = load_file(tiny_base / UNET)
    places = {name.replace(".processor", "").replace("_custom_diffusion", ""): name for name in trained}
    assert set(places) == {name for name in base if ".attn2.to_k." in name or ".attn2.to_v." in name}
    assert all(not torch.equal(trained[places[name]], base[name]) for name in places)
    assert report.parameters == sum(value.numel() for value in trained.values()) + 24
    ((word, row),) = load_file(report.saved[0]).items()
    assert word == "<my-ball>" and row.shape == (1, 24)
    with open_weights(place) as weights:
        assert json.loads(weights.metadata["sdkit.trigger_words"]) == ["<my-ball>"]
        assert weights.metadata["modelspec.architecture"] == "stable-diffusion-v1/custom-diffusion"
    assert 0.5 < report.output_bytes / report.plan.output_bytes < 1.5
    found = sdkit.inspect(place)
    assert found.kind == "custom-diffusion" and not found.problems
    assert sdkit.inspect(report.saved[0]).kind == "textual-inversion"


def test_live_merged_and_by_hand_are_one_model(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_base, pictures, tmp_path / "x", layers="all")
    base, trained = load_file(tiny_base / UNET), load_file(report.output)
    for name, value in trained.items():
        if value.numel():
            base[name.replace(".processor", "").replace("_custom_diffusion", "")] = value
    merged = sdkit.merge(tiny_base, report.output, tmp_path / "merged")
    assert merged.changed == merged.matched == report.plan.modules - 1
    written = read_tensors(tmp_path / "merged" / UNET)
    assert written.keys() == base.keys() and all(torch.equal(written[name], base[name]) for name in base)

    backbone, other = load_backbone(tiny_base), load_backbone(tmp_path / "merged")
    before = output(backbone, "a b")
    with open_weights(report.output) as weights, install(read_adapter(weights, backbone.model), backbone):
        assert torch.equal(output(backbone, "a b"), output(other, "a b"))
    assert torch.equal(output(backbone, "a b"), before)
    with pytest.raises(SdkitError, match="replacement, which cannot be subtracted"):
        sdkit.unmerge(tmp_path / "merged", [report.output], tmp_path / "back")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("layers", ["kv", "all"])
def test_diffusers_loads_it_and_draws_the_same(tiny_base: Path, pictures: Path, tmp_path: Path, layers: str) -> None:
    from diffusers import StableDiffusionPipeline

    report = train(tiny_base, pictures, tmp_path / "x", layers=layers, token="<w>")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    place = Path(report.output)
    before = len(pipeline.unet.attn_processors)
    pipeline.unet.load_attn_procs(place.parent, weight_name=place.name, _pipeline=pipeline)
    assert len(pipeline.unet.attn_processors) == before
    pipeline.load_textual_inversion(report.saved[0])
    context = pipeline.encode_prompt("<w>", "cpu", 1, do_classifier_free_guidance=False)[0]
    noised = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = pipeline.unet(noised, torch.tensor([500]), context).sample

    backbone = load_backbone(tiny_base)
    with open_weights(report.output) as weights, open_weights(report.saved[0]) as word:
        with install(read_adapter(word, backbone.model), backbone):
            with install(read_adapter(weights, backbone.model), backbone):
                ours = output(backbone, "<w>")
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_prompt_s_tag_brings_the_word_along(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    place = Path(train(tiny_base, pictures, tmp_path / "x", lr=0.0, token_lr=1.0, steps=1, token="<w>").output)
    few = {"steps": 2, "folder": tmp_path / "x", "width": 16, "height": 16}

    def drawn(name: str, prompt: str) -> bytes:
        return Image.open(sdkit.generate(tiny_base, prompt, tmp_path / name, **few).pictures[0].path).tobytes()

    plain = drawn("1.png", "a <w>")
    assert drawn("2.png", "<lora:x>a <w>") != plain  # of the weights nothing has changed, so it is the word
    place.with_name("x.w.safetensors").unlink()
    assert drawn("3.png", "<lora:x>a <w>") == plain


def test_training_goes_on_from_a_file_and_its_word(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    first = train(tiny_base, pictures, tmp_path / "a", token="<one>")
    still = {"lr": 0.0, "init": first.output, "steps": 1}
    second = train(tiny_base, pictures, tmp_path / "b", **still)
    one, other = load_file(first.output), load_file(second.output)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(load_file(first.saved[0])["<one>"], load_file(second.saved[0])["<b>"])
    with open_weights(second.output) as weights:
        parents = json.loads(weights.metadata["sdkit.recipe"])["parents"]
    assert [parent["role"] for parent in parents] == ["base", "init"]
    with pytest.raises(SdkitError, match=r"changes 8 parameters, layers=all are 20"):
        train(tiny_base, pictures, tmp_path / "c", **still, layers="all")
    Path(first.saved[0]).unlink()
    with pytest.raises(SdkitError, match="the embedding of its word is not beside it"):
        train(tiny_base, pictures, tmp_path / "c", **still)


def test_what_is_wrong_is_named_before_anything_is_computed(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(SdkitError, match=message):
            train(tiny_base, pictures, tmp_path / "x", **options)
        assert not (tmp_path / "x").exists()

    refused("layers=q: unknown", layers="q")
    refused("class_data= needs class=", class_data=str(pictures))
    refused("unknown option rank=", rank=4)
    save_file({"<w>": torch.ones(1, 24)}, tmp_path / "word.safetensors")
    refused("is no Custom Diffusion for this base: a textual-inversion", init=str(tmp_path / "word.safetensors"))
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_custom_diffusion.weight"
    save_file({key: torch.ones(32, 768)}, tmp_path / "sd1.safetensors")
    refused(r"changes a weight of shape \[32, 768\]", init=str(tmp_path / "sd1.safetensors"))
    (tmp_path / "y.w.safetensors").touch()
    with pytest.raises(SdkitError, match=r"y.w.safetensors: already exists"):
        train(tiny_base, pictures, tmp_path / "y.safetensors", token="<w>")
    assert not (tmp_path / "y.safetensors").exists()


def test_a_word_the_base_knows_and_a_long_beginning_are_said(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    notes = train(tiny_base, pictures, tmp_path / "x", token="z", init="ball", dry_run=True).plan.notes
    assert "token=z: the base knows the word z already; it will mean the subject in prompts" in notes
    assert "init=ball has 4 tokens, of which the first is used" in notes


@pytest.fixture
def two(pictures: Path) -> Path:
    """Two concepts' folders, with a picture in both."""
    for number, name in enumerate(("cat", "dog")):
        (pictures / name).mkdir()
        for picture in (number, 2, 3 + number):
            shutil.copy(pictures / f"{picture}.png", pictures / name)
    return pictures


def test_several_concepts_learn_in_one_run_each_with_its_word(tiny_base: Path, two: Path, tmp_path: Path) -> None:
    given = {"concepts": "cat|dog", "class_": "cat|old dog", "class_images": 2, "init": "k|p", "token_lr": 1.0}
    report = train(tiny_base, two, tmp_path / "both", **given)
    assert [Path(path).name for path in report.saved] == ["both.cat.safetensors", "both.dog.safetensors"]
    assert report.plan.pictures == 6 and report.plan.class_pictures is not None
    assert report.plan.class_pictures.prompt == "a cat | an old dog"
    assert (report.plan.class_pictures.pictures, report.plan.class_pictures.to_draw) == (4, 4)
    assert report.plan.examples["0.png"] == "photo of a <cat> cat"
    table = load_backbone(tiny_base).module("text_encoder.text_model.embeddings.token_embedding").weight
    with open_weights(report.output) as weights:
        assert json.loads(weights.metadata["sdkit.trigger_words"]) == ["<cat>", "<dog>"]
    for path, letter in zip(report.saved, "kp", strict=True):
        row = next(iter(load_file(path).values()))[0]
        own = table[3 + "abcdefghijklmnopqrstuvwxyz".index(letter)]  # behind the three marks
        assert not torch.equal(row, own) and float((row - own).norm()) < 3 * 24**0.5  # AdamW steps of at most 1
    merged = sdkit.merge(tiny_base, report.output, tmp_path / "merged")
    assert len(merged.saved) == 2  # both words lie beside the merged model


def test_concepts_that_do_not_fit_together_are_named(tiny_base: Path, two: Path, tmp_path: Path) -> None:
    for message, given in (
        ("class=dog: 1 for 2 concepts", {"class_": "dog"}),
        ("token=<a>: 1 for 2 concepts", {"token": "<a>"}),
        ("two concepts have one word", {"token": "<a>|<a>"}),
        ("is no list of different folders", {"concepts": "cat|cat"}),
        ("is no list of different folders", {"concepts": "cat|../dog"}),
        ("no such folder", {"concepts": "cat|cow"}),
        ("is of one concept", {"init": str(tmp_path / "x.safetensors")}),
    ):
        with pytest.raises(SdkitError, match=message):
            train(tiny_base, two, tmp_path / "x", **{"concepts": "cat|dog", "init": "", **given})


@pytest.mark.slow
def test_sdxl_s_word_has_rows_for_both_encoders(tiny_sdxl: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_sdxl, pictures, tmp_path / "x", steps=1)
    assert {name: tuple(row.shape) for name, row in load_file(report.saved[0]).items()} == {
        "clip_l": (1, 24),
        "clip_g": (1, 40),
    }
    backbone = load_backbone(tiny_sdxl)
    with open_weights(report.output) as weights, install(read_adapter(weights, backbone.model), backbone) as count:
        assert count == report.plan.modules - 2


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_run_bit_for_bit(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    settings = ["steps=6", "save_every=2", "init=k", "lr=1e-2", "class=ball", "class_images=2"]
    whole, killed = whole_and_killed("custom-diffusion", tiny_base, pictures, settings, tmp_path)
    for name in ("x.safetensors", "x.x.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
