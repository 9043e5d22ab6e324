"""What the engine streams in tiles is what the method says about whole tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdkit.merging.blended import Blended, Combination, blended
from sdkit.merging.form import symbols
from sdkit.merging.method import Method, load_method, methods
from sdkit.merging.where import BLOCK, Where
from sdkit.streaming import Output, OutputFile, Read, Stream, expression
from sdkit.weights import DTYPES, open_weights

SHAPES = [(300,), (40, 30), (7, 5, 3, 3)]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expression, "TILE_ELEMENTS", 64)


def models(method: Method) -> int:
    return 3 if method.variadic else len(method.models)


def stream(tmp_path: Path, method: Method, tensors: list[torch.Tensor], threads: int) -> torch.Tensor:
    """The method through the engine; the last tensor is the base where it needs one."""
    save_file({str(index): tensor for index, tensor in enumerate(tensors)}, tmp_path / "in.safetensors")
    with open_weights(tmp_path / "in.safetensors") as weights:
        reads = [Read(weights, weights.tensors[str(index)]) for index in range(len(tensors))]
        base = reads.pop() if method.needs_base else None
        values = method.check_values({})
        result = blended(method, reads, base, values, name="w", seed=5)
        file = OutputFile(tmp_path / "out.safetensors", (Output("w", DTYPES["F32"], result),), {})
        with Stream([file], overwrite=True, threads=threads) as running:
            running.run()
            running.commit()
    return load_file(tmp_path / "out.safetensors")["w"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [name for name in sorted(methods()) if not load_method(name).sees_wholes])
def test_tiles_give_what_whole_tensors_give(
    name: str, shape: tuple[int, ...], tmp_path: Path, small_tiles: None
) -> None:
    method = load_method(name)
    generator = torch.Generator().manual_seed(1)
    count = models(method)
    tensors = [torch.randn(shape, generator=generator) for _ in range(count + method.needs_base)]
    wide = [tensor.double() for tensor in tensors]
    where = Where(5, "w", shape)
    if method.needs_base:
        expected = method(*(model - wide[-1] for model in wide[:-1]), where=where) + wide[-1]
    else:
        expected = method(*wide, where=where)
    torch.testing.assert_close(stream(tmp_path, method, tensors, 1), expected.float(), rtol=1e-6, atol=1e-6)


def test_a_draw_does_not_depend_on_how_the_tensor_is_cut() -> None:
    shape = (3 * BLOCK,)
    whole = Where(1, "w", shape).uniform(0, torch.empty(shape))
    cuts = [0, 100, BLOCK - 1, BLOCK, 2 * BLOCK + 7, 3 * BLOCK]
    pieces = [
        Where(1, "w", shape, start).uniform(0, torch.empty(stop - start))
        for start, stop in zip(cuts, cuts[1:], strict=False)
    ]
    assert torch.equal(torch.cat(pieces), whole)


def reads(tmp_path: Path, count: int) -> list[Read]:
    save_file({str(index): torch.full((4,), float(index)) for index in range(count)}, tmp_path / "in.safetensors")
    weights = open_weights(tmp_path / "in.safetensors")
    return [Read(weights, weights.tensors[str(index)]) for index in range(count)]


def test_a_sum_that_is_one_model_is_that_model(tmp_path: Path) -> None:
    a, b, c = reads(tmp_path, 3)
    assert blended(load_method("weighted-sum"), [a, b], None, {"alpha": 0.0}) is a
    assert blended(load_method("weighted-sum"), [a, b], None, {"alpha": 1.0}) is b
    assert blended(load_method("add-difference"), [a, b, c], None, {"alpha": 0.0}) is a
    values = load_method("task-arithmetic").check_values({"alpha": 0.0})
    assert blended(load_method("task-arithmetic"), [a, b], c, values) is c


def test_a_model_that_counts_for_nothing_is_not_read(tmp_path: Path) -> None:
    a, b, c = reads(tmp_path, 3)
    result = blended(load_method("triple-sum"), [a, b, c], None, {"alpha": 0.0, "beta": 0.25})
    assert result == Combination((0.75, 0.25), (a, c))


def test_a_base_turns_an_average_into_one_of_differences(tmp_path: Path) -> None:
    a, b, base = reads(tmp_path, 3)
    result = blended(load_method("weighted-sum"), [a, b], base, {"alpha": 0.25})
    assert result == Combination((0.75, 0.25), (a, b))  # the base cancels
    assert isinstance(blended(load_method("slerp"), [a, b], base, load_method("slerp").check_values({})), Blended)


def test_forms_are_what_they_stand_for() -> None:
    a, b, c = symbols(3)
    assert (a + 2 * (b - c) / 4).coefficients == (1.0, 0.5, -0.5)
    assert sum([a, b, -c]).coefficients == (1.0, 1.0, -1.0)
