from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import write_clip_model

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.jobs.train import TrainReport
from sdkit.runtime.image_tower import load_tower
from sdkit.training.images import fit, open_picture, pixels


@pytest.fixture
def clip(tiny_base: Path, tmp_path: Path) -> Path:
    return write_clip_model(tmp_path / "clip", tiny_base)


def make(base: Path, data: Path, out: Path, **options: Any) -> TrainReport:
    report: TrainReport = sdkit.train("aesthetic-gradient", base, data, out, **options)
    return report


def test_it_is_the_mean_of_what_clip_sees(tiny_base: Path, pictures: Path, clip: Path, tmp_path: Path) -> None:
    report = make(tiny_base, pictures, tmp_path / "x", image_encoder=str(clip), save_dtype="fp32")
    assert report.finished and report.step == 0 and sdkit.inspect(report.output).kind == "aesthetic"
    with pytest.raises(SdkitError, match="cannot be merged") as refused:
        sdkit.merge(tiny_base, report.output, tmp_path / "merged.safetensors")
    assert "sdkit generate --base" in refused.value.hint and "<aesthetic:x:0.9>" in refused.value.hint
    tensors, tower = load_file(report.output), load_tower(clip)
    assert tower is not None
    sizes = {"0": (16, 16), "1": (16, 16), "2": (16, 16), "3": (12, 20), "4": (12, 20)}  # the base's buckets
    with torch.no_grad():
        shown = [pixels(fit(open_picture(pictures / f"{stem}.png", "white"), size)) for stem, size in sizes.items()]
        mean = torch.stack([tower.image_features(picture[None])[0] for picture in shown]).mean(0)
    assert torch.allclose(tensors["text_encoder.aesthetic"][0], mean, atol=1e-5)
    assert torch.equal(tensors["text_encoder.text_projection"], tower.projection)


def test_both_files_draw_the_same_picture(tiny_base: Path, pictures: Path, clip: Path, tmp_path: Path) -> None:
    ours = make(tiny_base, pictures, tmp_path / "a", image_encoder=str(clip), save_dtype="fp32")
    theirs = make(tiny_base, pictures, tmp_path / "b", image_encoder=str(clip), format="a1111", save_dtype="fp32")
    assert torch.load(theirs.output, weights_only=True).shape == (1, 20)
    few = {"steps": 2, "seed": 3}

    def drawn(name: str, prompt: str, **options: Any) -> bytes:
        report = sdkit.generate(tiny_base, prompt, tmp_path / f"{name}.png", **few, **options)
        return Image.open(report.output).tobytes()

    plain = drawn("plain", "a fox ")  # what is left of the prompts below
    tag = f"<aesthetic:{ours.output}:1:lr=1e-2>"
    steered = drawn("steered", f"a fox {tag}")
    assert steered != plain
    other = f"a fox <aesthetic:{theirs.output}:1:lr=1e-2>"
    assert drawn("other", other, image_encoder=str(clip)) == steered
    assert drawn("none", f"a fox <aesthetic:{ours.output}:1:steps=0>") == plain
    assert drawn("zero", f"a fox <aesthetic:{ours.output}:0>") == plain
    assert drawn("arc", f"a fox <aesthetic:{ours.output}:0.5:lr=1e-2:slerp=yes>") not in (plain, steered)
    assert drawn("beside", "a fox", adapters=[(ours.output, 1.0)]) != plain
    with pytest.raises(SdkitError, match=r"a vector of 20 needs a projection from the text_encoder's 24 numbers"):
        drawn("lacks", other)


def test_pictures_say_how_they_were_steered(tiny_base: Path, pictures: Path, clip: Path, tmp_path: Path) -> None:
    ours = make(tiny_base, pictures, tmp_path / "look", image_encoder=str(clip))
    report = sdkit.generate(
        tiny_base, f"a fox <aesthetic:{ours.output}:0.9:steps=3:lr=1e-2>", tmp_path / "x.png", steps=1
    )
    assert report.pictures[0].prompt == "a fox <aesthetic:look:0.9:steps=3:lr=0.01>"
    (used,) = report.adapters
    assert (used.kind, used.unet) == ("aesthetic", 0.9)


def test_what_is_wrong_is_named_before_anything_is_computed(
    tiny_base: Path, pictures: Path, clip: Path, tmp_path: Path
) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(SdkitError, match=message):
            make(tiny_base, pictures, tmp_path / "x", **options)
        assert not (tmp_path / "x").exists()

    refused("base: this base has no image encoder")
    refused("has 2 layers of 112, base has 2 layers of 24", image_encoder="tiny")
    refused("format=peft: no aesthetic embedding is written in it", format="peft", image_encoder=str(clip))
    refused("unknown option steps=", steps=3)
    refused("nothing: no such file or folder", image_encoder=str(tmp_path / "nothing"))
    for prompt, message in (
        ("<aesthetic:x:1:steps=2.5>", "steps are a whole number"),
        ("<aesthetic:x:1:unet=2>", "is no aesthetic embedding"),
        ("<aesthetic:x:1:2>", "is no aesthetic embedding"),
        ("<aesthetic:x:1:lr=-1>", "lr is at least 0"),
        ("<aesthetic:x:much>", "'much' is no number"),
    ):
        with pytest.raises(SdkitError, match=message):
            sdkit.generate(tiny_base, prompt, tmp_path / "x.png", steps=1)


@pytest.mark.slow
def test_what_is_drawn_comes_nearer_to_the_pictures(tmp_path: Path) -> None:
    """On a base that draws: pink pictures make a wolf pinker, and more so with more steps."""
    pink = tmp_path / "pink"
    pink.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (250, 175 + number, 205)).save(pink / f"{number}.png")
    look = make("tiny", pink, tmp_path / "look")  # type: ignore[arg-type]
    redness = []
    for steps in (0, 10, 30):
        prompt = f"wolf face <aesthetic:{look.output}:1:steps={steps}:lr=2e-3>"
        report = sdkit.generate("tiny", prompt, tmp_path / f"{steps}.png", steps=10, cfg=3.0)
        picture = pixels(Image.open(report.output).convert("RGB"))
        redness.append(float(picture[0].mean() - picture[1].mean()))
    assert redness[0] < redness[1] < redness[2]
