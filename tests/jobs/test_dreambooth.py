from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import whole_and_killed

import sdkit
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.events import Drawn, Event
from sdkit.core.paths import cache_folder
from sdkit.generation import pictures as drawing
from sdkit.generation.pictures import draw
from sdkit.generation.prompt import _pieces
from sdkit.generation.request import Request
from sdkit.jobs import class_pictures
from sdkit.jobs.stop import StopRequest
from sdkit.jobs.train import TrainReport
from sdkit.runtime.load import load_backbone
from sdkit.runtime.tensors import read_tensors
from sdkit.training.identifier import known_words
from sdkit.training.method import load_method
from sdkit.weights import open_weights

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two steps a picture, and a cache of the test's own."""
    monkeypatch.setattr(class_pictures, "STEPS", 2)
    monkeypatch.setenv("SDKIT_CACHE", str(tmp_path / "cache"))


def train(base: Path, data: Path, out: Path, **options: Any) -> TrainReport:
    few = {"steps": 2, "batch": 2, "lr": 1e-3}
    report: TrainReport = sdkit.train("dreambooth", base, data, out, **{**few, **options})
    return report


def bare(pictures: Path) -> Path:
    """The same pictures without captions."""
    for file in pictures.glob("*.txt"):
        file.unlink()
    return pictures


def same(one: Path, other: Path) -> bool:
    first, second = read_tensors(one), read_tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def drawn() -> list[Path]:
    return sorted((cache_folder() / "class").rglob("*.png"))


def test_the_base_learns_and_is_written_as_it_came(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    made = Path(train(tiny_base, bare(pictures), tmp_path / "a" / "x").output)
    assert not same(made / UNET, tiny_base / UNET) and same(made / TEXT, tiny_base / TEXT)
    load_backbone(made)
    both = Path(train(tiny_base, pictures, tmp_path / "b" / "x", text_encoder=True).output)
    assert not same(both / UNET, tiny_base / UNET) and not same(both / TEXT, tiny_base / TEXT)
    assert not drawn()  # no class, no prior preservation


def test_a_lora_learns_instead(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_base, bare(pictures), tmp_path / "x", as_="lora", class_="ball", class_images=2)
    with open_weights(report.output) as weights:
        assert weights.metadata["ss_network_dim"] == "4" and weights.metadata["modelspec.trigger_phrase"] == "sks"
        recipe = json.loads(weights.metadata["sdkit.recipe"])
    assert (recipe["method"], recipe["options"]["as"], recipe["options"]["class"]) == ("dreambooth", "lora", "ball")
    assert sdkit.merge(tiny_base, report.output, tmp_path / "merged").matched == report.plan.modules


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"lr": 5e-6, "steps": 400, "token": "sks", "caption_dropout": 0.0, "class": None}),
        ({"class": "dog"}, {"lr": 5e-6, "steps": 800, "class_images": None, "prior_weight": 1.0}),
        ({"text_encoder": "yes"}, {"lr": 2e-6, "save_dtype": "keep"}),
        ({"as": "lora", "class": "dog"}, {"lr": 1e-4, "rank": 4, "steps": 500, "save_dtype": "fp16"}),
        ({"as": "lora", "rank": "8", "lr": "1e-3"}, {"lr": 1e-3, "rank": 8}),
    ],
)
def test_defaults_follow_what_is_asked_for(given: dict[str, str], wanted: dict[str, Any]) -> None:
    name, method = load_method("dreambooth")
    _, options = method.resolve(name, given)
    assert {key: options.as_dict()[key] for key in wanted} == wanted


