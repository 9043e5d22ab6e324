from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdkit.core.errors import SdkitError, UsageError
from sdkit.training.buckets import bucket_sizes, nearest_size
from sdkit.training.data import Dataset, read_dataset, split_dataset


def draw(path: Path, size: tuple[int, int] = (8, 8), colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_captions_come_from_where_they_lie(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\ufeff text file \n", encoding="utf-8")
    draw(tmp_path / "b.png", colour="blue")
    (tmp_path / "b.caption").write_text("caption file")
    draw(tmp_path / "c.jpg")
    (tmp_path / "c.jpg.txt").write_text("with its suffix")
    draw(tmp_path / "d.png")
    draw(tmp_path / "green_frog (2).png", colour="green")
    draw(tmp_path / "7_old man" / "x.png", colour="grey")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "d.png", "text": "listed"}\n\n')
    data = read_dataset(tmp_path)
    found = {sample.path.name: (sample.caption, sample.source, sample.repeats) for sample in data.samples}
    assert found == {
        "a.png": ("text file", ".txt files", 1),
        "b.png": ("caption file", ".caption files", 1),
        "c.jpg": ("with its suffix", ".txt files", 1),
        "d.png": ("listed", "metadata.jsonl", 1),
        "green_frog (2).png": ("green frog", "file names", 1),
        "x.png": ("old man", "folder names", 7),
    }
    assert data.caption_sources[".txt files"] == 2
    assert any("5 pictures are not in metadata.jsonl" in note for note in data.notes)


def test_a_given_caption_is_for_pictures_that_have_none(tmp_path: Path) -> None:
    draw(tmp_path / "IMG_0001.png")
    draw(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("own")
    with pytest.raises(SdkitError, match="1 of 2 pictures have no caption: IMG_0001.png"):
        read_dataset(tmp_path)
    data = read_dataset(tmp_path, caption="a sks dog")
    assert [sample.caption for sample in data.samples] == ["a sks dog", "own"]


def test_ids_are_content_and_copies_are_told_apart(tmp_path: Path) -> None:
    draw(tmp_path / "one" / "red ball.png")
    draw(tmp_path / "two" / "red ball.png")
    draw(tmp_path / "two" / "same red ball.png")
    one, two = read_dataset(tmp_path / "one"), read_dataset(tmp_path / "two")
    assert [sample.id for sample in two.samples] == [one.samples[0].id, one.samples[0].id + "+1"]
    before = one.id
    (tmp_path / "one" / "red ball.txt").write_text("other words")
    assert read_dataset(tmp_path / "one").id != before


def test_a_damaged_picture_is_left_out_by_name(tmp_path: Path) -> None:
    draw(tmp_path / "good dog.png", (64, 64))
    data = (tmp_path / "good dog.png").read_bytes()
    (tmp_path / "half dog.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "no dog.jpg").write_bytes(b"<html>404</html>")
    dataset = read_dataset(tmp_path)
    assert [sample.path.name for sample in dataset.samples] == ["good dog.png"]
    assert set(dataset.quarantined) == {"half dog.png", "no dog.jpg"}
    with pytest.raises(SdkitError, match="2 of 3 pictures cannot be decoded: half dog.png"):
        read_dataset(tmp_path, strict=True)
    (tmp_path / "good dog.png").unlink()
    with pytest.raises(SdkitError, match="2 of 2 pictures cannot be decoded"):
        read_dataset(tmp_path)


def test_what_is_missing_or_misplaced_is_named(tmp_path: Path) -> None:
    with pytest.raises(SdkitError, match="no such folder"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(SdkitError, match="no pictures in this folder") as none:
        read_dataset(tmp_path)
    assert ".png" in none.value.hint
    draw(tmp_path / "dogs" / "good dog.png")
    with pytest.raises(SdkitError, match="1 one level deeper, in dogs") as deeper:
        read_dataset(tmp_path)
    assert str(tmp_path / "dogs") in deeper.value.hint
    draw(tmp_path / "a dog.png")
    assert read_dataset(tmp_path).notes == ("1 pictures in dogs are not used",)
    (tmp_path / "cat.txt").write_text("a cat")
    with pytest.raises(SdkitError, match="1 captions have no picture: cat.txt"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"file_name": "gone.png", "text": "x"}, "there is no picture 'gone.png'"),
        ({"file_name": "../outside.png", "text": "x"}, "lies outside"),
        ({"file_name": "a dog.png"}, "no caption"),
        ({"text": "x"}, "no JSON object with a file_name"),
        ([1], "no JSON object"),
    ],
)
def test_a_wrong_line_of_metadata_is_named(tmp_path: Path, line: object, reason: str) -> None:
    draw(tmp_path / "data" / "a dog.png")
    draw(tmp_path / "outside.png")
    (tmp_path / "data" / "metadata.jsonl").write_text("\n" + json.dumps(line))
    with pytest.raises(SdkitError, match=rf"metadata.jsonl:2: .*{reason}"):
        read_dataset(tmp_path / "data")


def test_an_unknown_background_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "a dog.png")
    with pytest.raises(UsageError, match="unknown colour"):
        read_dataset(tmp_path, background="wihte")


