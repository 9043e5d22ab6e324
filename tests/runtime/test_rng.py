from __future__ import annotations

import torch

from sdkit.runtime.rng import StepRNG


def test_a_draw_depends_on_seed_step_attempt_sample_and_purpose_and_on_nothing_else() -> None:
    def draw(rng: StepRNG, purpose: str = "noise", sample: str = "a") -> torch.Tensor:
        return rng.normal((5,), purpose, sample)

    first = draw(StepRNG(1, 2))
    torch.manual_seed(7)
    draw(StepRNG(1, 3))
    assert torch.equal(draw(StepRNG(1).at(2)), first)
    others = [
        draw(StepRNG(2, 2)),
        draw(StepRNG(1, 1)),
        draw(StepRNG(1, 2, 1)),
        draw(StepRNG(1, 2), "other"),
        draw(StepRNG(1, 2), sample="b"),
    ]
    assert not any(torch.equal(other, first) for other in others)


def test_names_that_run_together_are_kept_apart() -> None:
    assert StepRNG(1, 11).integer(1 << 60, "x") != StepRNG(11, 1).integer(1 << 60, "x")
    assert StepRNG(0).integer(1 << 60, "b", "a") != StepRNG(0).integer(1 << 60, "ab", "")


def test_the_draws_are_what_they_are_called() -> None:
    rng = StepRNG(0)
    normal = torch.cat([rng.at(step).normal((100,), "n") for step in range(200)])
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    uniform = torch.cat([rng.at(step).uniform((100,), "u") for step in range(200)])
    assert 0 <= uniform.min() and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
    integers = torch.tensor([rng.at(step).integer(10, "i") for step in range(5000)])
    assert torch.bincount(integers, minlength=10).min() > 400
    assert sorted(rng.permutation(9, "p")) == list(range(9))
    share = sum(rng.at(step).chance(0.2, "c") for step in range(5000)) / 5000
    assert 0.17 < share < 0.23
    assert not rng.chance(0.0, "c")


def test_a_run_s_draws_never_change() -> None:
    assert StepRNG(1, 2).integer(1000, "timestep", "a") == 396
