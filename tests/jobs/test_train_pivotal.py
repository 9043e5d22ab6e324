from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import whole_and_killed
from safetensors.torch import load_file

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.formats import read_adapter
from sdkit.jobs.train import TrainReport
from sdkit.runtime.install import install
from sdkit.runtime.load import load_backbone
from sdkit.runtime.tokens import installed_words
from sdkit.weights import open_weights

BUNDLED = "bundle_emb.<pup>.string_to_param.*"


def train(base: Path, data: Path, out: Path, **options: Any) -> TrainReport:
    few = {"steps": 2, "lr": 1e-2, "init": "b", "rank": 2, "token": "<pup>"}
    report: TrainReport = sdkit.train("pivotal", base, data, out, **{**few, **options})
    return report


def test_the_word_lies_in_the_lora_s_file_and_both_are_live(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_base, pictures, tmp_path / "x", token="", validation=str(pictures))
    tensors = load_file(report.output)
    (word,) = (name for name in tensors if name.startswith("bundle_emb."))
    assert word == "bundle_emb.<x>.string_to_param.*" and tensors[word].shape == (2, 24)
    assert tensors[word].dtype == torch.float32 and not report.saved
    lora = sum(
        value.numel() for name, value in tensors.items() if name.endswith(("lora_down.weight", "lora_up.weight"))
    )
    assert report.parameters == lora + 2 * 24
    assert report.plan.examples["0.png"] == "<x>, a ball, 0"
    backbone = load_backbone(tiny_base)
    with open_weights(report.output) as weights:
        artifact = read_adapter(weights, backbone.model)
        with install(artifact, backbone) as count:
            assert count == report.plan.modules and list(installed_words(backbone, "text_encoder")) == ["<x>"]
    found = sdkit.inspect(report.output)
    assert found.kind == "lora" and found.trigger_words == ("<x>",) and not found.problems
    merged = sdkit.merge(tiny_base, report.output, tmp_path / "merged")
    assert [Path(path).name for path in merged.saved] == ["merged.x.safetensors"]


@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_a_word_beside_is_brought_along(tiny_base: Path, pictures: Path, tmp_path: Path, format: str) -> None:
    options = {"format": format, "bundle": False, "lr": 0.0, "token_lr": 1.0, "steps": 1}
    report = train(tiny_base, pictures, tmp_path / "x", **options)
    assert Path(report.saved[0]).name == "x.pup.safetensors" and list(load_file(report.saved[0])) == ["<pup>"]
    few = {"steps": 2, "width": 16, "height": 16}

    def drawn(name: str, **more: Any) -> bytes:
        report = sdkit.generate(tiny_base, "<pup>", tmp_path / name, **few, **more)
        return Image.open(report.pictures[0].path).tobytes()

    plain, with_word = drawn("1.png"), drawn("2.png", adapters={report.output: 1.0})
    assert plain != with_word  # nothing of the LoRA has changed, so it is the word
    Path(report.saved[0]).unlink()
    assert drawn("3.png", adapters={report.output: 1.0}) == plain


@pytest.mark.parametrize("bundle", [True, False])
def test_training_goes_on_from_both(tiny_base: Path, pictures: Path, tmp_path: Path, bundle: bool) -> None:
    first = train(tiny_base, pictures, tmp_path / "a", vectors=3, bundle=bundle, save_dtype="fp32")
    still = {"lr": 0.0, "token_lr": 0.0, "init": first.output, "steps": 1, "save_dtype": "fp32"}
    second = train(tiny_base, pictures, tmp_path / "b", **still)
    assert second.parameters == first.parameters
    one, other = load_file(first.output), load_file(second.output)
    rows = one.pop(BUNDLED) if bundle else load_file(first.saved[0])["<pup>"]
    assert rows.shape == (3, 24) and torch.equal(other.pop(BUNDLED), rows)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_word_and_lora_have_their_own_rates(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    """Adam's first step is as long as the rate, whatever the gradient."""
    options = {"steps": 1, "save_dtype": "fp32", "weight_decay": 0.0}
    begin = load_file(train(tiny_base, pictures, tmp_path / "a", **options, lr=0.0, token_lr=0.0).output)
    after = load_file(train(tiny_base, pictures, tmp_path / "b", **options, lr=1e-3, token_lr=1e-2).output)
    moved = {name: float((after[name] - begin[name]).abs().median()) for name in begin}
    assert moved[BUNDLED] == pytest.approx(1e-2, rel=1e-2)
    assert max(moved[name] for name in moved if name.endswith("lora_up.weight")) == pytest.approx(1e-3, rel=1e-2)


def test_sdxl_s_bundle_names_both_encoders(tiny_sdxl: Path, pictures: Path, tmp_path: Path) -> None:
    tensors = load_file(train(tiny_sdxl, pictures, tmp_path / "x", steps=1).output)
    shapes = {name.rpartition(".")[2]: tuple(tensors[name].shape) for name in tensors if name.startswith("bundle_emb")}
    assert shapes == {"clip_l": (2, 24), "clip_g": (2, 40)}


def test_what_is_wrong_is_named_before_anything_is_computed(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(SdkitError, match=message):
            train(tiny_base, pictures, tmp_path / "x", **options)
        assert not (tmp_path / "x").exists()

    refused("token=<v1.5>: no word with a dot can be bundled", token="<v1.5>")
    refused("property=stile: unknown", property="stile")
    refused("format=cloneofsimo: no LoRA is written in it", format="cloneofsimo")
    refused("vectors=0: must be at least 1", vectors=0)
    lora = sdkit.train("lora", tiny_base, pictures, tmp_path / "lora", steps=1, rank=2)
    refused("the embedding of its word is not beside it", init=lora.output)


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_run_bit_for_bit(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    settings = ["steps=6", "save_every=2", "init=b", "rank=2", "lr=1e-2", "ema=0.9"]
    whole, killed = whole_and_killed("pivotal", tiny_base, pictures, settings, tmp_path)
    assert (whole / "x.safetensors").read_bytes() == (killed / "x.safetensors").read_bytes()
