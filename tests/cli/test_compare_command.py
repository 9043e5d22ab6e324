from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sdkit.cli.main import main


def run(base: Path, data: Path, *words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["compare", *words, "--base", str(base), "--data", str(data), "--dry-run"])
    return result.exit_code, result.stdout, result.stderr


def test_words_are_methods_and_keys_of_all(tiny_base: Path, pictures: Path) -> None:
    words = ("lora:rank=2", "lora:rank=4", "--subject", "ball", "--budget", "7", "batch=2", "--json")
    status, out, _ = run(tiny_base, pictures, *words)
    plans = json.loads(out)["plans"]
    assert status == 0 and list(plans) == ["lora:rank=2", "lora:rank=4"]
    assert {(plan["steps"], plan["batch"]) for plan in plans.values()} == {(7, 2)}
    assert plans["lora:rank=2"]["parameters"] * 2 == plans["lora:rank=4"]["parameters"]


def test_a_person_reads_what_will_be_compared_and_what_not(tiny_base: Path, pictures: Path) -> None:
    status, out, _ = run(tiny_base, pictures, "lora", "autoencoder", "--budget", "10m")
    lines = out.splitlines()
    assert status == 0 and lines[0] == "compare 1 method on base: 4 pictures, 1 held out"
    assert "by time" in out and "autoencoder is left out: it trains no denoiser" in out
    assert lines[-1].endswith("nothing was trained")


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["lora", "budget=5"], "budget= is no key of a method", "write --budget 5"),
        (["lora", "held-out=0.5"], "held-out= is no key of a method", "write --held-out 0.5"),
        (["lora", "rnk=5"], "unknown option rnk=", "did you mean rank?"),
        (["rank=5"], "no method is given", "name two or more"),
        (["lora", "--budget", "soon"], "--budget soon: neither steps nor a time", "write 500, or 90s"),
    ],
)
def test_mistakes_are_told_with_the_next_step(
    words: list[str], error: str, hint: str, tiny_base: Path, pictures: Path
) -> None:
    status, _, err = run(tiny_base, pictures, *words)
    assert status == 2 and error in err and hint in err
