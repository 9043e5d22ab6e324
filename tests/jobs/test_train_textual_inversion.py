from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sdkit
from sdkit.core.errors import SdkitError, UsageError
from sdkit.formats import read_adapter
from sdkit.jobs.train import TrainReport
from sdkit.runtime.install import install
from sdkit.runtime.load import load_backbone
from sdkit.runtime.tokens import installed_words, spliced, words_of
from sdkit.training.trainables.tokens import rows_of_text
from sdkit.weights import open_weights


def train(base: Path, data: Path, out: Path, **options: Any) -> TrainReport:
    report: TrainReport = sdkit.train("textual-inversion", base, data, out, **{"steps": 2, **options})
    return report


@pytest.fixture
def bare(pictures: Path) -> Path:
    """Pictures without captions, whose names say nothing of what they show."""
    for number in range(5):
        (pictures / f"{number}.txt").unlink()
        (pictures / f"{number}.png").rename(pictures / f"photographer-{number}.png")
    return pictures


def test_a_run_leaves_a_word_that_can_be_used(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    report = train(tiny_base, bare, tmp_path / "my ball", vectors=2, validation=str(bare))
    assert report.finished and report.parameters == 2 * 24
    assert report.plan.caption_sources == {"templates": 5} and "begins as noise" in report.plan.notes[-1]
    assert report.plan.examples["photographer-0.png"] == "a photo of <my-ball>"
    ((name, rows),) = load_file(report.output).items()
    assert name == "<my-ball>" and rows.shape == (2, 24) and rows.dtype == torch.float32
    with open_weights(report.output) as weights:
        assert weights.metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
        assert json.loads(weights.metadata["sdkit.trigger_words"]) == ["<my-ball>"]
        backbone = load_backbone(tiny_base)
        with install(read_adapter(weights, backbone.model), backbone):
            assert installed_words(backbone, "text_encoder") == {"<my-ball>": (-1, -2)}
    assert 0.5 < report.output_bytes / report.plan.output_bytes < 1.5
    found = sdkit.inspect(report.output)
    assert found.kind == "textual-inversion" and found.trigger_words == ("<my-ball>",)


@pytest.mark.parametrize(("format", "suffix"), [("a1111", ".pt"), ("kohya", ".safetensors")])
def test_formats(tiny_base: Path, bare: Path, tmp_path: Path, format: str, suffix: str) -> None:
    report = train(tiny_base, bare, tmp_path / "ball", format=format, token="sks")
    assert report.output == str(tmp_path / "ball" / f"ball{suffix}")
    if format == "kohya":
        assert list(load_file(report.output)) == ["emb_params"]
        return
    contents = torch.load(report.output, weights_only=True)
    assert contents["string_to_param"]["*"].shape == (1, 24)
    assert (contents["name"], contents["step"], contents["sd_checkpoint_name"]) == ("sks", 2, "base")


def test_captions_of_their_own_get_the_word(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "0.txt").write_text("a {} in the sun")
    plan = train(tiny_base, pictures, tmp_path / "x", dry_run=True, init="ball").plan
    assert plan.examples["0.png"] == "a <x> in the sun" and plan.examples["1.png"] == "<x>, a ball, 1"
    assert "4 captions do not name <x>: it is put in front of them" in plan.notes
    assert "init=ball has 4 tokens, of which vectors=1 are used" in plan.notes


def test_a_word_the_base_knows_is_said(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    notes = train(tiny_base, bare, tmp_path / "x", dry_run=True, token="z", init="b").plan.notes
    assert "in 5 captions z comes after the 12 tokens that are read" in notes  # of letters
    assert len(notes) == 2 and "token=z: the base knows z" in notes[1]


def test_a_word_behind_the_end_of_all_captions_is_refused(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    with pytest.raises(SdkitError, match="in all captions <x> comes after the 12 tokens"):
        train(tiny_base, bare, tmp_path / "x", caption="a photograph of {}")


def test_training_goes_on_from_a_word_or_a_file(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    still = {"lr": 0.0, "steps": 1}
    first = train(tiny_base, bare, tmp_path / "a", init="ball", vectors=4, **still)
    letters = load_backbone(tiny_base)
    table = letters.module("text_encoder.text_model.embeddings.token_embedding").weight
    rows = load_file(first.output)["<a>"]
    assert torch.equal(rows, table[letters.token_ids("text_encoder", "ball")])
    second = train(tiny_base, bare, tmp_path / "b", init=first.output, format="a1111", **still)
    third = train(tiny_base, bare, tmp_path / "c", init=second.output, vectors=6, token="<d>", **still)
    assert torch.equal(load_file(third.output)["<d>"], rows[[0, 1, 2, 3, 0, 1]])
    assert second.parameters == first.parameters == 96
    recipes = []
    for report in (first, third):
        with open_weights(report.output) as weights:
            recipes.append(json.loads(weights.metadata["sdkit.recipe"]))
    assert recipes[0]["options"]["init"] == "ball" and len(recipes[0]["parents"]) == 1
    assert [entry["role"] for entry in recipes[1]["parents"]] == ["base", "init"]
    assert "init" not in recipes[1]["options"]


def test_the_rate_grows_with_the_pictures_in_a_step_if_asked(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    """Adam's first step is as long as the rate, whatever the gradient."""
    steps = {}
    for scaled in (False, True):
        options = {"steps": 1, "batch": 2, "accumulate": 3, "lr": 1e-3, "init": "b", "scale_lr": scaled}
        rows = load_file(train(tiny_base, bare, tmp_path / f"{scaled}", token="<w>", **options).output)["<w>"]
        start = load_file(train(tiny_base, bare, tmp_path / f"{scaled}0", token="<w>", **options | {"lr": 0.0}).output)
        steps[scaled] = float((rows - start["<w>"]).abs().median())
    assert steps[False] == pytest.approx(1e-3, rel=1e-3) and steps[True] == pytest.approx(6e-3, rel=1e-3)


def test_a_resume_keeps_the_word(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    train(tiny_base, bare, tmp_path / "x", save_every=1)
    (tmp_path / "x").rename(tmp_path / "y")
    resumed = train(tiny_base, bare, tmp_path / "y", steps=3, resume=True)
    assert resumed.step == 3 and list(load_file(resumed.output)) == ["<x>"]


def test_what_is_wrong_is_named_before_anything_is_computed(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    def refused(message: str, out: str = "x", **options: Any) -> SdkitError:
        with pytest.raises(SdkitError, match=message) as error:
            train(tiny_base, bare, tmp_path / out, **options)
        assert not (tmp_path / out).exists()
        return error.value

    refused("vectors=17: must be at most 16", vectors=17)
    refused("format=peft: no embedding is written in it", format="peft")
    refused("unknown number format 'keep'", save_dtype="keep")
    assert "style" in refused("property=stile: unknown", property="stile").hint
    refused("unknown option rank=", rank=4)
    refused("no such file", init="nothing.safetensors")
    assert "x.pt" in refused("a .pt file is written", out="x.safetensors", format="a1111").hint
    torch.save({"string_to_param": {"*": torch.ones(1, 768)}, "name": "cat"}, tmp_path / "cat.pt")
    refused(r"cat is made of 768 .* this sd1 base reads 24", init=str(tmp_path / "cat.pt"))


def test_a_recipe_s_word_is_no_path(tmp_path: Path) -> None:
    from sdkit.jobs.train_recipe import read_recipe

    def init(value: str) -> Any:
        (tmp_path / "x.yaml").write_text(f"method: textual-inversion\ninit: {value}\n")
        return read_recipe(tmp_path / "x.yaml")["init"]

    (tmp_path / "ball").mkdir()
    assert init("ball") == "ball"  # a folder of pictures
    (tmp_path / "ball" / "adapter_config.json").touch()
    assert init("ball") == tmp_path / "ball"
    assert init("cat.pt") == tmp_path / "cat.pt"


def test_the_same_run_gives_the_same_file(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    contents = [
        Path(train(tiny_base, bare, tmp_path / str(n) / "x", seed=n % 2, steps=1, format="a1111").output).read_bytes()
        for n in range(3)
    ]
    assert contents[0] == contents[2] != contents[1]


def test_an_unknown_method_s_name_is_guessed(tiny_base: Path, bare: Path) -> None:
    with pytest.raises(UsageError) as error:
        sdkit.train("textual_inversoin", tiny_base, bare)
    assert error.value.hint == "did you mean textual-inversion?"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("format", ["diffusers", "a1111"])
def test_sdxl_learns_a_word_in_both_encoders_and_diffusers_reads_it(
    tiny_sdxl: Path, bare: Path, tmp_path: Path, format: str
) -> None:
    from diffusers import StableDiffusionXLPipeline

    options = {"token": "<w>", "init": "b", "caption": "{} c", "lr": 0.05, "format": format}
    report = train(tiny_sdxl, bare, tmp_path / "w", **options)
    assert report.parameters == 24 + 40
    saved = load_file(report.output) if format == "diffusers" else torch.load(report.output, weights_only=True)
    start = rows_of_text(load_backbone(tiny_sdxl), "b", 1)
    assert (saved["clip_l"] - start["text_encoder"]).abs().max() > 0.04
    assert (saved["clip_g"] - start["text_encoder_2"]).abs().max() > 0.04

    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True)
    pipeline.load_textual_inversion(saved["clip_l"], token="<w>")
    second = {"text_encoder": pipeline.text_encoder_2, "tokenizer": pipeline.tokenizer_2}
    pipeline.load_textual_inversion(saved["clip_g"], token="<w>", **second)
    backbone = load_backbone(tiny_sdxl)
    with open_weights(report.output) as weights, torch.no_grad():
        artifact = read_adapter(weights, backbone.model)
        assert [part.token for part in artifact.tokens] == ["<w>" if format == "a1111" else "w"] * 2
        words = {"<w>": next(iter(words_of(artifact, backbone).values()))}
        with spliced(backbone, words):
            ours = backbone.encode_text(backbone.tokenize(["a<w>c"]), (16, 16))
        context, _, pooled, _ = pipeline.encode_prompt("a<w>c", do_classifier_free_guidance=False)
    assert torch.equal(ours.context, context) and torch.equal(ours.added["text_embeds"], pooled)


def test_the_real_sdxl_s_word_has_2048_numbers_a_vector(
    sparse: Callable[..., Path], real_header: Callable[[str], dict[str, Any]], bare: Path, tmp_path: Path
) -> None:
    header = {name: entry for name, entry in real_header("sdxl-sgm").items() if not name.startswith("edm")}
    base = sparse(header, name="sdxl.safetensors")
    plan = train(base, bare, tmp_path / "x", vectors=3, resolution=256, dry_run=True, token="sunflower sks").plan
    assert (plan.family, plan.modules, plan.parameters) == ("sdxl", 2, 3 * (768 + 1280))
    assert "token=sunflower sks: the base knows sunflower;" in " ".join(plan.notes)
    torch.save({"string_to_param": {"*": torch.ones(1, 768)}}, tmp_path / "sd1.pt")
    with pytest.raises(SdkitError, match=r"768 numbers a token in the text_encoder, but this sdxl base reads .* 1280"):
        train(base, bare, tmp_path / "x", init=str(tmp_path / "sd1.pt"), dry_run=True)