def test_pictures_of_the_class_are_the_base_s_and_are_drawn_once(
    tiny_base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    out = tmp_path / "1"
    report = train(tiny_base, bare(pictures), out, class_="owl", class_images=3, watch=events.append)
    assert [(event.pictures, event.of) for event in events if isinstance(event, Drawn)] == [(1, 3), (2, 3), (3, 3)]
    assert report.plan.class_pictures is not None and report.plan.class_pictures.prompt == "an owl"
    requests = [Request("an owl", seed=seed, steps=2, cfg=7.0, width=16, height=16) for seed in range(3)]
    wanted = sorted(picture.tobytes() for picture in draw(load_backbone(tiny_base), requests))
    assert sorted(Image.open(path).convert("RGB").tobytes() for path in drawn()) == wanted
    steps = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines() if '"step", "step"' in line]
    for step in steps:
        assert step["loss"] == pytest.approx(step["parts"]["instance"] + step["parts"]["prior"])
    made = []

    def count(backbone: Any, requests: Any) -> Any:
        made.append(requests[0].seed)
        return draw(backbone, requests)

    monkeypatch.setattr(drawing, "draw", count)
    train(tiny_base, pictures, tmp_path / "2", class_="owl", class_images=3, seed=5)
    assert made == []
    train(tiny_base, pictures, tmp_path / "3", class_="owl", class_images=4)
    assert made == [3]
    train(tiny_base, pictures, tmp_path / "4", class_="cat", class_images=1)
    assert made == [3, 0] and len(drawn()) == 5


def test_a_class_is_drawn_as_it_is_written() -> None:
    pictures = class_pictures.ClassPictures("a dog (small) [old]", 1, 64, "base", "cpu")
    (piece,) = _pieces(pictures.request(0).prompt)
    assert (piece.text, piece.weight) == ("a dog (small) [old]", 1.0)


