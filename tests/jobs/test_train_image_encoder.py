from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import whole_and_killed
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.jobs.train import TrainReport
from sdkit.runtime.image_tower import load_tower
from sdkit.runtime.load import load_backbone
from sdkit.training.objectives.contrastive import contrast

SMALL = {"image_size": 16, "width": 16, "layers": 1, "heads": 2, "projection": 12, "batch": 3, "steps": 2}


def train(base: Path, data: Path, out: Path, **options: Any) -> TrainReport:
    report: TrainReport = sdkit.train("image-encoder", base, data, out, **{**SMALL, **options})
    return report


def test_a_run_leaves_a_folder_that_transformers_loads(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_base, pictures, tmp_path / "x", save_dtype="fp32")
    folder = Path(report.output)
    vision = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    side = load_file(folder / "text_projection.safetensors")
    assert side["text_projection.weight"].shape == (12, 24) and side["logit_scale"].shape == ()
    assert report.parameters == sum(p.numel() for p in vision.parameters()) + 12 * 24 + 1
    assert CLIPImageProcessor.from_pretrained(folder).crop_size == {"height": 16, "width": 16}
    tower = load_tower(folder, tiny_base)
    assert tower is not None
    pixels = torch.zeros(1, 3, 16, 16)
    seen = (0.5 - torch.tensor(CLIPImageProcessor().image_mean)) / torch.tensor(CLIPImageProcessor().image_std)
    with torch.no_grad():
        wanted = vision(seen[None, :, None, None].expand(1, 3, 16, 16)).image_embeds
    assert torch.allclose(tower.image_features(pixels), wanted, atol=1e-6)
    recipe = json.loads(_metadata(folder / "model.safetensors")["sdkit.recipe"])
    assert recipe["method"] == "image-encoder" and recipe["options"]["width"] == 16


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_the_loss_is_clips(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    """Cross-entropy both ways, written out; two pictures with one caption share it."""
    tower = load_tower(train(tiny_base, pictures, tmp_path / "x").output, tiny_base)
    assert tower is not None
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    captions = ["a", "b", "a"]
    cosines = (tower.images(pixels) @ tower.texts(captions).T).double() * math.exp(float(tower.logit_scale))
    shares = [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]
    for number, loss in enumerate(contrast(tower, pixels, captions).tolist()):
        wanted = 0.0
        for logits in (cosines[number], cosines[:, number]):
            total = math.log(sum(math.exp(value) for value in logits.tolist()))
            wanted += sum(share * (total - float(logit)) for share, logit in zip(shares[number], logits, strict=True))
        assert loss == pytest.approx(wanted / 2, rel=1e-5)


def test_it_learns_to_tell_pictures_apart(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_base, pictures, tmp_path / "x", steps=30, batch=5, validation=str(pictures), lr=3e-3)
    assert report.validation is not None and report.validation_before is not None
    assert report.validation < 0.8 * report.validation_before
    backbone = load_backbone(tiny_base)
    assert not backbone.towers  # none of its own: the base is as it was


def test_what_is_wrong_is_named_before_anything_is_computed(
    tiny_base: Path, tiny_sdxl: Path, pictures: Path, tmp_path: Path
) -> None:
    def refused(message: str, base: Path = tiny_base, **options: Any) -> None:
        with pytest.raises(SdkitError, match=message):
            train(base, pictures, tmp_path / "x", **options)
        assert not (tmp_path / "x").exists()

    refused("patch=5: 16 pixels cannot be cut into such patches", patch=5)
    refused("heads=3: a width of 16 cannot be divided", heads=3)
    refused("beside one CLIP text encoder, and sdxl has others", tiny_sdxl)
    refused("unknown option init=", init="x")


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_run_bit_for_bit(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    settings = [f"{key}={value}" for key, value in {**SMALL, "steps": 40, "save_every": 2, "flip": True}.items()]
    whole, killed = whole_and_killed("image-encoder", tiny_base, pictures, settings, tmp_path)
    for name in ("model.safetensors", "text_projection.safetensors"):
        assert (whole / "x" / name).read_bytes() == (killed / "x" / name).read_bytes()
