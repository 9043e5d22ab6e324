"""Calculating with opened models gives what the written-out formula gives in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from models import assert_merged, expected, kohya_lora, load, save, sd1, sd1_modules, sd1_places

import sdkit
from sdkit.core.errors import UsageError
from sdkit.jobs.lazy_model import LazyModel
from sdkit.jobs.run import run

MODELS = [sd1(seed) for seed in range(3)]
LORA = kohya_lora(sd1_modules(), rank=2)


@pytest.fixture
def opened(tmp_path: Path) -> tuple[LazyModel, ...]:
    paths = [save(model, tmp_path / f"{name}.safetensors") for name, model in zip("abc", MODELS, strict=True)]
    return tuple(sdkit.open(path) for path in [*paths, save(LORA, tmp_path / "lora.safetensors")])


def near(path: Path, numbers: tuple[float, ...]) -> None:
    made = load(path)
    for key in made:
        if key.startswith("model."):
            exact = sum(number * model[key].double() for number, model in zip(numbers, MODELS, strict=True))
            torch.testing.assert_close(made[key].double(), exact, rtol=2**-11, atol=1e-6)


def test_add_difference(opened: tuple[LazyModel, ...], tmp_path: Path) -> None:
    a, b, c, _ = opened
    (a + 0.7 * (b - c)).save(tmp_path / "1.safetensors")
    near(tmp_path / "1.safetensors", (1.0, 0.7, -0.7))
    (0.7 * (b - c) + a).save(tmp_path / "2.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    sdkit.blend(paths, tmp_path / "3.safetensors", method="add_difference", alpha=0.7)
    assert all(
        torch.equal(x, y) for x, y in zip(*(load(tmp_path / f"{n}.safetensors").values() for n in "13"), strict=True)
    )
    (0.5 * a + b / 4 + 0.25 * c).save(tmp_path / "4.safetensors")
    near(tmp_path / "4.safetensors", (0.5, 0.25, 0.25))


def test_adapters_are_differences(opened: tuple[LazyModel, ...], tmp_path: Path) -> None:
    a, _, _, lora = opened
    (a + 0.5 * lora - 0.2 * lora).save(tmp_path / "out.safetensors")
    assert_merged(tmp_path / "out.safetensors", MODELS[0], expected(MODELS[0], LORA, sd1_places(), 0.5 - 0.2))
    (0.5 * lora).save(tmp_path / "half.safetensors")
    sdkit.merge(tmp_path / "a.safetensors", tmp_path / "half.safetensors", tmp_path / "half-in.safetensors")
    assert_merged(tmp_path / "half-in.safetensors", MODELS[0], expected(MODELS[0], LORA, sd1_places(), 0.5))


def test_a_method_among_sums(opened: tuple[LazyModel, ...], tmp_path: Path) -> None:
    a, b, c, lora = opened
    model = (a + (b - c)).blend(c, method="slerp", alpha=0.3) + 0.5 * lora
    model.save(tmp_path / "out.safetensors")
    text = yaml.safe_dump(model.recipe("again.safetensors"), sort_keys=False)
    (tmp_path / "again.yaml").write_text(text)
    run(tmp_path / "again.yaml")
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_what_makes_no_sense_is_said_at_once(opened: tuple[LazyModel, ...], tmp_path: Path) -> None:
    a, b, c, lora = opened
    with pytest.raises(UsageError, match="twice a model") as error:
        a + b
    assert "0.5 * a + 0.5 * b" in error.value.hint
    for wrong, message in (
        (b - c, "a difference"),
        (0.3 * a + 0.3 * b, "add up to 0.6"),
        (b - c - lora, "a difference"),
    ):
        with pytest.raises(UsageError, match=message):
            wrong.save(tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="a difference"):
        a.blend(b - c)
    with pytest.raises(UsageError, match="LazyModel is no path"):
        sdkit.merge(a, {tmp_path / "lora.safetensors": 1.0}, tmp_path / "x.safetensors")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        a * "0.5"  # type: ignore[operator]
    assert not (tmp_path / "x.safetensors").exists()


def test_blend_takes_sums_of_models(opened: tuple[LazyModel, ...], tmp_path: Path) -> None:
    a, b, c, lora = opened
    out = tmp_path / "out.safetensors"
    report = sdkit.blend([a + 0.5 * (b - c), 0.5 * a + 0.5 * c], out, alpha=0.25)
    near(out, (0.875, 0.375, -0.25))
    assert report.models == ("A", "B") and not report.warnings
    assert sdkit.reproduce(out, [tmp_path]).identical, "the recipe in the file makes its bytes again"
    sdkit.blend([(a, 0.25), (b + lora, 0.75)], tmp_path / "mix.safetensors", method="linear")
    (0.25 * a + 0.75 * b + 0.75 * lora).save(tmp_path / "same.safetensors")
    made, same = load(tmp_path / "mix.safetensors"), load(tmp_path / "same.safetensors")
    for key, value in made.items():
        torch.testing.assert_close(value, same[key], rtol=2**-9, atol=1e-5)
    with pytest.raises(UsageError, match="a difference, not a model"):
        sdkit.blend([a, b - c], tmp_path / "none.safetensors")


def test_models_can_be_compared_before_they_are_written(opened: tuple[LazyModel, ...]) -> None:
    a, b, _, _ = opened
    (_, _, *rest), *_ = [sdkit.diff([a, b, 0.75 * a + 0.25 * b]).comparisons[1].components]
    assert [part.name for part in rest] == ["vae"] and rest[0].changed == 0  # a sum's autoencoder is the first model's
    report = sdkit.diff([a, b, 0.75 * a + 0.25 * b])
    assert any(line.startswith("C lies between: ") for line in report.relations)
