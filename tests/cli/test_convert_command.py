from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from sdkit.cli.main import main


def run(*words: object) -> str:
    result = CliRunner().invoke(main, ["convert", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_there_and_back_from_the_command_line(tmp_path: Path, tiny_base: Path) -> None:
    text = run(tiny_base, "--to", "comfyui", "-o", tmp_path / "one.safetensors")
    assert "every bit is the same" in text and "it predicts the noise" in text
    assert "has a tokenizer of its own" in text
    back = (tmp_path / "one.safetensors", "--to", "diffusers", "--configs", tiny_base, "-o", tmp_path / "d")
    dry = run(*back, "--dry-run")
    assert "nothing was written" in dry and not (tmp_path / "d").exists()
    said = json.loads(run(*back, "--json"))
    assert said["proof"]["exact"] and said["unmatched"] == [] and said["to"] == "diffusers"
    assert run(tmp_path / "d", "--to", "single", "-o", tmp_path / "two.safetensors", "-q").split() == [
        str(tmp_path / "two.safetensors")
    ]


def test_what_is_wrong_is_said_with_a_way_on(tmp_path: Path, tiny_base: Path) -> None:
    result = CliRunner().invoke(main, ["convert", str(tiny_base), "--to", "ckpt", "-o", str(tmp_path / "x")])
    assert result.exit_code == 2 and "nothing is written as 'ckpt'" in result.stderr and "there are: " in result.stderr
