from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sdkit.core.errors import SdkitError, UsageError
from sdkit.jobs.comparing.material import Material, read_material, write_pictures
from sdkit.training.data import read_dataset


def read(data: Path, held_out: str = "0.4", subject: str = "", **more: tuple[str, ...]) -> Material:
    return read_material(data, held_out, subject, more.get("prompts", ()), more.get("prior", ()), "")


def test_nothing_held_out_is_trained_on_and_the_same_is_held_out_each_time(pictures: Path) -> None:
    one, again = read(pictures), read(pictures)
    trained, held_out = ({sample.path.name for sample in part.samples} for part in (one.trained, one.held_out))
    assert len(trained) == 3 and len(held_out) == 2 and not trained & held_out
    assert one.held_out == again.held_out
    assert one.prompts == tuple(sample.caption for sample in one.held_out.samples)


def test_the_subject_makes_room_for_what_it_is_called(pictures: Path) -> None:
    (pictures / "4.txt").write_text("A Ball, and a snowball")
    (pictures / "3.txt").write_text("nothing of the kind")
    found = read(pictures, str(pictures), subject="ball")
    captions = {sample.path.name: sample.caption for sample in found.trained.samples}
    assert captions["0.png"] == "a {}, 0" and captions["4.png"] == "A {}, and a snowball"
    assert captions["3.png"] == "nothing of the kind"
    assert "1 captions of 5 do not name ball" in found.trained.notes
    assert found.prior == ("a ball",)


def test_pictures_without_captions_show_the_subject(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"IMG_{number}.png")
    found = read(tmp_path, "0.5", subject="owl")
    assert [sample.caption for sample in found.trained.samples] == ["a photo of {}"]
    assert found.prior == ("an owl",)
    with pytest.raises(SdkitError, match="no caption"):
        read(tmp_path)


def test_a_place_without_a_subject_is_an_error(pictures: Path) -> None:
    with pytest.raises(UsageError, match="nothing says what it is"):
        read(pictures, prompts=("{} in snow",))


@pytest.mark.parametrize("share", ["0", "1", "1.5", "-0.2"])
def test_a_share_lies_between(pictures: Path, share: str) -> None:
    with pytest.raises(UsageError, match="a share lies between 0 and 1"):
        read(pictures, share)


def test_the_folder_of_a_method_is_read_as_any_other(pictures: Path, tmp_path: Path) -> None:
    kohya = pictures / "7_ball"
    kohya.mkdir()
    (pictures / "0.png").rename(kohya / "0.png")
    (pictures / "0.txt").unlink()
    Image.new("L", (16, 16), 255).save(pictures / "1-mask.png")
    material = read(pictures, "0.3", subject="ball")
    write_pictures(material, tmp_path / "out", lambda text: text.replace("{}", "sks ball"))
    found = {sample.path.name: sample for sample in read_dataset(tmp_path / "out", mask="files").samples}
    expected = {sample.path.name: sample for sample in material.trained.samples}
    assert found.keys() == expected.keys()
    for name, sample in expected.items():
        assert found[name].id == sample.id and found[name].repeats == sample.repeats
        assert found[name].caption == sample.caption.replace("{}", "sks ball")
    lines = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    assert {json.loads(line)["file_name"] for line in lines} == {
        sample.path.relative_to(pictures).as_posix() for sample in expected.values()
    }
