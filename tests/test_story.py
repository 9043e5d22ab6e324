"""The README's story of sharing, line by line: trained, merged, published, lost, pulled back and made again."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from hub_server import TOKEN, Hub
from huggingface_hub import ModelCard

from sdkit.cli.main import main
from sdkit.families.bases import TINY, resolve_base
from sdkit.jobs.convert import convert
from sdkit.jobs.models.listing import list_models

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_story_of_the_readme(
    hub: Hub, cache: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = re.search(r"## Share\n.*?```sh\n(.*?)```", README, re.DOTALL)
    assert story is not None
    lines = [line.partition("#")[0].strip() for line in story[1].splitlines()]
    assert len(lines) == 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "quickstart").mkdir()
    convert(resolve_base(TINY), "single", tmp_path / "quickstart" / "base.safetensors", verify=False)
    shutil.copytree(pictures, tmp_path / "photos")
    before, said = {}, ""
    for line in lines:
        if line.startswith("rm "):
            before = {path.name: path.read_bytes() for path in tmp_path.glob("fox*.safetensors")}
            _lose_everything(tmp_path, cache)
            continue
        words = shlex.split(line.replace("steps=400", "steps=2"))[1:]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, f"{line}\n{result.output}"
        said = result.output
    assert "identical" in said or "bit for bit" in said
    pulled = {model.name: Path(model.path).read_bytes() for model in list_models().models if "fox" in model.name}
    assert pulled["fox"] == before["fox.safetensors"]
    assert pulled["fox-model"] == before["fox-model.safetensors"]
    head = ModelCard(hub.repositories["me/fox"].files["README.md"].decode()).data
    assert head.license == "openrail" and "lora" in head.tags


def _lose_everything(folder: Path, cache: Path) -> None:
    for path in folder.glob("fox*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(os.environ["SDKIT_HOME"])
    shutil.rmtree(cache, ignore_errors=True)
