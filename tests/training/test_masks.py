"""Masked loss: where masks are found, how they follow their pictures, and that what they leave out does not train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.runtime.load import load_backbone
from sdkit.runtime.losses import held_out_losses
from sdkit.runtime.rng import StepRNG
from sdkit.training.cache import TensorCache
from sdkit.training.data import Dataset, read_dataset
from sdkit.training.feed import Feed, FeedSettings
from sdkit.training.masks import latent_mask

SIZE = (32, 16)


def half(size: tuple[int, int] = SIZE) -> Image.Image:
    """White on the left, black on the right."""
    grey = np.zeros((size[1], size[0]), np.uint8)
    grey[:, : size[0] // 2] = 255
    return Image.fromarray(grey)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One opaque picture, and one that is transparent on the right."""
    place = tmp_path / "data"
    place.mkdir()
    for name, colour in (("gas", "red"), ("dog", "blue")):
        Image.new("RGB", SIZE, colour).save(place / f"{name}.png")
        (place / f"{name}.txt").write_text(f"a {name}")
    seen = Image.new("RGB", SIZE, "green")
    seen.putalpha(half())
    seen.save(place / "cut.png")
    (place / "cut.txt").write_text("a cut")
    return place


def masks(data: Dataset) -> dict[str, str | None]:
    return {sample.path.name: sample.mask.name if sample.mask else None for sample in data.samples}


def test_masks_are_found_where_people_put_them(folder: Path) -> None:
    half().save(folder / "gas-mask.png")
    half().save(folder / "dog-masklabel.png")
    nothing = {"cut.png": None, "dog.png": None, "gas.png": None}
    plain = read_dataset(folder)
    assert masks(plain) == nothing and "2 masks are not used; mask=files uses them" in plain.notes
    beside = read_dataset(folder, mask="files")
    assert masks(beside) == {**nothing, "dog.png": "dog-masklabel.png", "gas.png": "gas-mask.png"}
    assert "1 pictures have no mask: all of them counts" in beside.notes
    assert masks(read_dataset(folder, mask="alpha")) == {**nothing, "cut.png": "cut.png"}
    (folder / "masks").mkdir()
    half().save(folder / "masks" / "dog.jpg")
    within = read_dataset(folder, mask="masks")
    assert masks(within) == {**nothing, "dog.png": "dog.jpg"} == masks(read_dataset(folder, mask=str(folder / "masks")))
    assert not any("in masks are not used" in note for note in within.notes)
    assert len({plain.id, beside.id, within.id}) == 3  # a resume sees that a mask has changed


def test_a_picture_called_mask_is_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", SIZE).save(tmp_path / "gas-mask.png")
    assert masks(read_dataset(tmp_path)) == {"gas-mask.png": None}


def test_unusable_masks_are_named(folder: Path) -> None:
    half((16, 16)).save(folder / "dog-mask.png")
    with pytest.raises(SdkitError, match=r"dog-mask.png: is 16 by 16 pixels, its picture 32 by 16"):
        read_dataset(folder, mask="files")
    Image.new("L", SIZE).save(folder / "dog-mask.png")
    with pytest.raises(SdkitError, match="leaves nothing of dog.png"):
        read_dataset(folder, mask="files")
    (folder / "dog-mask.png").write_bytes(b"no picture")
    with pytest.raises(SdkitError, match="dog-mask.png: cannot be decoded"):
        read_dataset(folder, mask="files")
    with pytest.raises(SdkitError, match="mask=nowhere: no such folder"):
        read_dataset(folder, mask="nowhere")


