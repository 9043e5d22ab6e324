"""A file is rebuilt bit for bit from what its metadata say, wherever its inputs are and whatever they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from models import kohya_lora, load, save, sd1, sd1_modules

import sdkit
from sdkit.cli.main import main
from sdkit.core.errors import SdkitError
from sdkit.core.hashing import quick_id
from sdkit.jobs.reproduce import reproduce
from sdkit.jobs.run import run
from sdkit.registry.registry import open_registry

RECIPE: dict[str, Any] = {
    "steps": {
        "ties": {
            "blend": ["m/a.safetensors", "m/b.safetensors"],
            "method": "dare_ties",
            "base": "m/c.safetensors",
            "density": 0.4,
            "seed": 5,
        },
        "mix": {"blend": ["ties", "m/c.safetensors"], "alpha": [0.1, 0.9], "rules": ["attn2=0.3"], "te_alpha": 0.5},
        "out": {
            "merge": ["mix", {"path": "m/l.safetensors", "strength": 0.7}],
            "blocks": {"IN04": 0.5},
            "dtype": "bf16",
            "stochastic": 3,
            "output": "out.safetensors",
        },
    }
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    for name in "abc":
        save(sd1(ord(name)), tmp_path / f"m/{name}.safetensors", {"note": name})
    save(kohya_lora(sd1_modules(), rank=2), tmp_path / "m/l.safetensors")
    save(kohya_lora(sd1_modules(), rank=2, seed=9), tmp_path / "m/k.safetensors")
    return tmp_path


def scatter(folder: Path) -> None:
    """Move the inputs elsewhere, under other names, among others of their size."""
    (folder / "deep/er").mkdir(parents=True)
    for number, name in enumerate("abclk"):
        (folder / f"m/{name}.safetensors").rename(folder / f"deep/er/{number}.safetensors")
    save(sd1(77), folder / "deep/a.safetensors", {"note": "x"})


def test_a_recipe_of_every_kind_of_step_comes_out_the_same(folder: Path) -> None:
    run(RECIPE)
    scatter(folder)
    report = reproduce("out.safetensors", ["deep"], "again.safetensors")
    assert report.identical and not report.differing
    assert (folder / "again.safetensors").read_bytes() == (folder / "out.safetensors").read_bytes()
    assert Path(report.inputs["a.safetensors"]).name == "0.safetensors"


def test_what_the_commands_write_can_be_made_again(folder: Path) -> None:
    a, b, c, lora, other = (f"m/{name}.safetensors" for name in "abclk")
    sdkit.blend([a, b, c], "1.safetensors", method="add_difference", alpha=0.7, vae=b)
    sdkit.merge(a, {lora: 0.8, other: -0.2}, "2.safetensors", te_alpha=0.3)
    sdkit.combine([(lora, 0.5), other], "3.safetensors", rank=2)
    sdkit.subtract(lora, (other, 0.3), "4.safetensors", dtype="fp32")
    sdkit.scale(lora, 0.5, "5.safetensors")
    for number in range(1, 6):
        assert reproduce(f"{number}.safetensors", ["m"]).identical, number
    assert not list(folder.glob(".sdkit-reproduce*"))
    with open_registry() as registry:  # which does not know of what was made only to be compared
        files = [file.path for entry in registry.entries(everything=True) for file in registry.model(entry.id).files]
    assert str(folder / "5.safetensors") in files and not any(".sdkit-reproduce" in path for path in files)


def test_missing_inputs_are_named_with_their_hashes(folder: Path) -> None:
    run(RECIPE)
    recipe = json.loads(sdkit.inspect("out.safetensors").as_dict()["metadata"]["sdkit.recipe"])
    content = recipe["steps"]["ties"]["parents"][1]["id"]
    (folder / "m/b.safetensors").unlink()
    with pytest.raises(SdkitError, match=f"missing: b.safetensors .{content}.") as error:
        reproduce("out.safetensors")
    assert "--models" in error.value.hint


def test_a_difference_is_found(folder: Path) -> None:
    run(RECIPE)
    tensors = load("out.safetensors")
    key = next(iter(tensors))
    with_metadata = sdkit.inspect("out.safetensors").as_dict()["metadata"]
    tensors[key] = tensors[key] + 1
    save(tensors, Path("changed.safetensors"), with_metadata)
    report = reproduce("changed.safetensors", ["m"])
    assert not report.identical and report.differing == (key,)
    result = CliRunner().invoke(main, ["reproduce", "changed.safetensors", "--models", "m"])
    assert result.exit_code == 1 and "different: 1 part, for example" in result.stdout


def test_a_training_says_how_it_is_done_again(folder: Path) -> None:
    save(sd1(0), Path("trained.safetensors"), {"sdkit.recipe": json.dumps({"verb": "train"})})
    with pytest.raises(SdkitError, match="made by train") as error:
        reproduce("trained.safetensors", ["m"])
    assert "sdkit inspect --json" in error.value.hint and "same pictures" in error.value.hint


def test_files_without_a_recipe(folder: Path) -> None:
    with pytest.raises(SdkitError, match="carries no recipe"):
        reproduce("m/a.safetensors")
    A = {"name": "a.safetensors", "id": quick_id(folder / "m/a.safetensors"), "role": "source"}
    for recipe, message in (
        ({"verb": "train"}, "made by train"),
        ({"verb": "blend", "parents": [{"step": "x", "role": "A"}], "method": "linear", "parameters": {}}, "damaged"),
        (
            {
                "verb": "merge",
                "parents": [{"step": "x", "role": "base"}],
                "steps": {"x": {"verb": "merge", "parents": [{"step": "x", "role": "base"}]}},
            },
            "needs itself",
        ),
        ({"verb": "merge", "parents": 3}, "damaged"),
        ({"verb": "convert", "to": "single", "parents": []}, "damaged"),
        ({"verb": "convert", "to": "single", "parents": [A], "bake_vae": True}, "damaged"),
        ({"verb": "convert", "to": "single", "parents": [A], "configs": "/somewhere"}, "damaged"),
        ({"verb": "convert", "to": "single", "parents": [A], "configs": {"name": "../x", "id": "files1-0"}}, "missing"),
        ({"verb": "convert", "to": "nothing", "parents": [A]}, "nothing is written as"),
    ):
        save(sd1(0), Path("hostile.safetensors"), {"sdkit.recipe": json.dumps(recipe)})
        with pytest.raises(SdkitError, match=message):
            reproduce("hostile.safetensors", ["m"])
