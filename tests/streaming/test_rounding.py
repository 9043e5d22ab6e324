from __future__ import annotations

import math

import pytest
import torch

from sdkit.streaming.expression import torch_dtype
from sdkit.streaming.rounding import OverflowToInfinity, Rounding
from sdkit.weights import DTYPES

COARSE = ["F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"]


def store(values: torch.Tensor, dtype: str, seed: int | None = None, name: str = "w", start: int = 0) -> torch.Tensor:
    out = torch.empty(values.shape, dtype=torch_dtype(DTYPES[dtype]))
    Rounding(seed).store(values.clone(), out, DTYPES[dtype], name, start)
    return out


def all_values(dtype: str) -> torch.Tensor:
    """Every finite number of the type, in order, as float64."""
    bits = DTYPES[dtype].bits
    patterns = torch.arange(2**bits).to(torch.uint8 if bits == 8 else torch.int32)
    patterns = patterns if bits == 8 else (patterns - 2**16 * (patterns >= 2**15)).to(torch.int16)
    values = patterns.view(torch_dtype(DTYPES[dtype])).double()
    return values[values.isfinite()].unique()


def between(dtype: str, working: torch.dtype) -> torch.Tensor:
    """Numbers between all neighbours of the type."""
    values = all_values(dtype)
    fraction = torch.rand(len(values) - 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    middle = (values[:-1] + fraction * values.diff()).to(working)
    return middle[(middle.double() >= values[0]) & (middle.double() <= values[-1])]


@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("working", [torch.float32, torch.float64])
def test_the_nearest_number_is_stored(dtype: str, working: torch.dtype) -> None:
    values, exact = between(dtype, working), all_values(dtype)
    above = torch.searchsorted(exact, values.double()).clamp(1, len(exact) - 1)
    distance = torch.minimum(values.double() - exact[above - 1], exact[above] - values.double())
    step = exact[above] - exact[above - 1]
    # float64 reaches the shortest types through float32, which may decide a near tie.
    assert bool(((store(values, dtype).double() - values.double()).abs() <= distance + step * 2**-12).all())


def test_ties_go_to_the_even_number() -> None:
    assert store(torch.tensor([2049.0, 2051.0, -2049.0]), "F16").tolist() == [2048.0, 2052.0, -2048.0]


@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("working", [torch.float32, torch.float64])
def test_chance_chooses_only_between_the_two_neighbours(dtype: str, working: torch.dtype) -> None:
    values, exact = between(dtype, working), all_values(dtype)
    above = torch.searchsorted(exact, values.double())
    below = (above - 1).clamp(min=0)
    seen = torch.zeros(len(values), 2, dtype=torch.bool)
    for seed in range(20):
        out = store(values, dtype, seed).double()
        assert bool(((out == exact[above]) | (out == exact[below])).all())
        seen |= torch.stack([out == exact[below], out == exact[above]], dim=1)
    assert float(seen.all(dim=1).double().mean()) > 0.5, "both neighbours occur"


@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("working", [torch.float32, torch.float64])
def test_chance_never_moves_an_exact_number(dtype: str, working: torch.dtype) -> None:
    exact = all_values(dtype).repeat(1 if DTYPES[dtype].bits == 16 else 64)
    for seed in range(20):
        assert torch.equal(store(exact.to(working), dtype, seed).double(), exact)


@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("where", [0.1, 0.5, 0.97])
def test_chance_is_right_on_average(dtype: str, where: float) -> None:
    exact = all_values(dtype)
    smallest = float(exact[exact > 0][0])
    one = torch.searchsorted(exact, torch.tensor(1.0, dtype=torch.float64))
    for low, high in ((0.0, smallest), (1.0, float(exact[one + 1])), (float(-exact[one + 1]), -1.0)):
        value = low + where * (high - low)
        out = store(torch.full((40_000,), value), dtype, seed=3).double()
        deviation = (high - low) * math.sqrt(where * (1 - where) / 40_000)
        assert abs(float(out.mean()) - value) < 5 * deviation


def test_chance_is_right_on_average_over_seeds() -> None:
    values = torch.tensor([1.0001, -3.3, 2e-8, 0.12345])
    mean = torch.stack([store(values, "F16", seed).double() for seed in range(4000)]).mean(dim=0)
    step = torch.tensor([2.0**-10, 2.0**-9, 2.0**-24, 2.0**-14], dtype=torch.float64)
    assert bool(((mean - values.double()).abs() < step * 5 * 0.5 / 4000**0.5).all())


def test_chance_depends_on_seed_name_and_place_alone() -> None:
    values = torch.full((1000,), 1.0003)
    first = store(values, "F16", seed=1)
    assert torch.equal(first, store(values, "F16", seed=1))
    assert not torch.equal(first, store(values, "F16", seed=2))
    assert not torch.equal(first, store(values, "F16", seed=1, name="other"))
    assert not torch.equal(first, store(values, "F16", seed=1, start=1000))
    torch.manual_seed(1)
    assert torch.equal(first, store(values, "F16", seed=1))


def test_chance_does_not_disturb_the_callers_random_numbers() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    store(torch.full((10,), 1.0003), "F16", seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_chance_leaves_float32_and_integers_alone() -> None:
    values = torch.tensor([1.0000001, 0.1], dtype=torch.float64)
    assert torch.equal(store(values, "F32", seed=1), values.float())
    ids = torch.tensor([1, 2**40])
    assert torch.equal(store(ids, "I64", seed=1), ids)


@pytest.mark.parametrize(
    ("dtype", "fits", "too_large"),
    [
        ("F16", 65519.0, 65520.0),
        ("BF16", 3.3895e38, 3.4e38),
        ("F8_E4M3", 463.0, 465.0),
        ("F8_E5M2", 61439.0, 61440.0),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seed", [None, 1])
def test_numbers_that_do_not_fit_are_an_error_naming_the_tensor(
    dtype: str, fits: float, too_large: float, sign: int, seed: int | None
) -> None:
    largest = torch.finfo(torch_dtype(DTYPES[dtype])).max
    assert abs(float(store(torch.tensor([1.0, sign * fits]), dtype, seed)[1].float())) == largest
    with pytest.raises(OverflowToInfinity, match=f"unet.w: .* does not fit {dtype}") as caught:
        store(torch.tensor([1.0, sign * too_large]), dtype, seed, name="unet.w")
    assert "--dtype" in caught.value.hint


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "F8_E4M3"])
def test_infinities_and_nan_are_errors_naming_the_tensor(dtype: str) -> None:
    with pytest.raises(OverflowToInfinity, match="unet.w: inf does not fit"):
        store(torch.tensor([1.0, float("-inf")], dtype=torch.float64), dtype, name="unet.w")
    with pytest.raises(OverflowToInfinity, match="unet.w: the result is not a number"):
        store(torch.tensor([1.0, float("nan"), float("inf")], dtype=torch.float64), dtype, name="unet.w")


def test_a_float64_that_float32_rounds_up_to_the_limit_is_an_error() -> None:
    with pytest.raises(OverflowToInfinity, match="does not fit F16"):
        store(torch.tensor([65520.0 - 1e-9], dtype=torch.float64), "F16")


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_the_largest_number_fits(dtype: str) -> None:
    largest = torch.finfo(torch_dtype(DTYPES[dtype])).max
    assert store(torch.tensor([largest, -largest], dtype=torch.float64), dtype).tolist() == [largest, -largest]


def test_a_float64_too_large_for_float32_is_an_error() -> None:
    with pytest.raises(OverflowToInfinity, match="does not fit F32"):
        store(torch.tensor([1e39], dtype=torch.float64), "F32")
    assert store(torch.tensor([1e39], dtype=torch.float64), "F64").tolist() == [1e39]


def test_nothing_is_stored_for_no_values() -> None:
    assert store(torch.empty(0), "F16", seed=1).numel() == 0
