from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensor_files import LowRank, opened, read, write

from sdkit.streaming import AddDelta, Addend, Slice
from sdkit.streaming.add_delta import ERROR_BUDGET, FLOAT32_PRODUCT_ERROR, SMALLEST_STEP
from sdkit.streaming.expression import torch_dtype
from sdkit.weights import DTYPES

TYPES = ["F16", "BF16", "F32", "F8_E4M3", "F8_E5M2"]


def ulp(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """The distance between neighbours of the type around each float64 value."""
    info = torch.finfo(torch_dtype(DTYPES[dtype]))
    _, exponent = torch.frexp(values)
    power = torch.pow(torch.tensor(2.0, dtype=torch.float64), exponent.double() - 1)
    return (power * info.eps).clamp(min=info.smallest_normal * info.eps)


def low_rank(rows: int, columns: int, rank: int, size: float, seed: int) -> LowRank:
    """Factors as a trained adapter's: shorter floats times a strength, with entries of the product around `size`."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(rows, rank, generator=generator).half().double() * size / rank**0.5
    return LowRank(up, torch.randn(rank, columns, generator=generator).half().double())


def adversarial_base(change: LowRank, dtype: str, seed: int) -> torch.Tensor:
    """Weights that the change cancels to nearly nothing, or that are far larger or smaller than it, or zero."""
    generator = torch.Generator().manual_seed(seed)
    delta = change.exact()
    kind = torch.randint(0, 5, delta.shape, generator=generator)
    factor = torch.tensor([-1.0, 0.0, 100.0, 1e-3, -0.99])[kind].double()
    noise = torch.where(kind == 2, torch.randn(delta.shape, generator=generator).double() * delta.abs().mean(), 0.0)
    limit = torch.finfo(torch_dtype(DTYPES[dtype])).max / 4
    return (delta * factor + noise).clamp(-limit, limit).to(torch_dtype(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rank", [1, 4, 32, 128])
@pytest.mark.parametrize("size", [1e-4, 3e-3, 0.1, 3.0])
def test_results_lie_within_half_a_unit_of_the_exact_value(tmp_path: Path, dtype: str, rank: int, size: float) -> None:
    change = low_rank(64, 512, rank, size, seed=rank)
    base = adversarial_base(change, dtype, seed=1)
    with opened(tmp_path / "in.safetensors", {"w": base}) as weights:
        out = write(tmp_path / "out.safetensors", {"w": (dtype, AddDelta(read(weights, "w"), (Addend(change),)))})["w"]
    exact = base.double() + change.exact()
    assert out.dtype == base.dtype
    # Where a change cancels a float32 weight, the reference's own rounding can be seen.
    doubt = 2**-50 * (change.up.abs() @ change.down.abs()) if dtype == "F32" else 0.0
    assert bool(((out.double() - exact).abs() <= 0.51 * ulp(exact, dtype) + doubt).all())


def test_two_changes_are_one_sum_with_one_rounding(tmp_path: Path) -> None:
    one, two = low_rank(64, 256, 8, 0.3, seed=1), low_rank(64, 256, 8, 0.3, seed=2)
    base = (-one.exact() - two.exact()).half()
    with opened(tmp_path / "in.safetensors", {"w": base}) as weights:
        expression = AddDelta(read(weights, "w"), (Addend(one), Addend(two)))
        out = write(tmp_path / "out.safetensors", {"w": ("F16", expression)})["w"]
    exact = base.double() + one.exact() + two.exact()
    assert float(((out.double() - exact).abs() / ulp(exact, "F16")).max()) <= 0.51


def chosen(tmp_path: Path, dtype: str, magnitude: float) -> torch.dtype:
    change = LowRank(torch.tensor([[magnitude]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    with opened(tmp_path / "in.safetensors", {"w": torch.zeros(1, 1, dtype=torch_dtype(DTYPES[dtype]))}) as weights:
        write(tmp_path / f"{magnitude}.safetensors", {"w": (dtype, AddDelta(read(weights, "w"), (Addend(change),)))})
    return change.asked[-1]


@pytest.mark.parametrize("dtype", ["F16", "F8_E4M3", "F8_E5M2"])
def test_float32_is_chosen_exactly_up_to_the_budget(tmp_path: Path, dtype: str) -> None:
    largest = ERROR_BUDGET * SMALLEST_STEP[dtype] / FLOAT32_PRODUCT_ERROR
    assert chosen(tmp_path, dtype, largest * 0.999) is torch.float32
    assert chosen(tmp_path, dtype, largest * 1.001) is torch.float64


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
def test_types_that_reach_near_zero_always_take_float64(tmp_path: Path, dtype: str) -> None:
    assert chosen(tmp_path, dtype, 1e-10) is torch.float64


def test_the_smallest_steps_are_those_of_the_types() -> None:
    for dtype, step in SMALLEST_STEP.items():
        info = torch.finfo(torch_dtype(DTYPES[dtype]))
        assert step == info.smallest_normal * info.eps


def test_float32_would_miss_the_promise_where_float64_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the choice, and the tests above, would prove nothing."""
    monkeypatch.setattr("sdkit.streaming.add_delta._exact_enough", lambda *_: True)
    change = low_rank(64, 512, 32, 3.0, seed=32)
    base = adversarial_base(change, "F16", seed=1)
    with opened(tmp_path / "in.safetensors", {"w": base}) as weights:
        out = write(tmp_path / "out.safetensors", {"w": ("F16", AddDelta(read(weights, "w"), (Addend(change),)))})["w"]
    exact = base.double() + change.exact()
    assert float(((out.double() - exact).abs() / ulp(exact, "F16")).max()) > 0.51


def test_changes_of_changes_may_need_different_arithmetic(tmp_path: Path) -> None:
    large, small = low_rank(8, 8, 2, 3.0, seed=1), low_rank(8, 8, 2, 1e-5, seed=2)
    base = torch.zeros(8, 8, dtype=torch.float16)
    with opened(tmp_path / "in.safetensors", {"w": base}) as weights:
        inner = AddDelta(read(weights, "w"), (Addend(large),))
        out = write(tmp_path / "out.safetensors", {"w": ("F16", AddDelta(inner, (Addend(small),)))})["w"]
    torch.testing.assert_close(out.double(), large.exact() + small.exact(), rtol=2**-11, atol=2**-24)


def test_part_of_a_changed_tensor_is_the_changed_part(tmp_path: Path) -> None:
    change = low_rank(8, 16, 2, 1.0, seed=1)
    with opened(tmp_path / "in.safetensors", {"w": torch.ones(8, 16)}) as weights:
        whole = AddDelta(read(weights, "w"), (Addend(change),))
        out = write(tmp_path / "out.safetensors", {"w": ("F32", whole), "part": ("F32", Slice(whole, 3, 6))})
    assert torch.equal(out["part"], out["w"][3:6])


def test_a_vector_is_a_matrix_of_one_column(tmp_path: Path) -> None:
    change = LowRank(torch.arange(4.0).reshape(4, 1), torch.ones(1, 1))
    with opened(tmp_path / "in.safetensors", {"b": torch.ones(4)}) as weights:
        out = write(tmp_path / "out.safetensors", {"b": ("F32", AddDelta(read(weights, "b"), (Addend(change),)))})
    assert out["b"].tolist() == [1.0, 2.0, 3.0, 4.0]
