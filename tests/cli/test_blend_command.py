from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from sdkit.cli.main import main
from sdkit.merging.method import methods


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for index, path in enumerate(paths):
        save_file({"blocks.0.weight": torch.full((4, 4), float(index)), "blocks.1.weight": torch.ones(4, 4)}, path)
    return paths


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["blend", *map(str, arguments)])


def test_models_method_and_strength(models: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = run(*models, "--method", "add_difference", "--alpha", 0.5, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert load_file(out)["blocks.0.weight"].unique().tolist() == [-0.5]
    assert "by add-difference (alpha 0.5)" in result.stdout
    assert f"wrote {out} (1.2 kB) in" in result.stdout and 1150 < out.stat().st_size < 1250  # of tensors 128 B


def test_weights_parameters_rules_and_json(models: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    weighted = [f"{path}={weight}" for path, weight in zip(models, (2, 1, 1), strict=True)]
    result = run(*weighted, "-m", "linear", "-p", "normalize=yes", "-o", out, "--json")
    report = json.loads(result.stdout)
    assert report["parameters"] == {"weights": [2.0, 1.0, 1.0], "normalize": True} and report["output"] == str(out)
    assert load_file(out)["blocks.0.weight"].unique().tolist() == [0.75]
    run(*models[:2], "--alpha", 0.5, "--rule", r"blocks\.0=0.25", "-o", out, "--force")
    assert load_file(out)["blocks.0.weight"].unique().tolist() == [0.25]


def test_a_base_for_methods_that_need_one(models: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert run(*models[1:], "-m", "ties", "--base", models[0], "-p", "density=1", "-o", out).exit_code == 0
    assert load_file(out)["blocks.0.weight"].unique().tolist() == [1.5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Usage"]),
        (["A", "B"], ["an output are needed"]),
        (["A", "B", "-o", "out", "-p", "density"], ["a value is missing"]),
        (["A", "B", "-o", "out", "-m", "tise"], ["unknown merge method 'tise'", "did you mean ties?"]),
        (["A", "B", "-o", "out", "--alpha", "much"], ["alpha=much: must be a number"]),
        (["A=x", "B", "-o", "out"], ["'x' is no strength"]),
        (["A", "B", "-o", "out", "-p", "alhpa=1"], ["no parameter 'alhpa'", "did you mean alpha?"]),
        (["A", "B", "-o", "out", "-m", "slerp", "-p", "norms=none"], ["interpolate or keep"]),
        (
            ["A", "B", "-o", "out", "-m", "karcher", "-p", "iterations=1.5"],
            ["must be a whole number", "hint: its default is ", "sdkit blend --list"],
        ),
    ],
)
def test_wrong_command_lines_exit_with_2(arguments: list[str], words: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert all(word in result.stderr + result.stdout for word in words), result.stderr


def test_the_list_shows_every_method() -> None:
    listed = run("--list").stdout
    assert all(name in listed for name in methods())
    data = json.loads(run("--list", "--json").stdout)["methods"]
    assert data["ties"]["needs_base"] and data["ties"]["parameters"]["density"]["default"] == 0.2
    assert run("--list", "-q").stdout.split() == list(methods())


def test_help_and_list_import_no_torch() -> None:
    for option in ("--help", "--list"):
        code = f"""
import sys
from sdkit.cli.main import main
try:
    main(["blend", "{option}"])
except SystemExit as stop:
    assert not stop.code
assert "torch" not in sys.modules
"""
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
