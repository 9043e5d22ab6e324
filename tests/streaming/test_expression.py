from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_files import LowRank, evaluate, opened, read

from sdkit.core.errors import SdkitError
from sdkit.streaming import AddDelta, Addend, Cat, Map, Read, Reduce, Reshape, Slice, Transpose
from sdkit.streaming import expression as expression_module
from sdkit.streaming.expression import Context, Expression, common_unit, spans, torch_dtype, widen
from sdkit.streaming.scratch import Scratch
from sdkit.weights import DTYPES

A = torch.arange(16, dtype=torch.float32).reshape(4, 4)
B = torch.tensor([[1, 0, 2, 0], [0, 3, 0, 4], [5, 0, 6, 0], [0, 7, 0, 8]], dtype=torch.float16)


@pytest.fixture(params=[1, 4, 5, 6, 8, 100])
def reads(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Read, Read]]:
    """Two 4×4 tensors, read in tiles of about so many elements."""
    monkeypatch.setattr(expression_module, "TILE_ELEMENTS", request.param)
    with opened(tmp_path / "in.safetensors", {"a": A, "b": B}) as weights:
        yield read(weights, "a"), read(weights, "b")


Reads = tuple[Read, Read]


def test_read(reads: Reads) -> None:
    assert torch.equal(evaluate(reads[0]), A)
    assert torch.equal(evaluate(reads[1]), B.float())
    assert torch.equal(reads[1].load(), B)


def test_slice(reads: Reads) -> None:
    expression = Slice(reads[0], 1, 3)
    assert expression.shape == (2, 4)
    assert torch.equal(evaluate(expression), A[1:3])


def test_cat(reads: Reads) -> None:
    expression = Cat(reads)
    assert expression.shape == (8, 4)
    assert torch.equal(evaluate(expression), torch.cat([A, B.float()]))


def test_transpose(reads: Reads) -> None:
    assert torch.equal(evaluate(Transpose(reads[0])), A.T)
    assert torch.equal(evaluate(Transpose(Slice(reads[0], 0, 3))), A[:3].T)


def test_reshape(reads: Reads) -> None:
    assert torch.equal(evaluate(Reshape(reads[0], (2, 8, 1))), A.reshape(2, 8, 1))


def test_map(reads: Reads) -> None:
    assert torch.equal(evaluate(Map(lambda a, b: a.mul_(2).add_(b), reads)), 2 * A + B)


def test_map_of_rows(reads: Reads) -> None:
    expression = Map(lambda rows: rows - rows.amax(dim=1, keepdim=True), (reads[0],), width=4)
    assert torch.equal(evaluate(expression), A - A.amax(dim=1, keepdim=True))


def test_map_of_the_whole(reads: Reads) -> None:
    expression = Map(lambda whole: whole.view(4, 4).flip(0).view(1, 16), (reads[0],), width=16)
    assert torch.equal(evaluate(expression), A.flip(0))


def test_a_reduction_runs_before_the_map(reads: Reads) -> None:
    total = Reduce(reads, lambda: 0.0, lambda sum_, a, b: sum_ + float((a * b).sum()), lambda sum_: sum_)
    expression = Map(lambda a, dot: a + dot, (reads[0],), passes=(total,))
    assert torch.equal(evaluate(expression), A + (A * B).sum())


def test_a_reduction_of_rows(reads: Reads) -> None:
    top = Reduce((reads[0],), lambda: (), lambda rows, a: (*rows, *a.amax(dim=1).tolist()), lambda rows: rows, width=4)
    assert top.evaluate(Context(Scratch(), torch.float32, DTYPES["F32"])) == (3.0, 7.0, 11.0, 15.0)


def test_reduction_and_map_do_not_share_memory_by_mistake(reads: Reads) -> None:
    """Both evaluate the same expression, which keeps blocks of scratch memory of its own."""
    fused = Cat((Transpose(reads[0]), Transpose(reads[1])))
    total = Reduce((fused,), lambda: 0.0, lambda sum_, tile: sum_ + float(tile.sum()), lambda sum_: sum_)
    expression = Map(lambda a, sum_: a - sum_, (fused,), passes=(total,))
    whole = torch.cat([A.T, B.T.float()])
    assert torch.equal(evaluate(expression), whole - whole.sum())


def test_add_delta(reads: Reads) -> None:
    up, down = torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.5, 0.0, 0.0]])
    expression = AddDelta(reads[0], (Addend(LowRank(up, down), first_row=1),))
    expected = A.clone()
    expected[1:3] += up @ down
    assert torch.equal(evaluate(expression), expected.double())


def test_add_delta_of_the_leftmost_columns(reads: Reads) -> None:
    change = LowRank(torch.ones(4, 1), torch.tensor([[10.0, 20.0]]))
    expected = A.clone()
    expected[:, :2] += torch.tensor([10.0, 20.0])
    assert torch.equal(evaluate(AddDelta(reads[0], (Addend(change, columns=2),))).float(), expected)


def test_a_slice_that_cuts_through_units_takes_the_whole_source(reads: Reads) -> None:
    """A unit of two rows and a slice of two rows that begins at the second: as large as a unit, but no unit."""
    pairs = Map(lambda rows: rows.cumsum(dim=1), (reads[0],), width=8)
    whole = A.reshape(2, 8).cumsum(dim=1).reshape(4, 4)
    assert torch.equal(evaluate(Slice(pairs, 1, 3)), whole[1:3])
    assert torch.equal(evaluate(Slice(pairs, 2, 4)), whole[2:4])


