from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import sdkit
from sdkit.core.events import Event, Note
from sdkit.training.audit import BLURRED, audit_captions, audit_pictures, look
from sdkit.training.buckets import bucket_sizes
from sdkit.training.data import Sample, read_dataset
from sdkit.training.identifier import base_tokenizer
from sdkit.training.plan import look_at_base

SIZES = bucket_sizes(128, 8)


def photo(seed: int, size: tuple[int, int] = (128, 128)) -> Image.Image:
    """Discs and bars with hard edges, each seed its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]] / 128
    pixels = np.full((size[1], size[0], 3), 90.0)
    for _ in range(12):
        left, top, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.25)
        inside = (x - left) ** 2 + (y - top) ** 2 < radius**2
        pixels[inside] = rng.uniform(0, 255, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def folder(tmp_path: Path, pictures: list[Image.Image], captions: list[str] | None = None) -> tuple[Sample, ...]:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(captions[number] if captions else f"a ball, view {number}")
    return read_dataset(tmp_path).samples


def notes(samples: tuple[Sample, ...]) -> list[str]:
    return audit_pictures(samples, SIZES, "white")


def test_good_pictures_need_no_advice(tmp_path: Path) -> None:
    assert notes(folder(tmp_path, [photo(seed) for seed in range(6)])) == []


def test_few_pictures_are_counted_without_their_copies(tmp_path: Path) -> None:
    found = notes(folder(tmp_path, [photo(0), photo(1), photo(1)]))
    assert found[0].startswith("2 pictures are few: 5 to 30")
    assert "1 of 3 pictures is a near-copy of others" in found[1]


def test_what_is_blurred_or_was_enlarged_before_is_named(tmp_path: Path) -> None:
    pictures = [photo(seed) for seed in range(8)]
    pictures[2] = pictures[2].filter(ImageFilter.GaussianBlur(3))
    pictures[5] = pictures[5].resize((24, 24), Image.Resampling.BOX).resize((128, 128), Image.Resampling.BICUBIC)
    found = notes(folder(tmp_path, pictures))
    assert found == ["2 of 8 pictures are blurred or enlarged from something small: 2.png, 5.png"]


def test_a_large_picture_may_be_soft_at_its_own_size(tmp_path: Path) -> None:
    """What counts is the size it is trained at."""
    soft = photo(0).resize((1024, 1024), Image.Resampling.BICUBIC)
    assert notes(folder(tmp_path, [soft, *(photo(seed) for seed in range(1, 6))])) == []


def test_flat_pictures_are_neither_blurred_nor_alike(tmp_path: Path) -> None:
    pictures = [photo(seed) for seed in range(5)] + [Image.new("RGB", (128, 128), name) for name in ("red", "blue")]
    assert notes(folder(tmp_path, pictures)) == []


def test_near_copies_are_found_and_other_views_are_not(tmp_path: Path) -> None:
    data = io.BytesIO()
    photo(3).resize((110, 110)).save(data, "JPEG", quality=60)
    found = notes(folder(tmp_path, [*(photo(seed) for seed in range(6)), Image.open(data)]))
    assert found == ["1 of 7 pictures is a near-copy of others, and count more by that: 3.png and 6.png"]


def test_small_and_cut_pictures_are_named(tmp_path: Path) -> None:
    pictures = [*(photo(seed) for seed in range(5)), photo(5, (64, 64)), photo(6, (512, 128))]
    found = notes(folder(tmp_path, pictures))
    assert "1 of 7 pictures is smaller than 128x128, and enlarged: 5.png" in found
    assert "1 of 7 pictures loses more than 30% to the nearest size: 6.png" in found


@pytest.mark.parametrize("subject", ["dog", "teapot", "clock"])
def test_photographs(test_data: Path, tmp_path: Path, subject: str) -> None:
    """Real ones are sharp and unlike one another; blurred by two pixels they are not sharp."""
    files = sorted((test_data / "data" / "dreambooth" / subject).glob("*.jpg"))
    samples = tuple(Sample(file.name, file, "a photo", "", Image.open(file).size) for file in files)
    sizes = bucket_sizes(512, 64)
    assert files and not any(
        "blurred" in note or "near-cop" in note for note in audit_pictures(samples, sizes, "white")
    )
    blurred = tmp_path / "x.png"
    Image.open(files[0]).filter(ImageFilter.GaussianBlur(2)).save(blurred)
    found = look(blurred, (512, 512), "white")
    assert found is not None and found.sharpness < BLURRED


CAPTIONS = ["sks ball, red", "sks ball, blue", "a ball", "sks ball", "sks ball on grass"]


def captioned(tmp_path: Path, tiny_base: Path, captions: list[str], token: str = "") -> list[str]:
    samples = folder(tmp_path, [photo(seed) for seed in range(len(captions))], captions)
    base = look_at_base(tiny_base)
    return audit_captions(samples, token, base_tokenizer(base.path, base.configs["text_encoder"]), 18)


def test_captions_without_the_word_are_named(tmp_path: Path, tiny_base: Path) -> None:
    found = captioned(tmp_path, tiny_base, CAPTIONS, "sks")
    assert found == ["1 of 5 pictures is not captioned with sks: 2.png", LONG]
    assert captioned(tmp_path, tiny_base, ["ball a", "ball b"], "sks")[0].startswith("no caption names sks")
    assert captioned(tmp_path, tiny_base, ["a sks ball", "sks"], "sks") == []


LONG = "1 caption is longer than the 16 tokens that are read (the longest has 17), and what comes behind is not seen: 4.png"  # noqa: E501


def test_captions_that_are_all_the_same_say_nothing(tmp_path: Path, tiny_base: Path) -> None:
    found = captioned(tmp_path, tiny_base, ["a sks ball"] * 5, "sks")
    assert len(found) == 1 and found[0].startswith("all captions are the same")
    samples = [
        replace(sample, source="caption=") for sample in folder(tmp_path, [photo(seed) for seed in range(5)], ["x"] * 5)
    ]
    base = look_at_base(tiny_base)
    assert audit_captions(samples, "", base_tokenizer(base.path, base.configs["text_encoder"]), 18) == []


def test_advice_stands_in_the_plan_and_at_the_start(tiny_base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    folder(data, [photo(0), photo(1)])
    plan = sdkit.train("lora", tiny_base, data, tmp_path / "out", dry_run=True).plan
    assert any(note.startswith("2 pictures are few") for note in plan.notes)
    events: list[Event] = []
    sdkit.train("lora", tiny_base, data, tmp_path / "out", steps=1, rank=1, watch=events.append)
    said = [event.text for event in events if isinstance(event, Note)]
    assert said[: len(plan.notes)] == list(plan.notes)