def test_a_mask_is_cut_like_its_picture_and_averaged(tmp_path: Path) -> None:
    """A picture twice as wide as high, shown square: its middle half is left, whose left half is white."""
    half((64, 32)).save(tmp_path / "mask.png")
    square = latent_mask(tmp_path / "picture.png", tmp_path / "mask.png", (16, 16), 2)
    assert square.shape == (1, 8, 8)
    assert (square[..., :3] > 0.99).all() and (square[..., 5:] < 0.01).all()
    grey = np.zeros((4, 4), np.uint8)
    grey[0, 0] = 255
    Image.fromarray(grey).save(tmp_path / "dot.png")
    assert torch.equal(
        latent_mask(tmp_path / "x.png", tmp_path / "dot.png", (4, 4), 2), torch.tensor([[[0.25, 0.0], [0.0, 0.0]]])
    )


def made(tiny_base: Path, data: Dataset, **settings: Any) -> Feed:
    chosen = FeedSettings(batch=3, buckets=[SIZE], **settings)
    return Feed(data.samples, load_backbone(tiny_base), TensorCache(None), chosen, frozenset({"latents", "cond"}))


def test_batches_hold_masks_flipped_like_their_pictures(tiny_base: Path, folder: Path) -> None:
    half().save(folder / "dog-mask.png")
    data = read_dataset(folder, mask="files")
    (dog,) = (sample.id for sample in data.samples if sample.path.name == "dog.png")
    assert made(tiny_base, read_dataset(folder)).batch(0, StepRNG(0)).mask is None
    seen = set()
    for index in range(8):
        rng = StepRNG(0, index)
        batch = made(tiny_base, data, flip=True, unmasked_weight=0.1).batch(index, rng)
        assert batch.mask is not None and batch.mask.shape == (3, 1, 8, 16)
        for name, mask in zip(batch.samples, batch.mask, strict=True):
            left, right = float(mask[..., :7].mean()), float(mask[..., 9:].mean())
            if name.partition("#")[0] != dog:
                assert (left, right) == (1.0, 1.0)
                continue
            flipped = rng.chance(0.5, "flip", name)
            seen.add(flipped)
            assert (left, right) == pytest.approx((0.1, 1.0) if flipped else (1.0, 0.1))
    assert seen == {False, True}


def test_what_a_mask_leaves_out_does_not_count(tiny_base: Path, folder: Path, tmp_path: Path) -> None:
    """The held-out loss of a masked picture is the mean over the places that count."""
    half().save(folder / "dog-mask.png")
    data = read_dataset(folder, mask="files")
    feed = made(tiny_base, data)
    backbone = load_backbone(tiny_base)
    (dog,) = (sample for sample in data.samples if sample.path.name == "dog.png")
    held_out = feed.held_out(dog, SIZE)
    masked = float(held_out_losses(backbone, [held_out], pairs=1))
    assert held_out.latents is not None
    with torch.no_grad():
        clean = held_out.latents.mean
        noise = StepRNG(0).normal((1, *clean.shape[1:]), "held-out", dog.id)
        noised = backbone.schedule.noise(clean, noise, torch.tensor([500]))
        cond = backbone.encode_text(backbone.tokenize(["a dog"]), SIZE)
        error = (backbone.denoise(noised, torch.tensor([500]), cond) - noise).square()
    left = latent_mask(dog.path, dog.mask or dog.path, SIZE, 2) > 0.5
    assert masked == pytest.approx(float(error[..., left[0]].mean()), rel=1e-2)
    assert masked != pytest.approx(float(error.mean()), rel=1e-2)


def test_a_run_with_masks(tiny_base: Path, folder: Path, tmp_path: Path) -> None:
    options = {"rank": 2, "steps": 2, "batch": 3, "lr": 0.05, "save_dtype": "fp32", "resolution": 16}
    reports = {
        mask: sdkit.train("lora", tiny_base, folder, tmp_path / (mask or "none"), mask=mask, **options)
        for mask in ("", "alpha")
    }
    assert "2 pictures have no mask: all of them counts" in reports["alpha"].plan.notes
    assert Path(reports[""].output).read_bytes() != Path(reports["alpha"].output).read_bytes()
    with pytest.raises(SdkitError, match="mask=files: no picture has a mask"):
        sdkit.train("lora", tiny_base, folder, tmp_path / "x", mask="files", **options)
