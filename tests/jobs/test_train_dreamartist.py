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
from sdkit.jobs.train import TrainReport
from sdkit.runtime.guidance import Guidance
from sdkit.runtime.load import load_backbone
from sdkit.runtime.losses import HeldOut, held_out_losses
from sdkit.runtime.tokens import spliced
from sdkit.training.images import open_picture, pixels


def train(base: Path, data: Path, out: Path, **options: Any) -> TrainReport:
    few = {"steps": 2, "lr": 1e-2, "init": "b"}
    report: TrainReport = sdkit.train("dreamartist", base, data, out, **{**few, **options})
    return report


@pytest.fixture
def bare(pictures: Path) -> Path:
    """One picture without a caption."""
    for number in range(5):
        (pictures / f"{number}.txt").unlink()
    for number in range(1, 5):
        (pictures / f"{number}.png").unlink()
    (pictures / "0.png").rename(pictures / "photographer-0.png")
    return pictures


def test_a_run_leaves_two_embeddings(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    options = {"vectors": 2, "sample": "x", "sample_steps": 1, "validation": str(bare), "lr": 0.0, "negative_lr": 0.1}
    report = train(tiny_base, bare, tmp_path / "pup", **options)
    assert report.finished and report.parameters == (2 + 3) * 24 and report.plan.modules == 2
    assert report.saved == (str(tmp_path / "pup" / "pup-neg.safetensors"),)
    positive, negative = load_file(report.output), load_file(report.saved[0])
    assert list(positive) == ["<pup>"] and positive["<pup>"].shape == (2, 24)
    assert list(negative) == ["<pup-neg>"] and negative["<pup-neg>"].shape == (3, 24)
    start = train(tiny_base, bare, tmp_path / "start", lr=0.0, vectors=3, token="<w>", steps=1)
    begin = load_file(start.output)["<w>"]
    assert torch.equal(begin, load_file(start.saved[0])["<w-neg>"])  # both begin as the word
    assert torch.equal(positive["<pup>"], begin[:2]) and not torch.equal(negative["<pup-neg>"], begin)
    for path in (report.output, report.saved[0]):
        assert sdkit.inspect(path).kind == "textual-inversion"
    assert 0.5 < report.output_bytes / (report.plan.output_bytes / 2) < 1.5


def test_samples_are_drawn_against_the_negative_word(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    def sheet(name: str, **options: Any) -> bytes:
        few = {"steps": 1, "sample_steps": 2, "sample": "<w>", "token": "<w>", "negative_lr": 1.0, "lr": 0.0}
        train(tiny_base, bare, tmp_path / name, **few, **options)
        return Image.open(tmp_path / name / "samples" / "step-00000001-1.png").tobytes()

    assert sheet("a") == sheet("b", sample_negative="<w-neg>") != sheet("c", sample_negative="c")


def test_each_embedding_has_its_own_moving_average(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    """With a decay of 0 an average is the newest value; with one near 1 it lags behind."""
    plain = train(tiny_base, bare, tmp_path / "a", token="<w>", steps=4)
    averaged = train(tiny_base, bare, tmp_path / "b", token="<w>", steps=4, ema=0.0, negative_ema=0.9)
    assert torch.equal(load_file(plain.output)["<w>"], load_file(averaged.output)["<w>"])
    newest, average = (load_file(one.saved[0])["<w-neg>"] for one in (plain, averaged))
    assert not torch.equal(newest, average)
    alone = train(tiny_base, bare, tmp_path / "c", token="<w>", steps=4, negative_ema=0.9)
    assert torch.equal(load_file(alone.output)["<w>"], load_file(plain.output)["<w>"])
    assert torch.equal(load_file(alone.saved[0])["<w-neg>"], average)


def test_a_prompt_and_its_negative_call_them_by_name(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    train(tiny_base, bare, tmp_path / "pup", steps=1, negative_lr=1.0)
    few = {"steps": 2, "folder": tmp_path / "pup", "width": 16, "height": 16}

    def drawn(name: str, prompt: str, negative: str | None) -> bytes:
        report = sdkit.generate(tiny_base, prompt, tmp_path / name, negative=negative, **few)
        said = [note for note in report.notes if note.startswith("pup-neg is the negative prompt")]
        assert bool(said) == (negative is None)
        assert ("Negative prompt: pup-neg" in report.pictures[0].parameters) == (negative in (None, "pup-neg"))
        return Image.open(report.pictures[0].path).tobytes()

    both = drawn("1.png", "a pup", "pup-neg")
    assert both == drawn("2.png", "a <pup>", "<pup-neg>") != drawn("3.png", "a pup", "")
    assert both == drawn("4.png", "a pup", None)  # nobody says what the negative prompt is, and there is a pair


def test_a_pair_is_converted_as_one(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    made = train(tiny_base, bare, tmp_path / "pup", vectors=2, steps=1)
    report = sdkit.convert(made.output, "a1111", tmp_path / "x.pt")
    assert report.saved == (str(tmp_path / "x-neg.pt"),)
    for path, source, word in (("x.pt", made.output, "<pup>"), ("x-neg.pt", made.saved[0], "<pup-neg>")):
        rows = torch.load(tmp_path / path, weights_only=True)["string_to_param"]["*"]
        assert torch.equal(rows, load_file(source)[word])
    (tmp_path / "y-neg.pt").touch()
    with pytest.raises(SdkitError, match=r"y-neg.pt: already exists"):
        sdkit.convert(made.output, "a1111", tmp_path / "y.pt")
    assert not (tmp_path / "y.pt").exists()
    alone = sdkit.convert(made.saved[0], "a1111", tmp_path / "z.pt")
    assert alone.saved == () and not (tmp_path / "z-neg.pt").exists()


def test_training_goes_on_from_a_pair(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    first = train(tiny_base, bare, tmp_path / "a", vectors=2, negative_vectors=4, format="a1111")
    second = train(tiny_base, bare, tmp_path / "b", init=first.output, lr=0.0, steps=1)
    for path, other, word in ((first.output, second.output, "<b>"), (first.saved[0], second.saved[0], "<b-neg>")):
        rows = torch.load(path, weights_only=True)["string_to_param"]["*"]
        assert torch.equal(rows, load_file(other)[word])
    Path(first.saved[0]).unlink()
    with pytest.raises(SdkitError, match=r"a-neg.pt: no such file"):
        train(tiny_base, bare, tmp_path / "c", init=first.output)


def test_what_is_wrong_is_named_before_anything_is_computed(tiny_base: Path, bare: Path, tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(SdkitError, match=message):
            train(tiny_base, bare, tmp_path / "x", **options)
        assert not (tmp_path / "x").exists()

    refused("guidance=1: nothing would reach the negative embedding", guidance=1)
    refused("guidance=0.5: must be at least 1", guidance=0.5)
    refused("negative_vectors=17: must be at most 16", negative_vectors=17)
    refused("unknown option caption_dropout=", caption_dropout=0.1)
    refused("format=peft: no embedding is written in it", format="peft")
    (tmp_path / "y-neg.safetensors").touch()
    with pytest.raises(SdkitError, match=r"y-neg.safetensors: already exists"):
        train(tiny_base, bare, tmp_path / "y.safetensors")


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_run_bit_for_bit(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    settings = ["steps=6", "save_every=2", "init=b", "caption={}", "ema=0.9", "negative_ema=0.5", "reconstruction=0.1"]
    whole, killed = whole_and_killed("dreamartist", tiny_base, pictures, settings, tmp_path)
    for name in ("x.safetensors", "x-neg.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


@pytest.mark.slow
def test_the_guided_loss_falls_and_the_negative_embedding_has_its_part_in_it(
    tiny_base: Path, bare: Path, tmp_path: Path
) -> None:
    """The same run with the negative embedding held still ends higher."""
    losses = {}
    options = {"steps": 60, "batch": 4, "lr": 3e-2, "validation": str(bare), "caption": "{} c"}
    for name, rate in (("both", 3e-2), ("alone", 0.0)):
        report = train(tiny_base, bare, tmp_path / name, **options, negative_lr=rate)
        assert report.validation is not None and report.validation_before is not None
        losses[name] = report.validation
        assert report.validation < report.validation_before
    assert losses["both"] < losses["alone"]
    assert guided_loss(tiny_base, bare, tmp_path / "both", "<both-neg>") < guided_loss(
        tiny_base, bare, tmp_path / "both", ""
    )


def guided_loss(base: Path, data: Path, run: Path, negative: str) -> float:
    """The mean loss of the guided prediction with a trained word, against a negative prompt."""
    backbone = load_backbone(base)
    picture = pixels(open_picture(next(data.glob("*.png"))))[None]
    held_out = HeldOut("x", f"<{run.name}> c", (16, 16), backbone.encode_image(picture))
    rows = {path.stem: load_file(path) for path in run.glob("*.safetensors")}
    words = {word: {"text_encoder": part} for file in rows.values() for word, part in file.items()}
    with spliced(backbone, words):
        return float(held_out_losses(backbone, [held_out], guidance=Guidance(negative, 5.0)).mean())