@given(st.integers(1, 40), st.sampled_from([8, 16, 64]))
def test_buckets_hold_no_more_pixels_than_asked_and_waste_little(scale: int, step: int) -> None:
    resolution = scale * step
    sizes = bucket_sizes(resolution, step)
    assert (resolution, resolution) in sizes
    for width, height in sizes:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert max(width, height) <= 2 * min(width, height)
        assert (height, width) in sizes
        assert (width + step) * (height + step) > resolution**2 or max(width, height) + step > 2 * min(width, height)


def test_sd1_s_buckets() -> None:
    sizes = bucket_sizes(512, 64)
    assert (512, 512) in sizes and (448, 576) in sizes and (384, 640) in sizes
    assert nearest_size((3000, 4000), sizes) == (448, 576)
    assert nearest_size((100, 5000), sizes) == min(sizes, key=lambda size: size[0] / size[1])
    assert math.isclose(1, nearest_size((640, 600), sizes)[0] / 512)


def names(data: Dataset) -> set[str]:
    return {sample.path.name for sample in data.samples}


def test_a_share_is_held_out_by_content_alone(tmp_path: Path) -> None:
    for place, offset in (("one", 0), ("two", 7)):  # the same contents under other names, in another order
        for number in range(20):
            draw(tmp_path / place / f"{(number * 3 + offset) % 20:02}.png", (8 + number, 8))
    one, two = (split_dataset(read_dataset(tmp_path / place, caption="x"), 0.25) for place in ("one", "two"))
    assert [len(part.samples) for part in one] == [15, 5]
    assert [{sample.id for sample in part.samples} for part in one] == [
        {sample.id for sample in part.samples} for part in two
    ]
    assert not names(one[0]) & names(one[1]) and one[0].notes == ("5 of 20 pictures are held out",)
    assert one[0].id == two[0].id


def test_copies_are_held_out_together_and_something_is_always_left(tmp_path: Path) -> None:
    for number in range(6):
        draw(tmp_path / f"{number}.png", (8, 8 + number // 3))  # three copies of each of two pictures
    for share in (0.01, 0.5, 0.99):
        train, held_out = split_dataset(read_dataset(tmp_path, caption="x"), share)
        assert {len(train.samples), len(held_out.samples)} == {3}
        contents = [{sample.id.partition("+")[0] for sample in part.samples} for part in (train, held_out)]
        assert not contents[0] & contents[1]
    for number in range(3):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(SdkitError, match="one picture cannot be trained on and held out"):
        split_dataset(read_dataset(tmp_path, caption="x"), 0.5)


def test_a_folder_is_listed_as_often_for_many_pictures_as_for_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[Path] = []
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: (listed.append(path), iterdir(path))[1])
    counts = []
    for count in (2, 20):
        folder = tmp_path / str(count)
        for number in range(count):
            draw(folder / f"red fox {number}.png", size=(8, 8 + number))
        listed.clear()
        read_dataset(folder, caption="a fox")
        counts.append(len(listed))
    assert counts[0] == counts[1]
