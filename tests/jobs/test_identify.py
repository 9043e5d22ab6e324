"""Files get their names back, and people keep the words they gave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import models
import pytest
from civitai_server import PNG, Civitai, serve_civitai
from click.testing import CliRunner

from sdkit.cli.main import main
from sdkit.core.paths import data_folder
from sdkit.jobs.identify import identify
from sdkit.jobs.models.edit import change_words, rename_model
from sdkit.jobs.models.files import add_models
from sdkit.jobs.models.show import show_model


@pytest.fixture
def civitai(monkeypatch: pytest.MonkeyPatch) -> Iterator[Civitai]:
    with serve_civitai() as civitai:
        monkeypatch.setenv("CIVITAI_ENDPOINT", civitai.web.url)
        monkeypatch.delenv("CIVITAI_TOKEN", raising=False)
        yield civitai


@pytest.fixture
def folder(civitai: Civitai, tmp_path: Path) -> Path:
    """Three nameless LoRAs, two of which Civitai knows, and a file that is none."""
    shapes = dict(list(models.sd1_modules().items())[:4])
    folder = tmp_path / "downloads"
    folder.mkdir()
    for number in range(3):
        path = folder / f"0000{number}.safetensors"
        data = models.save(models.kohya_lora(shapes, rank=2, seed=number), path).read_bytes()
        if number:
            civitai.add(10 + number, 20 + number, data, name=f"fox{number}.safetensors", baseModel="Pony")
    civitai.models[12]["name"] = "Hare/=\x1b[31m"
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    return folder


def test_a_folder_is_identified_in_one_batch(civitai: Civitai, folder: Path) -> None:
    report = identify([folder])
    assert [one.state for one in report.files] == ["unknown", "known", "known", "unreadable"]
    asked = [request for request in civitai.web.requests if request.method == "POST"]
    assert len(asked) == 1 and len(json.loads(asked[0].body)) == 3
    shown = show_model("Sly Fox v2")
    entry, model = shown.model.entry, shown.model
    assert entry.path == str(folder / "00001.safetensors")
    assert set(entry.triggers) == {"ohwx fox", "sly"} and entry.tags == ("Pony",)
    assert model.notes == ("At 0.7",) and "derivatives: yes" in model.licences[0]
    assert [(one.hub, one.reference, one.revision) for one in model.sources] == [("civitai", "civitai:11", "21")]
    (picture,) = shown.previews
    assert Path(picture).read_bytes() == PNG and Path(picture).parent == data_folder() / "previews"
    assert report.files[2].name.isprintable() and not set(report.files[2].name) & set("/=")


def test_a_persons_words_stay(folder: Path) -> None:
    add_models([folder / "00001.safetensors"])
    rename_model("00001", "reynard")
    change_words("triggers", "reynard", ["mine"])
    identify([folder / "00001.safetensors"])
    entry = show_model("reynard").model.entry
    assert set(entry.triggers) == {"mine", "ohwx fox", "sly"}


def test_a_dry_run_writes_nothing_and_hashes_are_not_computed_twice(
    civitai: Civitai, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [one.state for one in identify([folder], dry_run=True).files].count("known") == 2
    assert not (data_folder() / "previews").exists()
    assert CliRunner().invoke(main, ["models", "-q"]).output == ""
    identify([folder], previews=False)

    def unwanted(*_: object) -> None:
        raise AssertionError("it was read before")

    (folder / "broken.safetensors").unlink()
    monkeypatch.setattr("sdkit.jobs.models.reading.hash_content", unwanted)
    assert [one.state for one in identify([folder]).files].count("known") == 2


def test_the_command_line(civitai: Civitai, folder: Path) -> None:
    result = CliRunner().invoke(main, ["identify", str(folder), "--json"])
    assert [one["state"] for one in json.loads(result.stdout)["files"]].count("known") == 2
    assert "2 of 4 are known to Civitai" in CliRunner().invoke(main, ["identify", str(folder)]).stdout
    assert CliRunner().invoke(main, ["identify", str(folder), "-q"]).stdout.split() == [
        "civitai:11@21",
        "civitai:12@22",
    ]
    result = CliRunner().invoke(main, ["search", "fox", "--hub", "civitai", "--type", "lora", "--stats"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1].split() == ["civitai", "lora", "2", "2,023", "1,012", "180", "90%"]
    result = CliRunner().invoke(main, ["search", "fox", "--hub", "civitai", "-q"])
    assert result.stdout.split() == ["civitai:12@22", "civitai:11@21"]
