"""Verbs register themselves, files carry the same lineage, and a lost registry is rebuilt from them."""

from __future__ import annotations

import inspect
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
from click.testing import CliRunner
from PIL import Image

import sdkit
from sdkit.cli.main import main
from sdkit.core.paths import data_folder
from sdkit.jobs.models.files import add_models, scan_models
from sdkit.jobs.models.place import place_model
from sdkit.jobs.models.show import model_lineage
from sdkit.jobs.train_request import read_request
from sdkit.registry import open_registry
from sdkit.registry.lineage import dot, tree
from sdkit.registry.recipes import made_by


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a LoRA."""
    folder = tmp_path_factory.mktemp("small")
    models.save(models.sd1(), folder / "base.safetensors")
    models.save(models.kohya_lora(models.sd1_modules()), folder / "fox.safetensors")
    return folder


@pytest.fixture
def folder(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with both, the current one."""
    for file in small.iterdir():
        shutil.copy(file, tmp_path / file.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merged(folder: Path) -> None:
    sdkit.merge("base.safetensors", {"fox.safetensors": 0.5}, "one.safetensors")
    sdkit.blend(["base.safetensors", "one.safetensors"], "two.safetensors", alpha=0.25)


LINEAGE = [
    "two (checkpoint sd1) <- blend weighted-sum",
    "|- A: base (checkpoint sd1)",
    "`- B: one (checkpoint sd1) <- merge",
    "   |- base: base (checkpoint sd1)",
    "   `- adapter x 0.5: fox (lora)",
]


def test_verbs_register_what_they_make(folder: Path) -> None:
    merged(folder)
    found = model_lineage("two")
    assert tree(found) == LINEAGE
    assert tree(model_lineage("fox"))[-1] == "went into: one, two"
    with open_registry() as registry:
        assert {entry.name for entry in registry.entries()} == {"base", "fox", "one", "two"}


def test_a_lost_registry_is_rebuilt_by_scanning(folder: Path) -> None:
    merged(folder)
    shutil.rmtree(data_folder())
    scan_models([folder])
    assert tree(model_lineage("two")) == LINEAGE
    scan_models([folder])
    add_models(["two.safetensors"])
    assert tree(model_lineage("two")) == LINEAGE


def test_parents_that_are_not_here_are_known_by_name_and_found_later(folder: Path) -> None:
    merged(folder)
    shutil.rmtree(data_folder())
    (folder / "away").mkdir()
    (folder / "fox.safetensors").rename(folder / "away" / "fox.safetensors")
    add_models(["two.safetensors"])
    lines = tree(model_lineage("two"))
    assert lines[1:3] == ["|- A: base (not here)", "`- B: one (not here)"]
    scan_models([folder])
    assert tree(model_lineage("two")) == LINEAGE


def test_the_base_an_adapter_was_worked_out_on_is_not_made_as_the_adapter(folder: Path) -> None:
    sdkit.scale("fox.safetensors", 0.5, "weak.safetensors")
    sdkit.convert("weak.safetensors", "diffusers", "spoken.safetensors", base="base.safetensors")
    sdkit.scale("weak.safetensors", 0.5, "weaker.safetensors", base="base.safetensors")
    assert tree(model_lineage("base"))[0] == "base (checkpoint sd1)"
    for name, verb in (("spoken", "convert"), ("weaker", "scale")):
        lines = tree(model_lineage(name))
        assert lines[0].endswith(f"<- {verb}") and lines[1].endswith("weak (lora) <- scale")


def test_lineage_survives_a_rename_and_a_new_header(folder: Path) -> None:
    merged(folder)
    with open_registry() as registry:
        registry.rename(registry.find("fox").id, "reynard")
    tensors = models.load("fox.safetensors")
    models.save(dict(reversed(tensors.items())), folder / "fox.safetensors", {"modelspec.title": "Fox"})
    scan_models([folder])
    assert "`- adapter x 0.5: reynard (lora)" in tree(model_lineage("one"))


def test_kohyas_files_name_their_base_by_its_sha256() -> None:
    made = made_by({"ss_new_sd_model_hash": "AB" * 32, "ss_sd_model_name": "v1-5.ckpt"})
    assert made is not None
    assert [(one.scheme, one.value, one.name) for one in made.inputs] == [("sha256", "ab" * 32, "v1-5.ckpt")]
    assert made_by({"ss_new_sd_model_hash": "None"}) is None


@pytest.mark.parametrize(
    "recipe",
    [
        "[" * 5000,
        "{}",
        '{"verb": 3}',
        '{"verb": "merge", "parents": [3, {"id": 4}, {"id": "q"}, {"step": "s"}], "steps": {"s": {"parents": "x"}}}',
        '{"verb": "merge", "parents": [{"id": "q", "name": {"a": 1}, "strength": "x"}], "base_recipe": [1]}',
    ],
)
def test_hostile_recipes_break_nothing(folder: Path, recipe: str) -> None:
    tensors = models.load("fox.safetensors")
    models.save(tensors, folder / "evil.safetensors", {"sdkit.recipe": recipe})
    add_models(["evil.safetensors"])
    assert model_lineage("evil").as_dict()["model"]


def test_a_file_that_claims_to_be_made_of_itself(folder: Path) -> None:
    """Parents are claims: two files may name each other."""
    with open_registry() as registry:
        one = registry.learn([("quick", "q1")], "one").id
        two = registry.learn([("quick", "q2")], "two").id
        for output, parent in ((one, "q2"), (two, "q1"), (one, "q1")):
            made = made_by({"sdkit.recipe": json.dumps({"verb": "merge", "parents": [{"id": parent, "name": "x"}]})})
            assert made is not None
            registry.add_activity(output, made)
    assert tree(model_lineage("@1"))[-1].endswith("one (see above)")


def test_a_name_stands_for_a_path_in_every_verb(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in ("base", "fox"):
        (tmp_path / f"{name}.safetensors").rename(tmp_path / "models" / f"{name}.safetensors")
    scan_models(["models"])
    (tmp_path / "mix.yaml").write_text("steps:\n  mix:\n    merge: [base, fox=0.25]\n    output: mix.safetensors\n")
    for words in (
        ["inspect", "fox"],
        ["hash", "fox"],
        ["merge", "base", "fox=0.5", "-o", "one.safetensors"],
        ["scale", "fox", "0.5", "-o", "half.safetensors"],
        ["run", "mix.yaml"],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, (words, result.output)
    with open_registry() as registry:
        assert {"one", "half", "mix"} <= {entry.name for entry in registry.entries()}


@pytest.mark.parametrize(
    "call",
    [
        lambda base, fox, out: sdkit.convert(base, "diffusers", out, only="unet"),
        lambda base, fox, out: sdkit.convert(fox, "peft", out, base=base),
        lambda base, fox, out: sdkit.combine([(fox, 0.5), (fox, 0.25)], out, base=base),
        lambda base, fox, out: sdkit.subtract(fox, (fox, 0.5), out),
        lambda base, fox, out: sdkit.scale(fox, 0.5, out, base=base),
        lambda base, fox, out: sdkit.resize(fox, out, rank=1),
        lambda base, fox, out: sdkit.extract(tuned(base, fox), base, out, rank=1, dtype="fp32"),
    ],
    ids=["convert", "convert an adapter", "combine", "subtract", "scale", "resize", "extract"],
)
def test_a_name_stands_for_a_path_in_every_function(folder: Path, call: Callable[..., Any]) -> None:
    base, fox = moved_away(folder)
    assert contents(call("base", "fox", folder / "named").output) == contents(call(base, fox, folder / "path").output)


@pytest.mark.parametrize(
    "ask",
    [
        lambda base, fox: sdkit.inspect(fox),
        lambda base, fox: sdkit.hash(fox),
        lambda base, fox: sdkit.verify([fox]).files,
        lambda base, fox: sdkit.diff([base, base]).models,
        lambda base, fox: sdkit.push(fox, "file:///tmp/published", dry_run=True).model,
        lambda base, fox: sdkit.open(fox).adapters,
        lambda base, fox: contents(sdkit.unmerge(tuned(base, fox), [fox], "back.safetensors", force=True).output),
        lambda base, fox: sdkit.reproduce(tuned(base, fox)).model.endswith("tuned.safetensors"),
        lambda base, fox: add_models([fox]).models,
        lambda base, fox: place_model(fox, "forge", "forge", force=True).output,
    ],
    ids=["inspect", "hash", "verify", "diff", "push", "open", "unmerge", "reproduce", "add", "place"],
)
def test_a_name_stands_for_a_path_in_every_question(folder: Path, ask: Callable[..., Any]) -> None:
    base, fox = moved_away(folder)
    (folder / "forge" / "models" / "Lora").mkdir(parents=True)
    assert ask("base", "fox") == ask(base, fox)


MODELS = {"models", "base", "vae", "adapters", "source", "bake_vae", "parts", "tuned", "inversion", "path", "paths"}
MODELS |= {"model", "adapter", "first", "second", "merged", "undo", "configs", "tokenizer"}
OTHERS = {"output", "data", "image", "like", "folder", "samples", "folders", "recipe"}


def test_every_path_of_every_function_is_known_to_be_a_model_or_none() -> None:
    """Where this fails, a function has a new path: is it a model, then `local_path` finds it, and a test above asks."""
    for name in sdkit.__all__:
        function = getattr(sdkit, name)
        for one in inspect.signature(function).parameters.values() if inspect.isfunction(function) else ():
            if any(kind in str(one.annotation) for kind in ("Path", "Input", "Adapters")):
                assert one.name in MODELS | OTHERS, (name, one.name)


def test_training_and_drawing_take_names(folder: Path) -> None:
    base, fox = moved_away(folder)
    assert read_request("lora", "base", folder, None, {}, resume=False).base == base
    assert read_request("lora", "base", folder, None, {"init": "fox"}, resume=False).options.init == str(fox)
    word = read_request("textual-inversion", "base", folder, None, {"init": "fox"}, resume=False)
    assert word.options.init == "fox"  # what the embedding begins as
    towers = read_request("aesthetic-gradient", "base", folder, None, {"image_encoder": "tiny, fox"}, resume=False)
    assert towers.options.image_encoder == f"tiny,{fox}"
    assert sdkit.generate("base", "a fox", folder / "a.png", dry_run=True, adapters=["fox"]).base == base.name


def tuned(base: str | Path, fox: str | Path) -> str | Path:
    """A merged model, given as the others are."""
    sdkit.merge(base, {fox: 1.0}, "models/tuned.safetensors", force=True)
    return "tuned" if base == "base" else Path("models/tuned.safetensors")


def moved_away(folder: Path) -> tuple[Path, Path]:
    """Both models in a folder of their own, where only the registry finds them by name."""
    (folder / "models").mkdir()
    for name in ("base", "fox"):
        (folder / f"{name}.safetensors").rename(folder / "models" / f"{name}.safetensors")
    scan_models(["models"])
    return folder / "models" / "base.safetensors", folder / "models" / "fox.safetensors"


def contents(path: str) -> list[bytes]:
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("*.*"))
    return [file.read_bytes() for file in files if file.is_file()]


def test_a_registry_that_cannot_be_written_breaks_no_verb(folder: Path) -> None:
    data_folder().parent.mkdir(exist_ok=True)
    data_folder().write_text("a file where a folder should be")
    report = sdkit.merge("base.safetensors", "fox.safetensors", "one.safetensors")
    assert Path("one.safetensors").exists()
    assert "the registry does not know of it" in report.warnings[-1]


def test_a_damaged_registry_is_repaired_by_the_verb_that_finds_it(folder: Path) -> None:
    data_folder().mkdir()
    (data_folder() / "registry.db").write_bytes(b"this is no database" * 1000)
    report = sdkit.merge("base.safetensors", "fox.safetensors", "one.safetensors")
    assert "was damaged and begins anew" in report.warnings[-1]
    assert len(tree(model_lineage("one"))) == 3


def test_a_dry_run_registers_nothing(folder: Path) -> None:
    sdkit.merge("base.safetensors", "fox.safetensors", "one.safetensors", dry_run=True)
    assert not data_folder().exists()


def test_dot_escapes_names(folder: Path) -> None:
    with open_registry() as registry:
        registry.learn([("quick", "q")], 'a"];\x1b[31m')
    (line,) = [line for line in dot(model_lineage("@1")) if "shape=box" in line]
    assert line.startswith('  m1 [shape=box, label="a\\"];') and "\x1b" not in line


def test_the_picture_shows_each_model_once_per_way(folder: Path, tmp_path: Path) -> None:
    """Boxes are found in the picture by their colours, which is all that a reader could go by."""
    merged(folder)
    Path("fox.safetensors").unlink()
    scan_models([folder])
    result = CliRunner().invoke(main, ["models", "lineage", "two", "--png", "two.png"])
    assert result.exit_code == 0, result.output
    with Image.open("two.png") as picture:
        assert picture.format == "PNG"
        column = [picture.getpixel((picture.width // 2, y)) for y in range(picture.height)]
    boxes = [colour for colour, _ in itertools.groupby(column) if colour in BOXES]
    assert [BOXES[colour] for colour in boxes] == ["start", "here", "here", "here", "absent"]
    assert CliRunner().invoke(main, ["models", "lineage", "two", "--png", "two.png"]).exit_code == 1
    assert CliRunner().invoke(main, ["models", "lineage", "two", "--png", "two.png", "--force"]).exit_code == 0


BOXES = {(0xFF, 0xE9, 0xC7): "start", (0xEE, 0xF3, 0xF8): "here", (0xF7, 0xF7, 0xF7): "absent"}


def test_training_and_converting_register_themselves(tiny_base: Path, folder: Path) -> None:
    (folder / "photos").mkdir()
    Image.new("RGB", (64, 64), "orange").save(folder / "photos" / "a.png")
    (folder / "photos" / "a.txt").write_text("a fox")
    sdkit.train("lora", tiny_base, "photos", "sly", steps=1, rank=2, device="cpu", precision="fp32")
    sdkit.convert(tiny_base, "single", "one-file.safetensors")
    with open_registry() as registry:
        assert {"sly", "one-file"} <= {entry.name for entry in registry.entries()}
    trained, converted = tree(model_lineage("sly")), tree(model_lineage("one-file"))
    assert "<- train lora" in trained[0] and trained[1].startswith(f"`- base: {tiny_base.name}")
    assert "<- convert" in converted[0] and "base" in converted[1]
