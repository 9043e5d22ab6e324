from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from tiny import UNET
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sdkit.runtime import cost
from sdkit.runtime.cost import Machine, StepCost, measured_machine, step_cost
from sdkit.runtime.load import build_component, load_backbone


def test_a_step_s_time_is_its_arithmetic_and_its_calls() -> None:
    machine = Machine(operations=100.0, calls=10.0)
    one = StepCost(operations=200, activation_bytes=0, weights=0, calls=20)
    assert one.seconds(machine, batch=1, frozen=True, checkpointing=False) == 2 * (2 + 2)
    assert one.seconds(machine, batch=3, frozen=True, checkpointing=False) == 2 * (6 + 2)
    assert one.seconds(machine, batch=1, frozen=False, checkpointing=True) == 4 * (2 + 2)
    assert one.seconds(machine, batch=1, frozen=True, checkpointing=False, layers=5) == 2 * (2 + 4)
    assert one.forward_seconds(machine) == 2 + 2


def test_operations_and_calls_are_counted_on_shapes() -> None:
    layer = nn.Conv2d(4, 8, 3, padding=1).to("meta")
    picture = torch.empty(1, 4, 5, 6, device="meta")
    counted = cost._measure(layer, lambda: layer(picture).view(-1))
    assert counted.operations == 2 * 4 * 8 * 9 * 5 * 6
    assert (counted.calls, counted.weights) == (1, 4 * 8 * 9 + 8)
    assert counted.activation_bytes == picture.nbytes or counted.activation_bytes == 0


def test_the_estimate_is_of_the_right_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """In processor time, which other work on the machine does not change."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    config = {**UNET, "block_out_channels": [64, 128], "attention_head_dim": 4}
    measured_machine.cache_clear()  # what other tests measured was measured on the clock
    machine = measured_machine(torch.device("cpu"), torch.float32)
    measured_machine.cache_clear()
    planned = step_cost(config, (4, 16, 16), 12).seconds(machine, batch=2, frozen=True, checkpointing=False)
    unet = build_component("unet", config, empty=False).requires_grad_(False)
    latents = torch.randn(2, 4, 16, 16, requires_grad=True)
    text = torch.randn(2, 12, 24, requires_grad=True)
    taken = []
    for _ in range(6):
        began = time.process_time()
        unet(latents, torch.ones(2), text).sample.sum().backward()
        taken.append(time.process_time() - began)
    assert 1 / 3 < planned / sorted(taken)[3] < 3


def test_the_cost_on_shapes_is_the_cost_of_a_real_pass(tiny_base: Path) -> None:
    backbone = load_backbone(tiny_base)
    with FlopCounterMode(display=False) as counter:
        cond = torch.zeros(1, 12, 24, requires_grad=True)
        backbone.unet(torch.zeros(1, 4, 8, 8), torch.zeros(1), cond)
    cost = step_cost(UNET, (4, 8, 8), 12)
    # The counter does not know the CPU's own attention kernel, so it misses a little of the real pass.
    assert 0.9 * cost.operations < counter.get_total_flops() <= cost.operations
    assert cost.weights == sum(parameter.numel() for parameter in backbone.unet.parameters())
    double = step_cost(UNET, (4, 16, 8), 12)
    assert 1.9 < double.activation_bytes / cost.activation_bytes < 2.6