def test_pictures_of_the_class_may_be_given(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    Image.new("RGB", (16, 16), "blue").save(folder / "img1.png")
    own = {"class_": "ball", "class_data": str(folder), "as_": "lora"}
    report = train(tiny_base, pictures, tmp_path / "x", **own)
    with open_weights(report.output) as weights:
        assert str(tmp_path) not in json.dumps(weights.metadata)  # nor in what others are shown
    assert str(folder) not in (tmp_path / "x" / "report.html").read_text()
    assert report.plan.class_pictures is not None
    assert (report.plan.class_pictures.pictures, report.plan.class_pictures.to_draw) == (1, 0)
    assert report.plan.pictures == 5 and not drawn()
    Image.new("RGB", (16, 16), "red").save(folder / "img1.png")
    with pytest.raises(SdkitError, match="pictures or captions have changed"):
        sdkit.train("dreambooth", tiny_base, pictures, tmp_path / "x", resume=True, steps=3)


def test_pictures_without_captions_name_the_subject(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    bare(pictures)
    (pictures / "0.txt").write_text("a ball on grass")
    plan = train(tiny_base, pictures, tmp_path / "x", class_="ball", dry_run=True).plan
    assert list(plan.examples.values()) == ["a ball on grass", "a sks ball", "a sks ball"]
    plan = train(tiny_base, pictures, tmp_path / "x", token="zwx", dry_run=True).plan
    assert plan.examples["1.png"] == "a zwx" and plan.class_pictures is None
    plan = train(tiny_base, pictures, tmp_path / "x", caption="my ball", dry_run=True).plan
    assert plan.examples["1.png"] == "my ball"


def test_a_plan_says_what_is_to_be_drawn_and_draws_nothing(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    plain = train(tiny_base, pictures, tmp_path / "x", dry_run=True).plan
    words = [sys.executable, "-m", "sdkit", "train", "dreambooth", "--base", str(tiny_base), "--data", str(pictures)]
    words += ["-o", str(tmp_path / "x"), "class=ball", "steps=2", "batch=2", "--dry-run"]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    assert any(line.startswith("class   4 pictures of 'a ball', 4 to draw in about ") for line in lines)
    plan = train(tiny_base, pictures, tmp_path / "x", class_="ball", dry_run=True).plan
    assert plan.class_pictures is not None and plan.class_pictures.seconds > 0
    for given, count in (
        ({"steps": 2, "batch": 1, "accumulate": 3}, 6),
        ({"epochs": 2, "batch": 2}, 12),  # of five pictures: three batches an epoch
        ({"steps": 300, "batch": 2}, 200),
        ({"steps": 2, "batch": 1, "class_images": 5}, 5),
    ):
        shown = train(tiny_base, pictures, tmp_path / "x", class_="ball", dry_run=True, **given).plan.class_pictures
        assert shown is not None and (shown.pictures, shown.to_draw) == (count, count)
    assert plan.seconds > plain.seconds and plan.memory_bytes > plain.memory_bytes and not drawn()


def test_stopped_while_drawing_it_goes_on_where_it_was(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    stop = StopRequest()
    options = {"class_": "ball", "class_images": 4, "should_stop": stop}
    first = train(tiny_base, pictures, tmp_path / "x", watch=lambda event: stop.ask(), **options)
    assert (first.finished, first.step, len(drawn())) == (False, 0, 1)
    assert first.resume.endswith("x steps=2 batch=2 lr=0.001 class=ball class_images=4")  # no state to go on from
    rest = train(tiny_base, pictures, tmp_path / "x", class_="ball", class_images=4)
    assert rest.finished and len(drawn()) == 4


@pytest.mark.parametrize("form", ["weights", pytest.param("lora", marks=pytest.mark.slow)])
def test_killed_and_resumed_is_the_same_run_bit_for_bit(
    tiny_base: Path, pictures: Path, tmp_path: Path, form: str
) -> None:
    options = {"as": form, "class": "ball", "class_images": 3, "text_encoder": "yes", "steps": 6, "save_every": 2}
    settings = [f"{key}={value}" for key, value in {**options, "lr": 1e-3, "batch": 2}.items()]
    whole, killed = whole_and_killed("dreambooth", tiny_base, pictures, settings, tmp_path)
    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors") if "state" not in path.parts]
    assert any(path.name in ("x.safetensors", "diffusion_pytorch_model.safetensors") for path in files)
    assert all((whole / path).read_bytes() == (killed / path).read_bytes() for path in files)


@pytest.mark.slow
def test_prior_preservation_keeps_what_the_base_knows_of_the_class(tiny_base: Path, tmp_path: Path) -> None:
    known, held_out, subject = (tmp_path / name for name in ("known", "held-out", "subject"))
    for folder, shades in ((known, (40, 90, 140, 190)), (held_out, (65, 165))):
        folder.mkdir()
        for shade in shades:
            gradient = Image.linear_gradient("L").resize((16, 16))
            gradient.point(lambda value, shade=shade: (value + shade) // 2).convert("RGB").save(folder / f"{shade}.png")
    subject.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        dots = (rng.integers(0, 2, (16, 16, 3)) * 255).astype(np.uint8)
        Image.fromarray(dots).save(subject / f"{number}.png")
    start = {"steps": 150, "batch": 4, "lr": 5e-3, "save_every": 0, "caption": "a ball", "caption_dropout": 0}
    base = sdkit.train("fine-tune", tiny_base, known, tmp_path / "base", **start).output
    run = {"steps": 60, "lr": 5e-3, "validation": str(held_out), "caption": "a ball", "save_every": 0}
    rises = {}
    for name, own in (("without", {}), ("with", {"class_": "ball", "class_data": str(known)})):
        report = train(base, subject, tmp_path / name, **run, **own)
        assert report.validation is not None and report.validation_before is not None
        rises[name] = report.validation - report.validation_before
    assert rises["without"] > 0.005
    assert rises["with"] < rises["without"] - 0.015


def test_a_word_that_means_something_is_noted(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(Path(sdkit.__file__).parent / "assets" / "tokenizers" / "clip")
    assert known_words(tokenizer, "dog") == ["dog"] and known_words(tokenizer, "sks") == []
    notes = {
        token: train(tiny_base, bare(pictures), tmp_path / "x", token=token, dry_run=True).notes
        for token in ("sks", "abcd", "b")
    }
    assert notes["sks"] == ()
    assert "falls into 4 tokens" in notes["abcd"][0] and "knows the word b already" in notes["b"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"as_": "lroa"}, "as=lroa: unknown"),
        ({"rank": 8}, "rank= does not go with as=weights"),
        ({"class_data": "photos"}, "class_data= needs class="),
        ({"class_": "ball", "class_images": 0}, "class_images=0: must be at least 1"),
        ({"class_": "ball", "class_data": "nowhere"}, "no such folder"),
    ],
)
def test_what_is_wrong_is_named_first(
    tiny_base: Path, pictures: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, SdkitError), match=message):
        train(tiny_base, pictures, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()
