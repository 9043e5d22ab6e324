from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from sdkit.core.errors import SdkitError, UsageError
from sdkit.training.folder import RunFolder, write_event
from sdkit.training.method import load_method, methods
from sdkit.training.optimizers import OPTIMIZERS, lr_factor, make_optimizer
from sdkit.training.option_sets import DenoisingOptions, LoraOptions
from sdkit.training.options import TrainOptions, fixed, keys, option, option_help, parse_options
from sdkit.training.state import RunState, complete_states, load_newest
from sdkit.training.trainable import Group


def state(step: int) -> RunState:
    contents = {
        "a": torch.arange(step),
        "numbered": {0: {"x": torch.ones(2), "step": 3.5}},
        "list": [1, None, "ß", 1e-300],
    }
    return RunState(step, 1, 0.5, {"lr": 1e-4}, contents)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    state(7).save(tmp_path, 2)
    found = load_newest(tmp_path)
    assert found is not None
    again = found[1]
    assert (again.step, again.attempt, again.lr_scale, again.settings) == (7, 1, 0.5, {"lr": 1e-4})
    assert torch.equal(again.contents["a"], torch.arange(7))
    assert torch.equal(again.contents["numbered"][0]["x"], torch.ones(2))
    assert again.contents["numbered"][0]["step"] == 3.5
    assert again.contents["list"] == [1, None, "ß", 1e-300]


def test_the_newest_complete_state_is_used_and_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        state(step).save(tmp_path, 2)
    assert [path.name for path in complete_states(tmp_path)] == ["step-00000002", "step-00000003"]
    (tmp_path / "step-00000003" / "COMPLETE").unlink()
    found = load_newest(tmp_path)
    assert found is not None and found[1].step == 2
    assert load_newest(tmp_path / "nowhere") is None


def test_no_state_is_a_pickle_and_all_are_plain_files(tmp_path: Path) -> None:
    path = state(1).save(tmp_path, 2)
    assert sorted(file.name for file in path.iterdir()) == ["COMPLETE", "state.json", "tensors.safetensors"]
    with pytest.raises(TypeError, match="a set cannot be saved"):
        RunState(1, 0, 1.0, {}, {"x": {1}}).save(tmp_path, 2)


def test_another_version_s_state_is_refused(tmp_path: Path) -> None:
    path = state(1).save(tmp_path, 2)
    fields = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**fields, "version": 99}))
    with pytest.raises(SdkitError, match="another version"):
        load_newest(tmp_path)


def test_where_a_run_lies(tmp_path: Path) -> None:
    folder = RunFolder.of(tmp_path / "dog", ".safetensors")
    assert folder.result == tmp_path / "dog" / "dog.safetensors"
    assert folder.states == tmp_path / "dog" / "state"
    file = RunFolder.of(tmp_path / "dog.safetensors", ".safetensors")
    assert (file.folder, file.result) == (tmp_path, tmp_path / "dog.safetensors")
    dotted = tmp_path / "v1.5"
    dotted.mkdir()
    assert RunFolder.of(dotted, ".safetensors").result == dotted / "v1.5.safetensors"


