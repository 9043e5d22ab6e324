"""What the comparison of methods teaches, and one run of it, on a folder like that of recipes/tiny-base/pictures.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.methods import one, settings
from benchmarks.methods.concepts import HELD_OUT_ON, SUBJECTS, TAUGHT_ON, TUNING, concept

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "sdkit" / "assets" / "quickstart"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rockets "on" every background (their pictures are all the same), and the other drawings as what is known."""
    folder = tmp_path / "data"
    rockets = folder / "subjects" / "rocket"
    for place in (rockets, folder / "base", folder / "reference", folder / "fluent", folder / "fluent-held-out"):
        place.mkdir(parents=True)
    for style in ("noto", "twemoji"):
        for ground in (*TAUGHT_ON, *HELD_OUT_ON):
            shutil.copy(PICTURES / f"rocket--{style}.png", rockets / f"rocket--{style}--{ground}.png")
    lines = []
    for file in PICTURES.glob("*.png"):
        name, _, style = file.stem.partition("--")
        shutil.copy(file, folder / "reference")
        shutil.copy(file, folder / "base" / f"{name}--{style}--white.png")
        text = f"{name}, {style} style, on a white background"
        lines.append(json.dumps({"file_name": f"{name}--{style}--white.png", "text": text}))
    (folder / "base" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    for number, place in enumerate(("fluent", "fluent-held-out")):
        name = f"{('owl', 'crown')[number]}--fluent.png"
        text = "thing, fluent style, on a blue background"
        (folder / place / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": text}) + "\n")
    return folder


def test_subjects_are_unknown_to_the_base_and_their_classes_are_known() -> None:
    def words(name: str) -> set[str]:
        lines = (ROOT / "recipes" / "tiny-base" / name).read_text().splitlines()
        pairs = (text.partition(":") for text in lines if text and not text.startswith("#"))
        return {said.strip() or name.replace("_", " ") for name, _, said in pairs}

    assert {*SUBJECTS, *TUNING} <= words("held-out.txt")
    assert {*SUBJECTS.values(), *TUNING.values()} <= words("concepts.txt")
    assert not TUNING.keys() & SUBJECTS.keys()


def test_nothing_taught_is_measured(data: Path) -> None:
    rocket = concept(data, "rocket")
    taught, held_out = ({picture.file for picture in pictures} for pictures in (rocket.taught, rocket.held_out))
    assert len(taught) == len(held_out) == len(rocket.other) == 4
    assert not taught & held_out and not taught & {picture.file for picture in rocket.other}
    assert all(picture.file.is_file() for picture in (*rocket.taught, *rocket.held_out, *rocket.other, *rocket.known))


def test_a_new_word_replaces_the_class_or_stands_before_it(data: Path) -> None:
    rocket, fluent = concept(data, "rocket"), concept(data, "fluent")
    assert rocket.taught[1].caption == "{}, noto style, on a blue background"
    assert [rocket.called(method) for method in ("lora", "textual-inversion")] == ["sks airplane", "sks"]
    assert fluent.taught[0].caption == "thing, {} style, on a blue background"
    assert fluent.called("lora") == "sks"


def test_prior_preservation_is_the_only_difference(data: Path) -> None:
    rocket = concept(data, "rocket")
    with_prior, without = (
        settings.run_options(name, rocket, {"lr": 1.0}) for name in ("dreambooth class=", "dreambooth")
    )
    assert with_prior == {**without, "class": "airplane", "class_images": settings.CLASS_IMAGES}


@pytest.mark.slow
def test_a_run_is_trained_saved_and_measured(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDKIT_HOME", str(tmp_path / "home"))
    for name in ("CLASS_IMAGES", "CLASS_HELD_OUT"):
        monkeypatch.setattr(one, name, 1)

    def order(condition: str = "") -> one.Order:
        rocket = concept(data, "rocket")
        options = {**settings.run_options(condition, rocket, {"lr": 1e-2}), "steps": 2} if condition else {}
        base = ROOT / "sdkit" / "assets" / "tiny"
        return one.Order(str(base), "id", str(data), str(tmp_path / "out"), "rocket", condition, 1, options)

    base = one.measure_base(order())
    word = one.measure_run(order("textual-inversion"))
    assert base["class_drawn"] == 2
    assert {part: (len(rows), len(rows[0])) for part, rows in word["losses"].items()} == {
        "held_out": (4, 8),
        "other": (4, 8),
        "known": (12, 8),
        "class": (1, 8),
    }
    assert word["losses"]["known"] == base["losses"]["known"], "a word changes nothing that does not name it"
    assert word["losses"]["held_out"] != base["losses"]["held_out"]
    whole = one.measure_run(order("dreambooth"))
    assert whole["losses"]["known"] != base["losses"]["known"]
    assert whole["bytes"] > 1000 * word["bytes"] > 0
    assert whole["steps"] == 2 and whole["nearest"]["pictures"] == 8
    assert not list((tmp_path / "out" / "trained").iterdir()), "what was trained is measured and goes away"
    assert len(list(order("dreambooth").pictures.glob("*.png"))) == 8
