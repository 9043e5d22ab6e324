from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sdkit.training.trainer
from sdkit.core.errors import SdkitError
from sdkit.core.events import Event, Interrupted, Paused, Resumed, RolledBack, Saved, Step, Validation
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.load import load_backbone
from sdkit.runtime.rng import StepRNG
from sdkit.training.batch import Batch, Loss
from sdkit.training.buckets import bucket_sizes
from sdkit.training.cache import TensorCache
from sdkit.training.feed import Feed, FeedSettings
from sdkit.training.method import load_method
from sdkit.training.optimizers import lr_factor
from sdkit.training.options import parse_options
from sdkit.training.piecewise import make_updater
from sdkit.training.state import RunState, complete_states, load_newest
from sdkit.training.trainer import LoopSettings, Trainer
from sdkit.training.updates import named_parameters

compute_types = {"auto": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Make = Callable[..., Trainer]


@pytest.fixture
def make(tiny_base: Path, pictures: Path, tmp_path: Path) -> Make:
    """Makes trainers of one run, each as a new process would."""

    def build(wrap: Any = None, folder: str = "state", should_stop: Any = lambda: False, **given: Any) -> Trainer:
        name, method = load_method(given.pop("method", "lora"))
        defaults = {"steps": 6, "batch": 2, "lr": 1e-2, "save_every": 2} | ({"rank": 2} if name == "lora" else {})
        known = {word: value for word, value in defaults.items() if word in method.keys}
        data = pictures / given.pop("data", "")
        options = method.settle(parse_options(method.options, {**known, **given}, name), "run")
        dtype = compute_types[options.precision]
        backbone = load_backbone(tiny_base).to(torch.device("cpu"), dtype)
        trained = method.trainables(backbone, options, StepRNG(options.seed))
        objective = method.objective(options)
        settings = FeedSettings(options.batch, bucket_sizes(16, 4), options.flip, options.caption_dropout)
        feed = Feed(
            method.dataset(data, options).samples,
            backbone,
            TensorCache(None),
            settings,
            objective.inputs,
            keep_text=not any(one.trains_text for one in trained),
        )
        factor = lr_factor(options.schedule, options.warmup, options.steps)
        updater = make_updater(trained, options, factor, torch.device("cpu"), dtype)
        loop = LoopSettings(options.steps, options.seed, options.accumulate, options.save_every, 2, 0, 0, {})
        if wrap is not None:
            objective = wrap(objective)
        return Trainer(backbone, trained, objective, feed, updater, loop, tmp_path / folder, should_stop=should_stop)

    return build


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in named_parameters(trainer.trainables).items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, Step)]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"text_encoder": True, "caption_dropout": 0.3, "flip": True, "ema": 0.9},
        {"optimizer": "adafactor", "schedule": "cosine", "warmup": 2},
        {"optimizer": "prodigy", "lr": 1.0},
        {"optimizer": "adamw-schedulefree", "sample_every": 2},
        {"optimizer": "lion"},
        {"accumulate": 2, "optimizer": "sgd", "lora_plus": 4, "snr_gamma": 5},
        {"precision": "bf16", "algo": "dora"},
        {"precision": "fp16", "algo": "lokr"},
        {"algo": "lidb", "basis_up": 9},
        {"method": "hypernetwork", "activation": "relu", "layer_norm": True, "layer_dropout": 0.3},
        {"method": "textual_inversion", "vectors": 2, "init": "ball", "caption": "{}", "ema": 0.9},
        {"method": "custom_diffusion", "layers": "all", "ema": 0.9, "accumulate": 2},
        {"method": "dreamartist", "ema": 0.9, "negative_ema": 0.5, "reconstruction": 0.1, "init": "b"},
        {"method": "pivotal", "rank": 2, "ema": 0.9, "init": "b"},
        {"method": "null_text_inversion", "data": "0.png", "tries": 2, "checkpointing": True},
        {"method": "null_text_inversion", "data": "0.png", "mode": "npi"},
        {"algo": "dora", "conv_rank": 1},
        {"algo": "loha", "checkpointing": True},
        {"algo": "lokr", "factor": 4, "decompose_both": True, "text_encoder": True},
        {"method": "fine_tune", "weights": "bf16", "accumulate": 2, "text_encoder": True, "lr": 1e-3},
        {"method": "fine_tune", "weights": "bf16", "fused_backward": True, "ema": 0.9, "optimizer": "adafactor"},
    ],
    ids=[
        "plain",
        "text",
        "adafactor",
        "prodigy",
        "schedule-free",
        "lion",
        "accumulate",
        "bf16",
        "fp16",
        "lidb",
        "hypernetwork",
        "embedding",
        "custom-diffusion",
        "dreamartist",
        "pivotal",
        "null-text",
        "npi",
        "dora",
        "loha",
        "lokr",
        "bf16-weights",
        "fused",
    ],
)
def test_a_resumed_run_is_the_same_run_bit_for_bit(make: Make, given: dict[str, Any]) -> None:
    whole = make(folder="whole", **given)
    wanted = losses(list(whole.run()))
    broken = make(folder="broken", **given)
    for event in broken.run():
        if isinstance(event, Step) and event.step == 5:
            break
    resumed = make(folder="broken", **given)
    events = list(resumed.run(resume=True))
    assert isinstance(events[0], Resumed) and events[0].step == 4
    assert losses(events) == wanted[4:]
    assert_equal(parameters(resumed), parameters(whole))
    with whole.averaged(), resumed.averaged():
        assert_equal(parameters(resumed), parameters(whole))


