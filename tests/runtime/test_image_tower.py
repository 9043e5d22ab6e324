from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import write_clip_model
from transformers import CLIPImageProcessor, CLIPModel

from sdkit.core.errors import SdkitError
from sdkit.runtime.image_tower import MEAN, STD, fitted, give_towers, load_tower
from sdkit.runtime.load import load_backbone


@pytest.fixture
def clip(tiny_base: Path, tmp_path: Path) -> Path:
    return write_clip_model(tmp_path / "clip", tiny_base)


def test_a_clip_model_gives_what_transformers_gives(clip: Path) -> None:
    tower, theirs = load_tower(clip), CLIPModel.from_pretrained(clip).eval()
    assert tower is not None
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    with torch.no_grad():
        images = theirs.vision_model(((pixels + 1) / 2 - mean) / std).pooler_output
        wanted = torch.nn.functional.normalize(theirs.visual_projection(images), dim=-1)
        assert torch.allclose(tower.images(pixels), wanted, atol=1e-6)
        # a dog: beginning, letters, end, and the end again as padding
        ids = tower.tokenizer(["adog", "cat"], padding="max_length", max_length=12, return_tensors="pt").input_ids
        hidden = theirs.text_model(ids).last_hidden_state
        ends = torch.stack([hidden[0, 5], hidden[1, 4]])
        wanted = torch.nn.functional.normalize(theirs.text_projection(ends), dim=-1)
        assert torch.allclose(tower.texts(["adog", "cat"]), wanted, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (24, 57), (16, 16)])
def test_pictures_are_cut_as_clip_cuts_them(size: tuple[int, int]) -> None:
    from PIL import Image

    height, width = size
    ramp = torch.linspace(0, 1, height)[:, None] * torch.linspace(0.2, 1, width)
    array = (torch.stack([ramp, ramp.flip(0), ramp.flip(1)], -1) * 255).round().byte()
    process = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16, do_normalize=False, do_rescale=False)
    theirs = torch.tensor(process(Image.fromarray(array.numpy())).pixel_values[0]).float() / 255
    ours = (fitted(array.permute(2, 0, 1)[None] / 127.5 - 1, 16)[0] + 1) / 2
    assert ours.shape == theirs.shape == (3, 16, 16)
    assert float((ours - theirs).abs().max()) < 2.5 / 255


def test_a_single_file_needs_its_configuration(clip: Path) -> None:
    whole, single = load_tower(clip), load_tower(clip / "model.safetensors")
    assert whole is not None and single is not None
    assert torch.equal(whole.projection, single.projection)
    (clip / "config.json").unlink()
    with pytest.raises(SdkitError, match=r"config.json beside it is missing"):
        load_tower(clip / "model.safetensors")


def test_the_tower_must_stand_beside_one_of_the_bases_text_encoders(clip: Path, tiny_base: Path) -> None:
    assert load_tower(tiny_base) is None
    backbone = load_backbone(tiny_base)
    with pytest.raises(SdkitError, match=r"this base has no image encoder"):
        give_towers(backbone, "")
    give_towers(backbone, str(clip))
    assert list(backbone.towers) == ["text_encoder"]
    assert torch.equal(
        backbone.towers["text_encoder"].text.get_parameter("final_layer_norm.weight"),
        backbone.module("text_encoder.text_model.final_layer_norm").weight,  # type: ignore[arg-type]
    )
    with pytest.raises(SdkitError, match=r"has 2 layers of 112, base has 2 layers of 24 \(text_encoder\)"):
        give_towers(load_backbone(tiny_base), "tiny")


def test_sdxl_has_a_tower_for_each_text_encoder(tiny_sdxl: Path, tmp_path: Path) -> None:
    first = write_clip_model(tmp_path / "l", tiny_sdxl)
    second = write_clip_model(tmp_path / "g", tiny_sdxl, "text_encoder_2")
    backbone = load_backbone(tiny_sdxl)
    give_towers(backbone, f"{second}, {first}")
    assert {name: tower.projection.shape for name, tower in backbone.towers.items()} == {
        "text_encoder": (20, 24),
        "text_encoder_2": (20, 40),
    }


def test_what_is_no_tower_is_refused_by_name(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(SdkitError, match=r"nothing: no such file or folder"):
        load_tower(tmp_path / "nothing")
    config = json.loads((clip / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 32
    (clip / "config.json").write_text(json.dumps(config))
    with pytest.raises(SdkitError, match=r"has the shape \[16\], its configuration asks for \[32\]"):
        load_tower(clip)
    config["vision_config"]["hidden_size"] = 16
    config["vision_config"]["num_hidden_layers"] = 2
    (clip / "config.json").write_text(json.dumps(config))
    with pytest.raises(SdkitError, match=r"it lacks vision_model.encoder.layers.1"):
        load_tower(clip)


def test_tiny_finds_pictures_by_their_captions(tmp_path: Path) -> None:
    """The quickstart's drawings are of a style that neither the base nor its tower has seen."""
    from sdkit.families.bases import resolve_base
    from sdkit.training.images import fit, open_picture, pixels

    folder = Path(resolve_base("tiny")).parent / "quickstart"
    tower = load_tower("tiny")
    assert tower is not None and tower.width == 64
    lines = [json.loads(line) for line in next(folder.rglob("metadata.jsonl")).read_text("utf-8").splitlines()]
    files = [next(folder.rglob(line["file_name"])) for line in lines]
    shown = torch.stack([pixels(fit(open_picture(file, "white"), (64, 64))) for file in files])
    ranks = (tower.texts([line["text"] for line in lines]) @ tower.images(shown).T).argsort(1, descending=True)
    found = [index in row[:5].tolist() for index, row in enumerate(ranks)]
    assert sum(found) > len(found) / 2  # by chance a fifth
    # An image encoder's folder alone needs the base it was trained beside.
    alone = shutil.copytree(resolve_base("tiny") / "image_encoder", tmp_path / "alone")
    with pytest.raises(SdkitError, match=r"is half of a tower"):
        load_tower(alone)
    again = load_tower(alone, "tiny")
    assert again is not None and torch.equal(again.images(shown), tower.images(shown))
