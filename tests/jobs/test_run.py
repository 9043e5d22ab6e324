"""Recipes: fused steps give what the same done by hand in float64 gives, and only what changed is made again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from click.testing import CliRunner
from models import Tensors, error_in_ulps, expected, kohya_lora, load, save, sd1, sd1_modules, sd1_places
from PIL import Image

import sdkit
from sdkit.cli.main import main
from sdkit.core.errors import SdkitError, UsageError
from sdkit.jobs.run import run
from sdkit.weights import open_weights

MODELS = [sd1(seed) for seed in range(5)]
LORAS = [kohya_lora(sd1_modules(), seed=seed, rank=2) for seed in (7, 8)]

FIVE = """
steps:
  learnt:
    blend: [a.safetensors, b.safetensors, c.safetensors]
    method: add-difference
    alpha: 0.7
  average:
    blend: [learnt=0.5, d.safetensors=0.3, e.safetensors=0.2]
    method: linear
  adapters:
    merge: [l.safetensors, k.safetensors=0.5]
  final:
    merge: ["${average}", adapters=0.8]
    output: final.safetensors
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five checkpoints and two LoRAs."""
    for name, model in zip("abcde", MODELS, strict=True):
        save(model, tmp_path / f"{name}.safetensors", {"modelspec.title": name})
    for name, lora in zip("lk", LORAS, strict=True):
        save(lora, tmp_path / f"{name}.safetensors")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "mix.yaml"
    path.write_text(text)
    return path


def states(report: Any) -> dict[str, str]:
    return {step.name: step.state for step in report.steps}


def by_hand() -> Tensors:
    """The five-model recipe in float64, for every tensor the adapters change."""
    a, b, c, d, e = ({key: value.double() for key, value in model.items()} for model in MODELS)
    mixed = {key: 0.5 * (a[key] + 0.7 * (b[key] - c[key])) + 0.3 * d[key] + 0.2 * e[key] for key in a}
    once = expected(mixed, LORAS[0], sd1_places(), 0.8)
    return {**mixed, **expected({**mixed, **once}, LORAS[1], sd1_places(), 0.4)}


def test_five_models_and_two_adapters_are_one_expression_rounded_once(folder: Path) -> None:
    report = run(write(folder, FIVE))
    assert states(report) == {"learnt": "fused", "average": "fused", "adapters": "fused", "final": "done"}
    made, reference = load(folder / "final.safetensors"), by_hand()
    for key, value in made.items():
        if key.startswith("first_stage_model.") or value.dtype != torch.float16:
            assert torch.equal(value, MODELS[0][key]), key  # the autoencoder is A's
        else:
            # Half a unit of the last place, and the float32 rounding of what cancels in the sum.
            assert error_in_ulps(value, reference[key]) <= 0.5 + 1e-2 + cancelled(value), key
    written = {path.name for path in folder.iterdir()} - {f"{name}.safetensors" for name in "abcdelk"}
    assert written == {"mix.yaml", "final.safetensors", ".final.safetensors.sdkit.json"}


def cancelled(values: torch.Tensor) -> float:
    """Units of the last place of the smallest value that float32's rounding of numbers of size 2 amounts to."""
    smallest = max(float(values.abs()[values != 0].min()), 2.0**-14)
    return 4 * 2.0**-24 / (smallest * 2.0**-10)


def test_an_output_in_between_changes_nothing_for_later_steps(folder: Path) -> None:
    plain = run(write(folder, FIVE), folder / "plain")
    text = FIVE.replace("    method: linear\n", "    method: linear\n    output: average.safetensors\n")
    run(write(folder, text), folder / "between")
    assert (folder / "between/average.safetensors").exists()
    assert (folder / "between/final.safetensors").read_bytes() == (folder / "plain/final.safetensors").read_bytes()
    assert plain.finished


def test_one_step_is_what_the_command_does(folder: Path) -> None:
    text = "steps:\n  mix:\n    blend: [a.safetensors, b.safetensors]\n    alpha: 0.3\n    rules: {attn1: 0.1}\n"
    run(write(folder, text + "    output: out.safetensors\n"))
    sdkit.blend(
        [folder / "a.safetensors", folder / "b.safetensors"], folder / "x.safetensors", alpha=0.3, rules=["attn1=0.1"]
    )
    assert (folder / "out.safetensors").read_bytes() == (folder / "x.safetensors").read_bytes()


