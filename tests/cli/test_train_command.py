from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import sdkit.training.methods
from sdkit.cli.main import main

FILES = {path.stem.replace("_", "-") for path in Path(sdkit.training.methods.__path__[0]).glob("[a-z]*.py")}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", *arguments])


def test_every_method_is_listed_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # which would fold the lines
    listed = json.loads(run("--list", "--json").stdout)["methods"]
    assert listed.keys() == FILES
    assert listed["textual-inversion"]["summary"] == "Train an embedding: a new word for what the pictures show"
    assert run("--list").stdout == run().stdout
    assert [line.split()[0] for line in run().stdout.splitlines()] == sorted(FILES)


def test_help_lists_the_keys_of_every_form() -> None:
    shown = run("dreambooth", "--help").stdout
    assert all(f"  {key}=" in shown for key in ("as", "class", "steps", "rank", "text_encoder", "init"))
    assert "rank=" not in run("fine-tune", "--help").stdout


def test_help_says_what_a_key_is_when_nobody_says() -> None:
    shown = " ".join(run("lora", "--help").stdout.split())
    assert "rank= rank of the LoRA [default: 16]" in shown
    assert "lr= learning rate [default: 0.0001]" in shown
    assert "side of a square with as many pixels [default: the base's]" in shown  # says it already
    assert "flip= mirror half of the pictures background=" in shown  # not asked for: nothing to say
    shown = " ".join(run("dreambooth", "--help").stdout.split())
    assert "lr= learning rate [default: 5e-06, 0.0001 with as=lora]" in shown


def test_what_stands_before_the_method_is_not_lost() -> None:
    refused = run("--json", "lora", "--base", "tiny", "--data", ".")
    assert refused.exit_code == 2 and "sdkit train lora --json" in refused.stderr
