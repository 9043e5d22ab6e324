from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdkit.cli.main import main


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    return int(caught.value.code or 0)


def test_pictures_from_the_command_line(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["generate", "--base", str(tiny_base), "-p", "a (cat:1.1)", "--steps", "2", "--count", "2", "-o", "p.png"]
    assert run(*words, "--dry-run") == 0
    assert "would draw 'a (cat:1.1)' on base, seeds 0 to 1" in capsys.readouterr().out
    assert run(*words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["outputs"] == ["p-1.png", "p-2.png"] and all(Path(name).is_file() for name in report["outputs"])
    assert report["pictures"][1]["parameters"].startswith("a (cat:1.1)\nSteps: 2, Sampler: DPM++ 2M Karras")
    assert run(*words) == 1
    assert "p-1.png: already exists" in capsys.readouterr().err
    assert run("generate", "--base", str(tiny_base), "--like", "p-2.png", "-q", "-o", "q.png") == 0
    assert capsys.readouterr().out == "q.png\n"
    assert Path("q.png").read_bytes() == Path("p-2.png").read_bytes()


def test_samplers_are_listed_and_a_base_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--list", "-q") == 0
    assert {"Euler a", "DPM++ 2M Karras", "LCM"} <= set(capsys.readouterr().out.splitlines())
    assert run("generate", "-p", "a") == 2
    assert "no base is given" in capsys.readouterr().err