@pytest.mark.parametrize("method", ["lora", "hypernetwork"])
def test_training_lowers_the_loss_it_minimises_and_leaves_the_base_alone(make: Make, method: str) -> None:
    trainer = make(method=method, steps=30, batch=5, lr=3e-2, save_every=0)
    before = {name: value.clone() for name, value in trainer.backbone.unet.named_parameters()}
    found = losses(list(trainer.run()))
    assert sum(found[-10:]) < 0.9 * sum(found[:10])
    after = dict(trainer.backbone.unet.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Spoilt:
    """An objective whose loss is no number at some calls."""

    def __init__(self, objective: Any, bad: Callable[[int], bool]) -> None:
        self.inputs = objective.inputs
        self._objective, self._bad, self._calls = objective, bad, 0

    def __call__(self, backbone: Backbone, batch: Batch, rng: StepRNG) -> Loss:
        loss = self._objective(backbone, batch, rng)
        self._calls += 1
        return Loss(loss.value * float("nan")) if self._bad(self._calls) else loss


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_step_without_a_finite_gradient_is_skipped(make: Make, optimizer: str) -> None:
    trainer = make(wrap=lambda objective: Spoilt(objective, lambda call: call == 3), optimizer=optimizer, save_every=0)
    snapshots: dict[int, dict[str, torch.Tensor]] = {}
    skipped = []
    for event in trainer.run():
        if isinstance(event, Step):
            snapshots[event.step] = parameters(trainer)
            skipped += [event.step] if event.skipped else []
    assert skipped == [3]
    assert_equal(snapshots[3], snapshots[2])
    assert any(not torch.equal(snapshots[4][name], snapshots[3][name]) for name in snapshots[3])


def test_a_loss_that_stays_nan_is_rolled_back_with_a_smaller_rate(make: Make) -> None:
    trainer = make(wrap=lambda objective: Spoilt(objective, lambda call: 3 <= call <= 7), steps=9, save_every=2)
    events = list(trainer.run())
    (back,) = [event for event in events if isinstance(event, RolledBack)]
    assert (back.step, back.to_step, back.lr_scale) == (7, 6, 0.5)
    assert events[-1].step == 9
    rates = [event.lr for event in events if isinstance(event, Step)]
    assert rates[-1] == rates[0] / 2


def test_a_loss_that_never_is_a_number_stops_the_run_and_names_the_state(make: Make, tmp_path: Path) -> None:
    trainer = make(wrap=lambda objective: Spoilt(objective, lambda call: call > 2), steps=100, save_every=2)
    with pytest.raises(SdkitError, match="no number any more, at step") as stopped:
        list(trainer.run())
    assert "step-" in stopped.value.message and "lr=" in stopped.value.hint
    found = load_newest(tmp_path / "state")
    assert found is not None
    assert all(bool(torch.isfinite(value).all()) for value in found[1].contents["updater"]["parameters"].values())


def test_asked_to_stop_it_finishes_the_step_and_saves(make: Make, tmp_path: Path) -> None:
    asked = [False]
    trainer = make(should_stop=lambda: asked[0], save_every=0)
    events = []
    for event in trainer.run():
        events.append(event)
        asked[0] = isinstance(event, Step) and event.step == 3 or asked[0]
    assert isinstance(events[-1], Interrupted) and isinstance(events[-2], Saved)
    assert events[-1].step == 3
    assert complete_states(tmp_path / "state")[-1].name == "step-00000003"
    resumed = make(save_every=0)
    list(resumed.run(resume=True))
    whole = make(folder="whole", save_every=0)
    list(whole.run())
    assert_equal(parameters(resumed), parameters(whole))


def test_a_full_disk_pauses_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    save, failures = RunState.save, iter([OSError(errno.ENOSPC, "no space"), OSError(errno.EDQUOT, "quota")])

    def sometimes(self: RunState, folder: Path, keep: int) -> Path:
        error = next(failures, None) if self.step == 2 else None
        if error is not None:
            raise error
        return save(self, folder, keep)

    slept: list[float] = []
    monkeypatch.setattr(RunState, "save", sometimes)
    monkeypatch.setattr(sdkit.training.trainer.time, "sleep", slept.append)
    events = list(make().run())
    assert sum(isinstance(event, Paused) for event in events) == len(slept) == 2
    assert events[-1].step == 6


def test_any_other_failure_to_save_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: RunState, folder: Path, keep: int) -> Path:
        raise PermissionError(errno.EACCES, "not yours")

    monkeypatch.setattr(RunState, "save", fail)
    with pytest.raises(PermissionError):
        list(make().run())


def test_half_precision_trains_float32_parameters(make: Make) -> None:
    trainer = make(precision="bf16", steps=3)
    trainer.backbone.to(torch.device("cpu"), torch.bfloat16)
    found = losses(list(trainer.run()))
    assert all(loss == loss for loss in found)
    assert {value.dtype for value in parameters(trainer).values()} == {torch.float32}


def test_validation_is_reported_before_and_after(make: Make) -> None:
    numbers: Iterator[float] = iter([2.0, 1.0])
    trainer = make(steps=2)
    trainer._validate = lambda: torch.full((1, 4), next(numbers))
    seen = [event for event in trainer.run() if isinstance(event, Validation)]
    assert [(event.step, event.loss, event.base, event.pairs) for event in seen] == [(0, 2, 2, 4), (2, 1, 2, 4)]