def test_a_log_is_cut_at_the_step_that_is_taken_up(tmp_path: Path) -> None:
    from sdkit.core.events import Note

    folder = RunFolder.of(tmp_path, ".safetensors")
    with folder.log(0) as log:
        for step in range(5):
            write_event(log, Note(step, "x"))
        log.write('{"step": 9, "half')
    with folder.log(2) as log:
        write_event(log, Note(3, "again"))
    lines = [json.loads(line) for line in folder.events.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["text"] == "again"


def test_beginning_where_a_run_has_been_needs_a_word(tmp_path: Path) -> None:
    folder = RunFolder.of(tmp_path / "dog", ".safetensors")
    folder.begin(resume=False)
    folder.check(resume=False, force=False)
    state(1).save(folder.states, 2)
    with pytest.raises(SdkitError, match="a run is saved here") as error:
        folder.check(resume=False, force=False)
    assert "--resume" in error.value.hint
    folder.check(resume=True, force=False)
    folder.begin(resume=False)
    assert not complete_states(folder.states)


@dataclass(frozen=True)
class Own(LoraOptions, DenoisingOptions):
    """Options as a method declares them."""

    steps: int = 5
    rank: int = 4
    init: str = fixed("")
    class_: str | None = option(None, "a word Python keeps for itself")
    gentle: bool = option(False, "a switch")

    def usual(self) -> dict[str, Any]:
        return {"rank": 2} if self.gentle else {}


def test_options_are_read_from_text() -> None:
    given = {"lr": "1e-4", "steps": "2e3", "flip": "yes", "te-lr": "none", "rank": 8, "class": "dog"}
    options = parse_options(Own, given, "own")
    assert (options.lr, options.steps, options.flip, options.te_lr, options.rank) == (1e-4, 2000, True, None, 8)
    assert options.class_ == "dog" and options.as_dict()["class"] == "dog"


def test_a_method_says_where_its_defaults_differ() -> None:
    assert (TrainOptions().steps, parse_options(Own, {}, "own").steps) == (1000, 5)
    assert keys(Own)["steps"].declaration == keys(TrainOptions)["steps"].declaration
    with pytest.raises(UsageError, match="steps=0: must be at least 1"):
        parse_options(Own, {"steps": 0}, "own")


def test_defaults_may_follow_from_other_options() -> None:
    assert [parse_options(Own, {"gentle": gentle}, "own").rank for gentle in (False, True)] == [4, 2]
    given = parse_options(Own, {"gentle": True, "rank": 4}, "own")
    assert given.rank == 4 and given.defaults()["rank"] == 2


def test_what_is_fixed_is_no_key() -> None:
    with pytest.raises(UsageError, match="unknown option init="):
        parse_options(Own, {"init": "x"}, "own")
    assert "init" not in Own().as_dict() and Own().init == ""
    assert "mask" not in TrainOptions().as_dict() and "mask" in Own().as_dict()


def test_files_have_their_names_alone_where_others_read_it(tmp_path: Path) -> None:
    (tmp_path / "held-out").mkdir()
    options = Own(validation=str(tmp_path / "held-out"), caption=str(tmp_path / "held-out"), mask="alpha")
    shown = options.without_places()
    assert shown["validation"] == "held-out" and shown["caption"] == str(tmp_path / "held-out")
    assert shown["mask"] == "alpha"


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"rnak": "8"}, "unknown option rnak=", "did you mean rank?"),
        ({"kl_weight": "8"}, "unknown option kl_weight= .it is not one of lora", ""),
        ({"steps": "1.5"}, "steps=1.5: a whole number is needed", "steps= stands for: "),
        ({"steps": "0"}, "steps=0: must be at least 1", ""),
        ({"ema": "1.5"}, "ema=1.5: must be at most 1", "ema= stands for: "),
        ({"lr": "nan"}, "lr=nan: a number is needed", ""),
        ({"flip": "perhaps"}, "flip=perhaps: yes or no is needed", "flip= stands for: "),
    ],
)
def test_wrong_options_are_named(given: dict[str, str], message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parse_options(Own, given, "lora")
    assert hint in error.value.hint


@pytest.mark.parametrize("name", methods())
def test_every_option_explains_itself_and_has_a_default_of_its_type(name: str) -> None:
    _, method = load_method(name)
    assert all(text for _, text in option_help(method.keys, method.defaults))
    for form in (method, *method.forms.values()):
        hidden = {field.name for field in fields(form.options) if field.metadata.get("option", field) is None}
        assert form.keys.keys() | hidden >= TrainOptions().as_dict().keys()
        for key in form.keys.values():
            assert key.read(str(key.default)) == key.default or key.default is None


def group() -> list[Group]:
    return [Group("a", [torch.nn.Parameter(torch.ones(3, 3))], 0.1)]


@pytest.mark.parametrize("name", [name for name, recipe in OPTIMIZERS.items() if not recipe.package])
def test_optimizers_step(name: str) -> None:
    groups = group()
    optimizer = make_optimizer(name, groups, 0.0)
    groups[0].parameters[0].square().sum().backward()
    optimizer.step()
    assert (groups[0].parameters[0] < 1).all()


def test_optimizers_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    with pytest.raises(UsageError, match="unknown optimizer 'adamv'") as unknown:
        make_optimizer("adamv", group(), 0.0)
    assert "did you mean adam" in unknown.value.hint
    with pytest.raises(SdkitError, match="not installed") as missing:
        make_optimizer("lion", group(), 0.0)
    assert missing.value.hint == "pip install lion-pytorch"


def test_schedules_are_functions_of_the_step() -> None:
    assert [lr_factor("constant_with_warmup", 4, 10)(step) for step in (0, 2, 4, 9)] == [0, 0.5, 1, 1]
    cosine = lr_factor("cosine", 0, 10)
    assert cosine(0) == 1 and cosine(5) == pytest.approx(0.5) and cosine(10) == pytest.approx(0)
    with pytest.raises(UsageError, match="unknown schedule") as error:
        lr_factor("cosin", 0, 10)
    assert "cosine" in error.value.hint
