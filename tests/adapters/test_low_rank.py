from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdkit.adapters.deltas.low_rank import LowRank, PreparedLowRank, stack
from sdkit.core.errors import SdkitError

UP = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, -1.0], [0.5, 3.0]])
DOWN = torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.0, 1.0, 4.0, 2.0]])
# UP @ DOWN by hand
PRODUCT = torch.tensor(
    [[1.0, 2.0, 0.0, -1.0], [2.0, 5.0, 4.0, 0.0], [0.0, -1.0, -4.0, -2.0], [0.5, 4.0, 12.0, 5.5]], dtype=torch.float64
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_by_hand(reads, dense):
    file = reads(up=UP, down=DOWN)
    delta = LowRank(file["up"], file["down"], scale=0.5)
    assert (delta.kind, delta.shape, delta.rank) == ("lora", (4, 4), 2)
    assert torch.equal(dense(delta), 0.5 * PRODUCT)
    assert torch.equal(dense(delta, strength=-4.0), -2.0 * PRODUCT)
    assert torch.equal(dense(delta, transpose=True), 0.5 * PRODUCT.T)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn])
def test_stored_types(reads, dense, stored):
    file = reads(up=UP.to(stored), down=DOWN.to(stored))
    assert torch.equal(dense(LowRank(file["up"], file["down"], 1.0)), PRODUCT)


def test_tiles_add_to_what_is_there(reads):
    file = reads(up=UP, down=DOWN)
    prepared = LowRank(file["up"], file["down"], 1.0).prepare(1.0, torch.float32)
    out = torch.ones(2, 4)
    prepared.add_rows(out, 1)
    assert torch.equal(out, 1 + PRODUCT[1:3].float())


def test_convolution_equals_the_two_convolutions(reads, dense):
    up, down = normal(5, 2, 1, 1), normal(2, 3, 3, 3, seed=1)
    file = reads(up=up, down=down)
    delta = LowRank(file["up"], file["down"], 1.0)
    assert (delta.kind, delta.shape) == ("locon", (5, 3, 3, 3))
    picture = normal(1, 3, 6, 6, seed=2)
    both = torch.conv2d(torch.conv2d(picture, down), up)
    one = torch.conv2d(picture, dense(delta).reshape(5, 3, 3, 3))
    assert torch.allclose(one, both, atol=1e-12)


def test_tucker_equals_the_three_convolutions(reads, dense):
    up, mid, down = normal(5, 2, 1, 1), normal(2, 4, 3, 3, seed=1), normal(4, 3, 1, 1, seed=2)
    file = reads(up=up, mid=mid, down=down)
    delta = LowRank(file["up"], file["down"], 2.0, file["mid"])
    assert (delta.kind, delta.shape, delta.rank) == ("tucker", (5, 3, 3, 3), 2)
    picture = normal(1, 3, 6, 6, seed=3)
    three = 2.0 * torch.conv2d(torch.conv2d(torch.conv2d(picture, down), mid), up)
    assert torch.allclose(torch.conv2d(picture, dense(delta).reshape(5, 3, 3, 3)), three, atol=1e-12)


def test_stack_is_the_sum(reads, dense):
    file = reads(up=UP, down=DOWN, up2=normal(4, 3).float(), down2=normal(3, 4, seed=1).float())
    first, second = LowRank(file["up"], file["down"], 0.5), LowRank(file["up2"], file["down2"], 2.0)
    stacked = stack([first.prepare(0.7, torch.float64), second.prepare(-1.0, torch.float64)])
    assert stacked.up.shape == (4, 5) and stacked.down.shape == (5, 4)
    out = torch.zeros(4, 4, dtype=torch.float64)
    stacked.add_rows(out, 0)
    assert torch.allclose(out, dense(first, 0.7) + dense(second, -1.0), atol=1e-12)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(out=st.integers(1, 9), rank=st.integers(1, 4), columns=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_magnitude_bounds_every_element_and_the_rounding(out, rank, columns, seed):
    up, down = normal(out, rank, seed=seed), normal(rank, columns, seed=seed + 1)
    delta = PreparedLowRank(up, down)
    exact = up @ down
    assert exact.abs().max() <= delta.magnitude() * (1 + 1e-12)
    single = PreparedLowRank(up.float(), down.float())
    result = torch.zeros(out, columns)
    single.add_rows(result, 0)
    unit = 2.0**-24
    # Rounding the two factors costs 2u more than the product itself.
    assert (result.double() - exact).abs().max() <= (rank + 3) * unit * delta.magnitude() * 1.01


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["up", "down"])
def test_nan_names_tensor_and_file(reads, bad, name):
    tensors = {"up": UP.clone(), "down": DOWN.clone()}
    tensors[name][1, 1] = bad
    file = reads(**tensors)
    with pytest.raises(SdkitError, match=f"factors0.safetensors: {name}: holds NaN"):
        LowRank(file["up"], file["down"], 1.0).prepare(1.0, torch.float32)


@pytest.mark.parametrize(
    ("up", "down", "mid", "reason"),
    [
        (torch.ones(4, 2), torch.ones(3, 4), None, "up has rank 2, down has rank 3"),
        (torch.ones(4), torch.ones(3, 4), None, "no pair"),
        (torch.ones(4, 2, 3, 3), torch.ones(2, 4, 3, 3), None, "no pair"),
        (torch.ones(4, 2, 1, 1), torch.ones(2, 4, 1, 1), torch.ones(3, 2, 3, 3), "does not fit"),
        (torch.ones(4, 2, dtype=torch.int32), torch.ones(2, 4), None, "cannot be stored as I32"),
        (torch.ones(4, 0), torch.ones(0, 4), None, "empty"),
    ],
)
def test_factors_that_do_not_fit_are_refused(reads, up, down, mid, reason):
    file = reads(up=up, down=down, **({} if mid is None else {"mid": mid}))
    with pytest.raises(SdkitError, match=reason):
        LowRank(file["up"], file["down"], 1.0, file.get("mid"))


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_scale_that_is_no_number_is_refused(reads, scale):
    file = reads(up=UP, down=DOWN)
    with pytest.raises(SdkitError, match="scale"):
        LowRank(file["up"], file["down"], scale)
