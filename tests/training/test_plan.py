"""What the plan's time is made of, with a machine whose speed is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdkit.runtime import cost
from sdkit.runtime.cost import Machine
from sdkit.runtime.losses import PAIRS
from sdkit.training.method import load_method
from sdkit.training.plan import look_at_base, make_plan

SLOW = Machine(operations=1e9, calls=1e12)  # so that arithmetic is all that counts


@pytest.fixture
def seconds(tiny_base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cost, "measured_machine", lambda device, dtype: SLOW)
    base = look_at_base(tiny_base)

    def planned(held_out: int = 0, prompts: int = 0, **given: Any) -> float:
        name, method = load_method("lora")
        method, options = method.resolve(name, {"rank": 2, "resolution": 16, "device": "cpu", **given})
        dataset = method.dataset(pictures, options)
        plan = make_plan(
            name, method, base, dataset, options, tmp_path / "x.safetensors", held_out=held_out, prompts=prompts
        )
        return plan.seconds

    return planned


def test_the_time_is_that_of_steps_encoding_samples_and_validation(seconds: Any, tiny_base: Path) -> None:
    base = look_at_base(tiny_base)
    plain = seconds(steps=10)
    step = (seconds(steps=20) - plain) / 10
    encoding = plain - 10 * step
    assert encoding > 0
    assert seconds(steps=10, flip=True) - 10 * step == pytest.approx(2 * encoding)
    pass_ = step / 2  # a step of a frozen base goes forward, and back for the inputs' gradients
    assert base.resolution == 16
    drawn = seconds(steps=10, prompts=3, sample_every=5, sample_steps=7) - plain
    assert drawn == pytest.approx(3 * 7 * 2 * (2 + 2) * pass_, rel=1e-3)
    validated = seconds(steps=10, held_out=5, validate_every=10) - plain - encoding
    assert validated == pytest.approx(5 * PAIRS * (2 + 1) * pass_, rel=1e-3)