def test_float64_is_widened_exactly(reads: Reads) -> None:
    assert torch.equal(evaluate(reads[1], dtype=torch.float64), B.double())
    assert evaluate(reads[0], dtype=torch.float64).dtype == torch.float64


def test_integers_stay_integers(tmp_path: Path) -> None:
    ids = torch.tensor([2**53 + 1, -(2**62) + 1])
    with opened(tmp_path / "ids.safetensors", {"ids": ids}) as weights:
        assert torch.equal(evaluate(read(weights, "ids")), ids)


def test_types_torch_cannot_compute_with_are_refused() -> None:
    for name in ("F4", "F6_E2M3"):
        with pytest.raises(SdkitError, match=f"cannot compute with {name}"):
            torch_dtype(DTYPES[name])
    assert torch_dtype(DTYPES["BF16"]) is torch.bfloat16


# Any expression, at any tile size, equals the same work on whole tensors. The numbers are small integers, so that
# every order of every sum is exact.

Pair = tuple[Expression, torch.Tensor]


@st.composite
def changes(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Addend, torch.Tensor]:
    first = draw(st.integers(0, shape[0]))
    rows, columns = draw(st.integers(0, shape[0] - first)), draw(st.integers(0, shape[1]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    up = torch.randint(-2, 3, (rows, 2), generator=generator).float()
    down = torch.randint(-2, 3, (2, columns), generator=generator).float()
    full = torch.zeros(shape)
    full[first : first + rows, :columns] = up @ down
    return Addend(LowRank(up, down), first, columns), full


def sums(inputs: tuple[Expression, ...], width: int) -> Reduce:
    return Reduce(inputs, lambda: 0.0, lambda total, *tiles: total + float(sum(t.sum() for t in tiles)), abs, width)


@st.composite
def derived(draw: st.DrawFn, source: Pair) -> Pair:
    expression, value = source
    rows, columns = value.shape
    match draw(st.sampled_from(["slice", "cat", "transpose", "reshape", "map", "rows", "sum", "add"])):
        case "slice":
            start = draw(st.integers(0, rows))
            stop = draw(st.integers(start, rows))
            return Slice(expression, start, stop), value[start:stop]
        case "cat":
            return Cat((expression, expression)), torch.cat([value, value])
        case "transpose":
            return Transpose(expression), value.T
        case "reshape":
            return Reshape(expression, (columns, rows)), value.reshape(columns, rows)
        case "map":
            return Map(lambda a, b: a - 3 * b, (expression, expression)), -2 * value
        case "rows":
            width = max(1, columns)
            return Map(
                lambda v: v - v.view(-1, width)[:, :1].expand(-1, width).reshape(v.shape), (expression,), width
            ), (value - value[:, :1])
        case "sum":
            total = sums((expression,), draw(st.sampled_from([1, max(1, columns)])))
            result = value + float(value.sum().abs()) % 5
            return Map(lambda v, total: v + total % 5, (expression,), passes=(total,)), result
        case _:
            addend, full = draw(changes((rows, columns)))
            return AddDelta(expression, (addend,)), value + full


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(0, 6), st.integers(0, 6), st.integers(1, 40), st.integers(0, 5))
def test_tiles_never_change_the_result(data: st.DataObject, rows: int, columns: int, tile: int, depth: int) -> None:
    tensor = torch.randint(-4, 5, (rows, columns), generator=torch.Generator().manual_seed(rows * 7 + columns)).half()
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "in.safetensors", {"a": tensor}) as weights:
        pair: Pair = (read(weights, "a"), tensor.float())
        for _ in range(depth):
            pair = data.draw(derived(pair))
        with mock.patch.object(expression_module, "TILE_ELEMENTS", tile):
            assert torch.equal(evaluate(pair[0]).float(), pair[1])


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 60))
def test_spans_cover_everything_at_multiples_of_the_unit(count: int, unit: int, tile: int) -> None:
    with mock.patch.object(expression_module, "TILE_ELEMENTS", tile):
        cut = spans(count, unit)
    assert [index for start, stop in cut for index in range(start, stop)] == list(range(count))
    assert all(start % unit == 0 for start, _ in cut)
    assert all(stop - start <= max(tile, unit) for start, stop in cut)


def test_units_combine_to_their_least_common_multiple() -> None:
    assert common_unit([]) == 1
    assert common_unit([4, 6, 0]) == 12


def test_scratch_memory_is_used_again() -> None:
    scratch = Scratch()
    first = scratch.take(1000, torch.float32)
    mark = scratch.mark()
    second = scratch.take(10, torch.float16)
    assert first.tensor.data_ptr() != second.tensor.data_ptr()
    assert (len(first.memory), len(second.memory)) == (4000, 20)
    scratch.release(mark)
    assert scratch.take(9, torch.float16).tensor.data_ptr() == second.tensor.data_ptr()
    grown = scratch.take(0, torch.float32)
    assert (grown.tensor.numel(), len(grown.memory)) == (0, 0)
    second.tensor.fill_(1.5)
    assert bytes(second.memory[:2]) == b"\x00\x3e"


def test_widening_keeps_a_tensor_that_needs_none() -> None:
    context = Context(Scratch(), torch.float32, DTYPES["F32"])
    values = torch.ones(3)
    assert widen(values, context) is values
    assert widen(values.bfloat16(), context).dtype == torch.float32
    assert math.isclose(float(widen(torch.tensor([0.1], dtype=torch.float64), context)), float(torch.tensor(0.1)))
