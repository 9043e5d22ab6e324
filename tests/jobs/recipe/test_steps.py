"""What is wrong with a recipe is said with file and line, before anything is opened or written."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import kohya_lora, save, sd1, sd1_modules

from sdkit.core.errors import SdkitError, UsageError
from sdkit.jobs.run import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    for name in "ab":
        save(sd1(ord(name)), folder / f"{name}.safetensors")
    save(kohya_lora(sd1_modules(), rank=2), folder / "lora.safetensors")
    return folder


MIX = "steps:\n  mix:\n    blend: [a.safetensors, b.safetensors]\n"

WRONG = {
    "no YAML": ("steps: [", "mix.yaml:1: no YAML", ""),
    "no table": ("- a\n- b\n", "not a table", "steps:"),
    "no steps": ("steps: {}\n", "no steps", ""),
    "unknown key": ("stpes:\n  a: 1\n", "mix.yaml:1: unknown key 'stpes'", ""),
    "unknown verb": ("steps:\n  mix:\n    blnd: [a, b]\n", "mix.yaml:3: 'blnd' is nothing", "did you mean blend?"),
    "unknown option": (MIX + "    alhpa: 0.5\n", "mix.yaml:4: blend has no option 'alhpa'", "did you mean alpha?"),
    "option of another method": (MIX + "    density: 0.5\n    output: o.st\n", "mix.yaml:4: blend has no option", ""),
    "unknown method": (MIX + "    method: slrep\n", "mix.yaml:4: unknown merge method", "did you mean slerp?"),
    "training method": ("steps:\n  x:\n    train: lroa\n", "unknown training method 'lroa'", "lora"),
    "value out of range": (
        MIX + "    method: tensor_sum\n    alpha: 2\n    output: o.safetensors\n",
        "mix.yaml:5: mix: alpha=2",
        "",
    ),
    "missing file": (
        "steps:\n  mix:\n    blend:\n      - a.safetensors\n      - c.safetensors\n",
        "mix.yaml:5: .*c.safetensors: no such file",
        "did you mean",
    ),
    "unknown step": ("steps:\n  mix:\n    blend: [a.safetensors, '${mxi}']\n", "mix.yaml:3: there is no step", "mix"),
    "circle": (
        "steps:\n  one:\n    blend: [two, a.safetensors]\n    output: o\n  two:\n    merge: [one, lora.safetensors]\n",
        "mix.yaml:[25]: the steps form a circle: (one needs two needs one|two needs one needs two)",
        "",
    ),
    "nothing written": (MIX, "mix.yaml:2: mix writes nothing and no step uses it", "output"),
    "job without output": ("steps:\n  x:\n    extract: [a.safetensors, b.safetensors]\n", "writes files", "output"),
    "job reads what is not written": (
        MIX + "  x:\n    extract: [mix, b.safetensors]\n    output: x.safetensors\n",
        "mix.yaml:5: extract reads files, and mix writes none",
        "output",
    ),
    "rule without effect": (
        MIX + "    rules: {nowhere: 0.3}\n    output: o.safetensors\n",
        "mix.yaml:2: mix: --rule nowhere: matches no blended weight",
        "",
    ),
    "two steps, one output": (
        f"{MIX}    output: o.st\n  two:\n    blend: [a.safetensors, b.safetensors]\n    output: ./o.st\n",
        "mix.yaml:7: .*is what mix writes already",
        "",
    ),
    "key twice": (MIX + "    alpha: 1\n    alpha: 2\n", "mix.yaml:5: the key 'alpha' comes twice", ""),
    "strength": (MIX.replace("b.safetensors", "{b.safetensors: much}"), "mix.yaml:3: 'much' is no strength", ""),
    "object": ("steps: !!python/object/apply:os.system [ls]\n", "mix.yaml:1: .*no plain value", ""),
    "object in a value": (MIX + "    alpha: !!binary aGk=\n", "mix.yaml:4: .*no plain value", ""),
    "aliases": ("x: &x [1]\nsteps: [*x, *x]\n", "mix.yaml:2: aliases", ""),
    "deep": ("steps: " + "[" * 500 + "]" * 500, "mix.yaml:1: nested too deeply", ""),
    "very deep": ("steps: " + "[" * 100_000, "mix.yaml:1: nested too deeply", ""),
    "huge": ("# " + "x" * 200_001, "too large", ""),
    "not text": ("steps: \x00", "no YAML", ""),
    "stochastic without output": (
        MIX + "    stochastic: 1\n  o:\n    merge: [mix, lora.safetensors]\n    output: o.safetensors\n",
        "mix.yaml:4: mix: stochastic: the step mix writes nothing",
        "",
    ),
    "adapter among models": (
        "steps:\n  mix:\n    blend: [a.safetensors, lora.safetensors]\n    output: o.safetensors\n",
        "mix.yaml:2: mix: B .* is an adapter",
        "",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_recipes(name: str, folder: Path) -> None:
    text, message, hint = WRONG[name]
    path = folder / "mix.yaml"
    path.write_text(text)
    before = sorted(folder.rglob("*"))
    with pytest.raises(SdkitError, match=message) as error:
        run(path)
    assert hint in error.value.hint
    assert sorted(folder.rglob("*")) == before


def test_outputs_stay_in_the_folder_that_was_named(folder: Path) -> None:
    path = folder / "out.yaml"
    for output in ("../o.safetensors", "/tmp/o.safetensors"):
        path.write_text(MIX + f"    output: {output}\n")
        with pytest.raises(UsageError, match=r"out.yaml:4: .*leaves"):
            run(path, folder / "here", dry_run=True)


def test_settings_name_a_step(folder: Path) -> None:
    path = folder / "set.yaml"
    path.write_text(MIX + "    output: o.safetensors\n")
    with pytest.raises(UsageError, match="names no option of a step"):
        run(path, settings={"mxi.alpha": 1})
    assert run(path, settings={"alpha": "1e-1"}, dry_run=True).steps[0].report.parameters == {"alpha": 0.1}
