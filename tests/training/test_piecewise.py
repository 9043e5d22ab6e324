"""Updating a parameter at a time, beside updating all at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from sdkit.core.errors import UsageError
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.rng import StepRNG
from sdkit.training.method import load_method
from sdkit.training.options import parse_options
from sdkit.training.piecewise import make_updater
from sdkit.training.plan import check_memory_options
from sdkit.training.trainable import Group
from sdkit.training.updates import Updater


class Layers:
    """Three layers that train."""

    trains_text = False

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(3)
        shapes = {"in": (16, 8), "middle": (16, 16), "out": (4, 16)}
        values = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
        self.parameters = {name: nn.Parameter(value.to(dtype)) for name, value in values.items()}

    def groups(self) -> list[Group]:
        first, *others = self.parameters.values()
        return [Group("first", [first], 1e-3), Group("others", others, 1e-2)]

    @contextmanager
    def install(self, backbone: Backbone) -> Iterator[None]:
        yield

    def loss(self, step: int) -> torch.Tensor:
        value = torch.randn(5, 8, generator=torch.Generator().manual_seed(step))
        for parameter in self.parameters.values():
            value = torch.nn.functional.linear(value.to(parameter.dtype), parameter).tanh()
        return value.float().square().mean()

    @property
    def values(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}


def options(**given: Any) -> Any:
    _, method = load_method("fine_tune")
    return parse_options(method.options, given, "fine-tune")


def make(layers: Layers, **given: Any) -> Updater:
    chosen = options(**given)
    dtype = torch.bfloat16 if chosen.precision == "bf16" else torch.float32
    return make_updater([layers], chosen, lambda step: 1.0 - step / 20, torch.device("cpu"), dtype)


def run(updater: Updater, layers: Layers, steps: int = 5) -> list[torch.Tensor]:
    norms = []
    for step in range(steps):
        updater.begin(StepRNG(0, step))
        updater.backward(layers.loss(step))
        norms.append(updater.apply().grad_norm)
    return norms


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "adafactor"])
def test_a_fused_pass_does_what_a_pass_and_a_step_do(optimizer: str) -> None:
    one, other = Layers(), Layers()
    fused = run(make(one, optimizer=optimizer, fused_backward=True, ema=0.5), one)
    plain = run(make(other, optimizer=optimizer, max_grad_norm=0, ema=0.5), other)
    for name, value in one.values.items():
        assert torch.equal(value, other.values[name]) and not torch.equal(value, Layers().values[name])
    assert torch.allclose(torch.stack(fused), torch.stack(plain))


def gradient_bytes(layers: Layers, **given: Any) -> tuple[int, int]:
    """The most bytes of gradients that lay in memory together, and those of the largest."""
    updater = make(layers, **given)
    held: list[int] = []

    def look(gradient: torch.Tensor) -> None:
        alive = [one.grad.nbytes for one in layers.parameters.values() if one.grad is not None]
        held.append(sum(alive) + gradient.nbytes)

    for parameter in layers.parameters.values():
        parameter.register_hook(look)
    run(updater, layers, 2)
    assert len(held) == 2 * len(layers.parameters)
    return max(held), max(one.nbytes for one in layers.parameters.values())


def test_a_fused_pass_never_holds_two_gradients() -> None:
    held, largest = gradient_bytes(Layers(), fused_backward=True)
    assert held == largest
    held, _ = gradient_bytes(Layers(), max_grad_norm=0)
    assert held == sum(one.nbytes for one in Layers().parameters.values())


def test_bfloat16_weights_hold_half_and_their_optimizer_still_counts_in_float32() -> None:
    layers = Layers(torch.bfloat16)
    updater = make(layers, weights="bf16", fused_backward=True)
    run(updater, layers)
    state = updater.state()
    assert {value.dtype for value in state["parameters"].values()} == {torch.bfloat16}
    moments = {value.dtype for entry in state["optimizer"].values() for value in entry["state"][0].values()}
    assert moments == {torch.float32}


def test_steps_smaller_than_bfloat16_can_show_are_made_on_average() -> None:
    layers = Layers(torch.bfloat16)
    layers.parameters = {"out": nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))}
    updater = make(layers, weights="bf16", optimizer="sgd", weight_decay=0, fused_backward=True)
    for step in range(10):
        updater.begin(StepRNG(0, step))
        updater.backward(layers.parameters["out"].float().sum() / 4)  # the gradient is 1/4 everywhere
        updater.apply()
    speed, exact, nearest = 0.0, 1.0, torch.ones((), dtype=torch.bfloat16)
    for step in range(10):
        speed = 0.9 * speed + 0.25
        exact -= 1e-3 * (1 - step / 20) * speed
        nearest = nearest - 1e-3 * (1 - step / 20) * speed
    assert float(nearest) == 1.0  # rounded to the nearest, no step would ever have been made
    assert float(layers.values["out"].double().mean()) == pytest.approx(exact, abs=2e-4) and exact < 0.995


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    for given in ({"fused_backward": True}, {"weights": "bf16"}):
        layers = Layers(torch.bfloat16 if "weights" in given else torch.float32)
        updater = make(layers, **given)
        before = layers.values
        updater.begin(StepRNG(0, 0))
        updater.backward(layers.loss(0) * float("nan"))
        norm = updater.apply().grad_norm
        assert not bool(torch.isfinite(norm))
        assert all(torch.equal(before[name], value) for name, value in layers.values.items())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"accumulate": 2}, "several batches"),
        ({"max_grad_norm": 1}, "measures all gradients"),
        ({"precision": "fp16"}, "precision=fp16"),
        ({"weights": "int8"}, "weights=int8: unknown"),
        ({"weights": "bf16", "precision": "fp32"}, "does not go with precision=fp32"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], reason: str) -> None:
    check_memory_options(options(fused_backward=True, weights="bf16"))
    with pytest.raises(UsageError, match=reason):
        check_memory_options(options(fused_backward=True, **given))