def test_merging_into_a_computed_base_rounds_once(folder: Path) -> None:
    text = "steps:\n  mix:\n    blend: [a.safetensors, b.safetensors]\n"
    run(write(folder, text + "  out:\n    merge: [mix, l.safetensors]\n    output: o.safetensors\n"))
    half = {key: 0.5 * MODELS[0][key].double() + 0.5 * MODELS[1][key].double() for key in MODELS[0]}
    made = load(folder / "o.safetensors")
    for key, value in expected(half, LORAS[0], sd1_places(), 1.0).items():
        assert error_in_ulps(made[key], value) <= 0.5 + 1e-2 + cancelled(made[key]), key


def test_only_what_changed_is_made_again(folder: Path) -> None:
    path = write(
        folder,
        """
steps:
  one:
    blend: [a.safetensors, b.safetensors]
    output: one.safetensors
  two:
    blend: [one, c.safetensors]
    alpha: 0.25
    output: two.safetensors
  lora:
    merge: [l.safetensors, k.safetensors]
    output: sum.safetensors
  small:
    resize: lora
    rank: 1
    output: small.safetensors
""",
    )
    assert set(states(run(path)).values()) == {"done"}
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.glob("*.safetensors")}
    assert set(states(run(path)).values()) == {"up to date"}
    edited = run(path, settings={"two.alpha": "0.5"})
    assert states(edited) == {"one": "up to date", "two": "done", "lora": "up to date", "small": "up to date"}
    assert next(step for step in edited.steps if step.name == "two").replaces
    after = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.glob("*.safetensors")}
    assert {name for name in before if before[name] != after[name]} == {"two.safetensors"}
    save(LORAS[1], folder / "l.safetensors")  # an input changed
    assert states(run(path, settings={"two.alpha": 0.5})) == {
        "one": "up to date",
        "two": "up to date",
        "lora": "done",
        "small": "done",
    }


def test_an_output_that_was_damaged_or_removed_is_made_again(folder: Path) -> None:
    path = write(folder, FIVE)
    run(path)
    good = (folder / "final.safetensors").read_bytes()
    (folder / "final.safetensors").write_bytes(good[:-1] + b"x")
    assert states(run(path))["final"] == "done"
    (folder / "final.safetensors").unlink()
    assert states(run(path))["final"] == "done"
    assert (folder / "final.safetensors").read_bytes() == good


def test_what_no_recipe_has_made_is_not_replaced(folder: Path) -> None:
    path = write(folder, FIVE)
    save(MODELS[0], folder / "final.safetensors")
    with pytest.raises(SdkitError, match=r"mix.yaml:12: final: .*exists and was not made by a recipe"):
        run(path)
    assert run(path, force=True).finished


def test_a_dry_run_checks_everything_and_writes_nothing(folder: Path) -> None:
    before = sorted(folder.iterdir())
    report = run(write(folder, FIVE), folder / "new" / "place", dry_run=True)
    assert states(report)["final"] == "planned" and not report.finished
    assert report.steps[-1].report.bytes > 1_000_000
    assert sorted(folder.iterdir()) == sorted([*before, folder / "mix.yaml"])


def test_the_recipe_in_the_file_names_every_input(folder: Path) -> None:
    run(write(folder, FIVE))
    with open_weights(folder / "final.safetensors") as weights:
        metadata = weights.metadata
    recipe = json.loads(metadata["sdkit.recipe"])
    assert [entry["name"] for entry in recipe["parents"]] == ["average", "l.safetensors", "k.safetensors"]
    assert [entry.get("strength") for entry in recipe["parents"]] == [None, 0.8, 0.4]
    assert set(recipe["steps"]) == {"learnt", "average"}
    assert all("id" in entry or "step" in entry for step in recipe["steps"].values() for entry in step["parents"])
    names = "a.safetensors, b.safetensors, c.safetensors, d.safetensors, e.safetensors, l.safetensors, k.safetensors"
    assert metadata["modelspec.merged_from"] == names
    assert json.loads(metadata["sd_merge_recipe"])["type"] == "sdkit"
    assert str(folder) not in json.dumps(metadata)


