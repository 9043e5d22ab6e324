"""The recipes that come with sdkit, and those of docs/recipes.md, pass every check there is; the short ones run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import tiny
from drawn import draw_identities
from models import kohya_lora, save, sd1, sd1_modules
from PIL import Image

from sdkit.jobs.recipe.document import read_document
from sdkit.jobs.run import run

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes, beside everything they name."""
    from sdkit.runtime.create import create_base

    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (folder / "models").mkdir()
    for number, name in enumerate(("a", "b", "c", "d", "tuned", "base")):
        save(sd1(number), folder / f"models/{name}.safetensors")
    for number, name in enumerate(("lora", "style", "detail", "light")):
        save(kohya_lora(sd1_modules(), rank=2, seed=number), folder / f"models/{name}.safetensors")
    create_base(tiny.write_configs(folder / "models/configs"), folder / "models/base")
    emoji = ("autoencoder", "autoencoder-held-out", "base", "styles/noto", "styles/twemoji")
    for photos in ("models/photos", *(f"runs/emoji/{name}" for name in emoji)):
        (folder / photos).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (16, 16), (80 * number, 100, 50)).save(folder / photos / f"red dog {number}.png")
    draw_identities(folder / "models/people", 10)
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_pass_every_check(path: Path, place: Path) -> None:
    recipe = place / "recipes" / path.name
    value = read_document(recipe).value
    settings = {}
    if "method" in value:  # base and data are the user's
        data = "people" if value["method"] == "hyperdreambooth" else "photos"
        settings = {"base": str(place / "models/base"), "data": str(place / "models" / data)}
    if path.name == "null-text-inversion.yaml":  # of one picture
        settings["data"] += "/red dog 0.png"
    if path.name in ("aesthetic-gradient.yaml", "clip-inversion.yaml"):  # they need an image encoder
        settings["base"] = "tiny"
    if path.name == "tiny-variants.yaml":  # before there is an embedded base
        settings = {f"{name}.base": str(place / "models/base") for name in ("noto", "twemoji")}
    report = run(recipe, settings=settings, dry_run=True)
    assert {step.state for step in report.steps} <= {"planned", "fused", "waits"}
    assert any(step.state == "planned" for step in report.steps)
    assert path.name == "tiny-base.yaml" or len(path.read_text().splitlines()) < 30


def test_five_models_run(place: Path) -> None:
    assert run(place / "recipes/five-models.yaml", place / "mixes").finished


@pytest.mark.parametrize("number", range(len(YAML)))
def test_the_pages_recipes_pass_every_check(number: int, place: Path) -> None:
    path = place / "models" / f"page-{number}.yaml"
    path.write_text(YAML[number], encoding="utf-8")
    report = run(path, dry_run=True)
    assert any(step.state == "planned" for step in report.steps)


def test_the_pages_python_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place / "models")
    Path("mix.yaml").write_text(YAML[0], encoding="utf-8")
    (code,) = PYTHON
    exec(compile(code, "recipes.md", "exec"), {})
    assert capsys.readouterr().out.endswith("True\n")


def test_the_page_describes_every_key_of_an_input() -> None:
    from sdkit.jobs.recipe.steps import _SOURCE_KEYS

    assert all(f"{key}:" in PAGE for key in _SOURCE_KEYS)
