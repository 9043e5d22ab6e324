from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import sdkit
from sdkit.cli.commands.xy import strengths
from sdkit.core.errors import SdkitError, UsageError
from sdkit.generation.pictures import draw
from sdkit.generation.request import Request
from sdkit.jobs import xy as job
from sdkit.runtime.load import load_backbone

FEW = {"steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import write_configs

    from sdkit.runtime.create import create_base

    folder = tmp_path_factory.mktemp("other")
    create_base(write_configs(folder / "configs"), folder / "other", seed=5)
    return folder / "other"


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[tuple[str, list[Image.Image]]]]]:
    """What every sheet is made of."""
    made: list[tuple[list[str], list[tuple[str, list[Image.Image]]]]] = []
    sheet = job.contact_sheet
    monkeypatch.setattr(job, "contact_sheet", lambda heads, rows: made.append((heads, rows)) or sheet(heads, rows))
    return made


@pytest.mark.parametrize(("method", "options"), [("weighted_sum", {}), ("slerp", {}), ("ties", {"density": 0.5})])
def test_every_cell_is_what_the_written_blend_draws(
    tiny_base: Path, other: Path, tmp_path: Path, cells: list, method: str, options: dict[str, float]
) -> None:
    models = [tiny_base, other]
    base = tiny_base if method == "ties" else None
    given = {"method": method, "base": base, "parameters": options}
    if method == "ties":
        models = [other, other]
    report = sdkit.xy(models, ["a cat", "b"], tmp_path / "xy.png", alphas=[0, 0.5], count=2, **given, **FEW)
    ((heads, rows),) = cells
    assert heads == ["alpha 0", "alpha 0.5"] and report.alphas == (0, 0.5)
    assert [label for label, _ in rows] == ["a cat (seed 3)", "a cat (seed 4)", "b (seed 3)", "b (seed 4)"]
    sdkit.blend(models, tmp_path / "half", method=method, base=base, parameters={**options, "alpha": 0.5})
    requests = [Request(prompt, seed=seed, steps=2) for prompt in ("a cat", "b") for seed in (3, 4)]
    written = draw(load_backbone(tmp_path / "half"), requests)
    assert [row[1].tobytes() for _, row in rows] == [picture.tobytes() for picture in written]
    with Image.open(tmp_path / "xy.png") as picture:
        assert f"by {report.method}" in picture.text["parameters"] and picture.text["parameters"].startswith("a cat\n")


def test_strength_zero_is_the_first_model(tiny_base: Path, other: Path, tmp_path: Path, cells: list) -> None:
    sdkit.xy([tiny_base, other], "a", tmp_path / "xy.png", alphas=[0, 1], **FEW)
    at_zero, at_one = cells[0][1][0][1]
    drawn = draw(load_backbone(tiny_base), [Request("a", **FEW)])[0]
    assert at_zero.tobytes() == drawn.tobytes() != at_one.tobytes()


def test_a_recipe_is_drawn_at_several_strengths_of_one_step(
    tiny_base: Path, other: Path, tmp_path: Path, cells: list
) -> None:
    recipe = tmp_path / "mix.yaml"
    first = f"  half: {{blend: [{tiny_base}, {other}], alpha: 0.5}}\n"
    recipe.write_text(f"steps:\n{first}  mix: {{blend: [half, {other}], method: slerp, output: mix}}\n")
    report = sdkit.xy(recipe, "a", tmp_path / "xy.png", alphas=[0.2, 0.9], step="mix", **FEW)
    assert (report.models, report.method) == (("mix.yaml",), "recipe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mix.yaml", "xy.png"]
    sdkit.run(recipe, settings={"mix.alpha": 0.9})
    written = draw(load_backbone(tmp_path / "mix"), [Request("a", **FEW)])[0]
    assert cells[0][1][0][1][1].tobytes() == written.tobytes()
    with pytest.raises(UsageError, match="names no option of a step"):
        sdkit.xy(recipe, "a", tmp_path / "xy2.png", alphas=[0.5])
    with pytest.raises(UsageError, match="a single model is no blend"):
        sdkit.xy(tiny_base, "a", tmp_path / "xy2.png", alphas=[0.5])


def test_nothing_is_loaded_before_everything_is_checked(
    tiny_base: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdkit.runtime.load.load_backbone", lambda *_, **__: pytest.fail("a model was loaded"))
    models, target = [tiny_base, other], tmp_path / "xy.png"
    assert sdkit.xy(models, "a", target, alphas=[0], dry_run=True).dry_run and not target.exists()
    for given, message in (
        ({"alphas": []}, "0 strengths make no picture"),
        ({"alphas": [0.5], "count": 0}, "nothing is to be drawn"),
        ({"alphas": [0.5], "steps": 0}, "steps 0 is less than 1"),
        ({"alphas": [0.5], "method": "wheighted"}, "unknown merge method"),
        ({"alphas": [0.5], "method": "n_average"}, "alpha"),
        ({"alphas": [0.5], "output": tmp_path / "xy.jpg"}, "PNG files"),
        ({"alphas": [0.5], "prompt": "[a|b]"}, "changes from step to step"),
    ):
        with pytest.raises(SdkitError, match=message):
            sdkit.xy(models, **{"prompt": "a", "output": target, **given})


def test_strengths_are_read() -> None:
    assert strengths("0:1:0.25") == [0, 0.25, 0.5, 0.75, 1]
    assert strengths("0:1:0.3") == [0, 0.3, 0.6, 0.9]
    assert strengths("1:-1:-1") == [1, 0, -1] and strengths("0,0.3, 1") == [0, 0.3, 1]
    for text in ("", "0:1", "0:1:0", "1:0:0.1", "a,b", "0:1:1e-9", "0:inf:1", "nan:1:1"):
        with pytest.raises(UsageError, match="no strengths"):
            strengths(text)