def test_a_pinned_file_must_be_that_file(folder: Path) -> None:
    digest = sdkit.hash(folder / "b.safetensors").sha256
    text = "steps:\n  m:\n    blend:\n      - a.safetensors\n      - b.safetensors@sha256:{}\n    output: o.st\n"
    run(write(folder, text.format(digest)))
    with open_weights(folder / "o.st") as weights:
        recipe, known = (json.loads(weights.metadata[key]) for key in ("sdkit.recipe", "sd_merge_models"))
    assert recipe["parents"][1]["sha256"] == digest and known[digest]["name"] == "b.safetensors"
    table = text.replace("b.safetensors@sha256:{}", "{{path: b.safetensors, sha256: {}}}")
    with pytest.raises(UsageError, match=r"mix.yaml:5: .*has the sha256 " + digest):
        run(write(folder, table.format("0" * 64)), force=True)


# Jobs


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configurations, pictures and a recipe that makes a base, trains it, and blends."""
    folder = tmp_path_factory.mktemp("training")
    tiny.write_configs(folder / "configs")
    (folder / "pictures").mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 100, 50)).save(folder / f"pictures/red dog {number}.png")
    (folder / "base.yaml").write_text(
        """
steps:
  mix:
    blend: [start, tuned]
    output: runs/mix
  tuned:
    train: fine-tune
    base: start
    data: pictures
    steps: 3
    lr: 1e-4
    save_every: 1
    output: runs/tuned
  start:
    new-base: configs
    seed: 3
    output: runs/start
"""
    )
    return folder


def test_jobs_run_in_order_of_need_and_tensor_steps_take_what_they_wrote(training: Path) -> None:
    path = training / "base.yaml"
    plan = run(path, dry_run=True)
    assert states(plan) == {"start": "planned", "tuned": "waits", "mix": "waits"}
    assert [step.name for step in plan.steps] == ["start", "tuned", "mix"]
    assert states(run(path)) == {"start": "done", "tuned": "done", "mix": "done"}
    assert states(run(path)) == {"start": "up to date", "tuned": "up to date", "mix": "up to date"}
    found = {}
    for name in ("start", "tuned/tuned", "mix"):
        with open_weights(training / "runs" / name) as weights:
            info = weights.tensors["unet/conv_in.weight"]
            found[name] = torch.frombuffer(bytearray(weights.read(info)), dtype=torch.float32)
    assert not torch.equal(found["start"], found["tuned/tuned"])
    torch.testing.assert_close(found["mix"], (found["start"] + found["tuned/tuned"]) / 2)
    plan = run(path, dry_run=True, settings={"tuned.steps": 4})
    assert states(plan) == {"start": "up to date", "tuned": "planned", "mix": "waits"}
    assert plan.steps[1].report.plan.steps == 4 and plan.steps[1].replaces


def test_an_interrupted_training_goes_on_by_itself_to_the_same_bits(training: Path) -> None:
    path = training / "base.yaml"
    run(path)
    answers = iter([False, True])  # stop after the second step
    stopped = run(path, training / "again", should_stop=lambda: next(answers, True))  # type: ignore[arg-type]
    assert states(stopped) == {"start": "done", "tuned": "interrupted"} and not stopped.finished
    plan = run(path, training / "again", dry_run=True)
    assert states(plan) == {"start": "up to date", "tuned": "planned", "mix": "waits"}
    assert run(path, training / "again").finished
    name = "tuned/tuned/unet/diffusion_pytorch_model.safetensors"
    assert (training / "again/runs" / name).read_bytes() == (training / "runs" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_recipe_goes_on(training: Path) -> None:
    run(training / "base.yaml")
    words = [sys.executable, "-m", "sdkit", "run", str(training / "base.yaml"), "-o", str(training / "killed")]
    states_folder = training / "killed/runs/tuned/state"
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not list(states_folder.glob("step-*")):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(training / "base.yaml", training / "killed").finished


def test_a_training_file_runs_too(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(training / "base.yaml")
    monkeypatch.chdir(training)
    (training / "my-lora.yaml").write_text("method: lora\nbase: runs/tuned/tuned\ndata: pictures\nsteps: 2\nrank: 2\n")
    result = CliRunner().invoke(main, ["run", "my-lora.yaml", "--set", "rank=3", "--json"])
    assert result.exit_code == 0, result.output
    (step,) = json.loads(result.stdout)["steps"]
    assert step["state"] == "done"
    factors = load(training / "runs/pictures-lora/pictures-lora.safetensors")
    assert {value.shape[0] for key, value in factors.items() if key.endswith("lora_down.weight")} == {3}
