"""A model may be named wherever a command takes one: by path, registered name, ``tiny``, or a hub's reference."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from sdkit.cli.main import main
from sdkit.cli.names import WEIGHTED, ModelName, ModelPath, Reference, Weighted
from sdkit.core.errors import UsageError
from sdkit.families.bases import TINY, resolve_base
from sdkit.jobs.models.files import add_models
from sdkit.training.method import methods

HEAVY = ("torch", "numpy", "diffusers", "transformers")
# What names no model. A parameter that is neither here nor of a model's type fails the test below.
OUTPUTS = {"target", "new", "name of pull", "folder of quickstart", "image of diff", "png", "undo of merge"}
PLACES = {"data", "folder", "folders", "like", "samples", "recipe", "root", "run", "configs of new-base"}
HUBS = {"reference", "hub", "base_model", "licence", "message"}
WORDS = {"words", "settings", "text", "tags", "tag", "subfolder", "prompts", "negative", "subject", "prior", "held_out"}
OPTIONS = {"parameters", "rules", "blocks", "step", "budget", "method", "alpha", "beta", "dtype", "sampler", "device"}
CHOICES = {"precision", "prediction", "family", "kind", "to", "format", "only", "variant", "shard_size"}
OTHERS = {
    "path of models",  # an export, to be imported
    "image_encoder",  # several models in one text: `local_paths` finds each
}
NO_MODELS = OUTPUTS | PLACES | HUBS | WORDS | OPTIONS | CHOICES | OTHERS


@cache
def parameters() -> list[tuple[tuple[str, ...], click.Parameter]]:
    """Every parameter of every command that takes a text, with the words that lead to the command."""
    numbers = (click.types.IntParamType, click.types.FloatParamType, click.Choice)
    every = [(words, one) for words, command in _commands((), main) for one in command.params]
    return [(words, one) for words, one in every if not (isinstance(one.type, numbers) or vars(one).get("is_flag"))]


def _commands(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield words, command
        return
    context = click.Context(command)
    for name in methods() if words == ("train",) else command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from _commands((*words, name), found)


def models() -> list[tuple[tuple[str, ...], click.Parameter]]:
    """Those that name models."""
    return [(words, one) for words, one in parameters() if isinstance(one.type, (ModelPath, ModelName))]


def test_every_parameter_that_may_name_a_model_does() -> None:
    for words, one in parameters():
        known = {one.name, f"{one.name} of {words[0]}"} & NO_MODELS
        is_model = isinstance(one.type, (ModelPath, ModelName))
        assert is_model or known, f"sdkit {' '.join(words)}: if {one.name} is a model, a type of sdkit.cli.names is its"


def test_the_walk_sees_every_command_that_reads_models() -> None:
    found = {words[0] for words, _ in models()}
    assert found >= {"merge", "blend", "unmerge", "inspect", "hash", "verify", "reproduce", "compare", "diff", "xy"}
    assert found >= {"convert", "extract", "resize", "scale", "subtract", "generate", "push", "identify", "models"}
    assert {words[1] for words, _ in models() if words[0] == "train"} == set(methods())


@pytest.fixture
def fox(sparse: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registered LoRA that does not lie here."""
    names = ("lora_unet_mid_block_x.lora_down.weight", "lora_unet_mid_block_x.lora_up.weight")
    path: Path = sparse({names[0]: ("F16", [4, 8]), names[1]: ("F16", [8, 4])}, name="fox.safetensors")
    add_models([path])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return path


def test_each_of_them_takes_names_and_references(fox: Path) -> None:
    for words, one in models():
        if isinstance(one.type, ModelName):
            continue

        def convert(text: str, kind: click.ParamType[Any] = one.type) -> Any:
            value = kind.convert(text, None, None)
            return value.model if isinstance(value, Weighted) else value

        assert convert("fox") == fox, words
        assert convert(TINY) in (TINY, resolve_base(TINY)), words
        assert convert("hf:org/repo") in ("hf:org/repo", Reference("hf:org/repo")), words


PINNED = f"hf:a/b#sha256={'0' * 64}"


@pytest.mark.parametrize(
    ("text", "model", "strength"),
    [
        ("fox", "", None),
        ("fox=0.5", "", 0.5),
        ("hf:a/b=-1", "hf:a/b", -1.0),
        (PINNED, PINNED, None),
        (f"{PINNED}=2", PINNED, 2.0),
    ],
)
def test_a_strength_stands_behind_the_model(fox: Path, text: str, model: str, strength: float | None) -> None:
    assert WEIGHTED.convert(text, None, None) == Weighted(Reference(model) if model else fox, strength)


def test_a_file_with_an_equals_sign_in_its_name_wins(fox: Path) -> None:
    Path("fox=0.5").touch()
    assert WEIGHTED.convert("fox=0.5", None, None) == Weighted(Path("fox=0.5"), None)
    with pytest.raises(UsageError, match="is no strength"):
        WEIGHTED.convert("fox=much", None, None)


def test_each_of_them_is_completed_without_torch(fox: Path) -> None:
    lines = [(*words, *_before(one)) for words, one in models()]
    program = f"""
import sys
from click.shell_completion import ShellComplete
from sdkit.cli.main import main
for line in {lines!r}:
    found = ShellComplete(main, {{}}, "sdkit", "_SDKIT_COMPLETE").get_completions(list(line), "fo")
    assert "fox" in [one.value for one in found], (line, found)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def _before(parameter: click.Parameter) -> tuple[str, ...]:
    """The words after which a shell asks for this parameter: its option, or the arguments before it."""
    if isinstance(parameter, click.Option):
        return (parameter.opts[0],)
    return ("first",) if parameter.name in ("base", "adapters", "second") else ()
