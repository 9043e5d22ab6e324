from __future__ import annotations

import torch

from sdkit.runtime.losses import fall_interval


def test_the_interval_is_the_normal_one_where_that_is_right() -> None:
    falls = 0.02 + 0.1 * torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    hard = 5 * torch.rand(500, 8, generator=torch.Generator().manual_seed(1))  # cancels out: the pairs are the same
    low, high = fall_interval(hard + falls, hard)
    error = 1.96 * float(falls.std()) / 4000**0.5
    assert abs(low - (float(falls.mean()) - error)) < 0.1 * error
    assert abs(high - (float(falls.mean()) + error)) < 0.1 * error


def test_the_interval_is_a_function_of_the_losses_and_leaves_torch_s_generator_alone() -> None:
    before, after = torch.rand(2, 3, 4)
    state = torch.get_rng_state()
    assert fall_interval(before, after) == fall_interval(before, after)
    assert torch.equal(torch.get_rng_state(), state)
    assert fall_interval(before, before) == (0.0, 0.0)
    assert fall_interval(before[:1, :1] + 1, before[:1, :1])[0] == fall_interval(before[:1, :1] + 1, before[:1, :1])[1]
