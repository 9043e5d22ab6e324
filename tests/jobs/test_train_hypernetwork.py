from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import sdkit
from sdkit.cli.main import main
from sdkit.core.errors import SdkitError, UsageError
from sdkit.jobs.train import TrainReport
from sdkit.weights import open_weights


def train(base: Path, data: Path, out: Path, **options: Any) -> TrainReport:
    report: TrainReport = sdkit.train("hypernetwork", base, data, out, **{"steps": 2, "lr": 1e-3, **options})
    return report


def networks(path: str) -> dict[int, Any]:
    contents = torch.load(path, weights_only=True)
    return {key: value for key, value in contents.items() if type(key) is int}


def same(one: dict[int, Any], other: dict[int, Any]) -> bool:
    return all(
        torch.equal(tensor, other[width][side][name])
        for width, pair in one.items()
        for side, network in enumerate(pair)
        for name, tensor in network.items()
    )


def test_a_run_leaves_a_file_that_says_all_about_itself(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_base, pictures, tmp_path / "ball", token="sks", activation="swish", validation=str(pictures))
    assert report.finished and report.output == str(tmp_path / "ball" / "ball.pt")
    contents = torch.load(report.output, weights_only=True)
    assert [width for width in contents if type(width) is int] == [64, 32, 24]
    assert (contents["name"], contents["step"], contents["activation_func"]) == ("ball", 2, "swish")
    assert (contents["sd_checkpoint_name"], contents["optional_info"]) == ("base", "trigger words: sks")
    assert contents["modelspec.architecture"] == "stable-diffusion-v1/hypernetwork"
    recipe = json.loads(contents["sdkit.recipe"])
    assert recipe["method"] == "hypernetwork" and recipe["options"]["layer_structure"] == "1,2,1"
    numbers = [t.numel() for pair in networks(report.output).values() for net in pair for t in net.values()]
    assert sum(numbers) == report.parameters
    assert 0.9 < report.output_bytes / report.plan.output_bytes < 1.1
    assert "structure 1, 2, 1, swish for the widths 64, 32, 24" in report.plan.notes[-1]
    found = sdkit.inspect(report.output)
    assert found.kind == "hypernetwork" and found.trigger_words == ("sks",)
    assert "train: base" in found.lineage[0]


def test_on_sdxl(tiny_sdxl: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_sdxl, pictures, tmp_path / "x", steps=1, validation=str(pictures))
    text = json.loads((tiny_sdxl / "unet" / "config.json").read_text())["cross_attention_dim"]
    assert text in networks(report.output) and report.validation != report.validation_before
    assert torch.load(report.output, weights_only=True)["modelspec.architecture"].startswith("stable-diffusion-xl")


def test_some_widths_only_and_what_is_left_is_said(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_base, pictures, tmp_path / "x", widths="24", save_dtype="fp16")
    assert list(networks(report.output)) == [24]
    assert networks(report.output)[24][0]["linear.0.weight"].dtype == torch.float16
    assert "widths 64, 32 stay the base's own" in report.plan.notes[-1]


def test_training_goes_on_from_an_existing_file(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    structure = {
        "layer_structure": "1,1.5,2,1",
        "activation": "relu",
        "layer_dropout": "0,0.1,0.2,0",
        "widths": "24,32",
    }
    first = train(tiny_base, pictures, tmp_path / "a", weight_init="XavierNormal", **structure)
    still = {"lr": 0.0, "weight_decay": 0, "steps": 3}
    second = train(tiny_base, pictures, tmp_path / "b", init=first.output, **still)
    assert same(networks(first.output), networks(second.output))
    contents = torch.load(second.output, weights_only=True)
    assert contents["step"] == 5 and contents["layer_structure"] == [1, 1.5, 2, 1]
    assert contents["weight_initialization"] == "XavierNormal" and contents["dropout_structure"] == [0, 0.1, 0.2, 0]
    assert second.parameters == first.parameters
    moved = train(tiny_base, pictures, tmp_path / "c", init=first.output, **structure)
    assert not same(networks(first.output), networks(moved.output))
    with pytest.raises(UsageError, match=r"its structure is 1, 1.5, 2, 1, relu, dropout 0, 0.1, 0.2, 0"):
        train(tiny_base, pictures, tmp_path / "d", init=first.output, activation="tanh")
    with pytest.raises(UsageError, match="its widths are 32, 24"):
        train(tiny_base, pictures, tmp_path / "d", init=first.output, widths="24")


def test_another_kind_or_another_base_cannot_be_continued(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    lora = sdkit.train("lora", tiny_base, pictures, tmp_path / "lora", steps=1, rank=1)
    with pytest.raises(SdkitError, match="is no hypernetwork for this base: a lora"):
        train(tiny_base, pictures, tmp_path / "x", init=lora.output)
    pair = {"linear.0.weight": torch.ones(8, 8), "linear.0.bias": torch.ones(8)}
    torch.save({8: (pair, pair), "layer_structure": [1, 1]}, tmp_path / "other.pt")
    with pytest.raises(SdkitError, match="is no hypernetwork for this base: the networks of width 8"):
        train(tiny_base, pictures, tmp_path / "x", init=str(tmp_path / "other.pt"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "reluu"}, "activation reluu is unknown .did you mean relu"),
        ({"layer_structure": "2,1"}, "does not begin and end with 1"),
        ({"layer_structure": "1,x,1"}, "layer_structure=1,x,1: numbers with commas"),
        ({"layer_dropout": "1"}, "a chance that is not in"),
        ({"layer_dropout": "0,0.1"}, "has not the 3 entries"),
        ({"widths": "24,768"}, "widths=24,768: no attention of this base reads anything 768 wide"),
        ({"weight_init": "Zero"}, "weight_init=Zero: unknown"),
        ({"save_dtype": "keep"}, "unknown number format 'keep'"),
        ({"rank": 4}, "it is not one of hypernetwork"),
    ],
)
def test_wrong_options_are_named_before_anything_is_computed(
    tiny_base: Path, pictures: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(tiny_base, pictures, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_merge_refuses_it_with_the_reason_and_the_next_command(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_base, pictures, tmp_path / "x", steps=1)
    done = CliRunner().invoke(main, ["merge", str(tiny_base), report.output, "-o", str(tmp_path / "merged")])
    assert done.exit_code != 0 and isinstance(done.exception, (SdkitError, SystemExit))
    with pytest.raises(SdkitError, match="no change of the weights equals it") as refused:
        sdkit.merge(tiny_base, report.output, tmp_path / "merged")
    assert "sdkit generate" in refused.value.hint and "<hypernet:" in refused.value.hint
    assert not (tmp_path / "merged").exists()


def test_the_file_is_there_whole_or_not_at_all(
    tiny_base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(contents: object, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        train(tiny_base, pictures, tmp_path / "x", steps=1)
    assert not (tmp_path / "x" / "x.pt").exists()
    monkeypatch.undo()
    again = train(tiny_base, pictures, tmp_path / "x", steps=1, resume=True)
    with open_weights(again.output) as weights:
        assert weights.tensors


def test_the_recipe_trains_once_it_has_a_base_and_pictures(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "hypernetwork.yaml"
    assert len(recipe.read_text(encoding="utf-8").splitlines()) < 30
    words = [
        "train",
        str(recipe),
        "--base",
        str(tiny_base),
        "--data",
        str(pictures),
        "-o",
        str(tmp_path / "x"),
        "--json",
    ]
    done = CliRunner().invoke(main, [*words, "--dry-run"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)["plan"]
    assert (plan["method"], plan["steps"], plan["batch"]) == ("hypernetwork", 10_000, 4)
