from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensor_files import opened, read

from sdkit.streaming import Cat, Output, OutputFile, Reshape
from sdkit.streaming.expression import rows_of
from sdkit.streaming.plan import CopyRun, copy_runs
from sdkit.weights import DTYPES, Weights


@pytest.fixture
def weights(tmp_path: Path) -> Iterator[Weights]:
    """Four tensors of 40 bytes, one after the other, with an empty one between."""
    tensors = {name: torch.full((10,), float(index)) for index, name in enumerate("abcd")}
    with opened(tmp_path / "in.safetensors", {**tensors, "empty": torch.empty(0)}) as weights:
        assert list(weights.tensors)[:3] == ["a", "b", "c"]
        yield weights


def runs(weights: Weights, names: str, piece: int = 1000, changed: str = "") -> list[tuple[int, int, int]]:
    """(source, target, length) relative to the first tensor, when these tensors are written from byte 0 on."""
    outputs = tuple(
        Output(name, DTYPES["F16" if name in changed else "F32"], read(weights, "empty" if name == "0" else name))
        for name in names
    )
    offsets, position = {}, 0
    for output in outputs:
        offsets[output.name] = position
        position += output.nbytes
    start = weights.tensors["a"].offset
    file = OutputFile(Path("out"), outputs, {})
    return [(run.source - start, run.target, run.length) for run in copy_runs(file, offsets, piece)]


def test_neighbours_are_one_run(weights: Weights) -> None:
    assert runs(weights, "abcd") == [(0, 0, 160)]
    assert runs(weights, "a0bcd") == [(0, 0, 160)]


def test_other_neighbours_are_runs_of_their_own(weights: Weights) -> None:
    assert runs(weights, "acd") == [(0, 0, 40), (80, 40, 80)]
    assert runs(weights, "ba") == [(40, 0, 40), (0, 40, 40)]


def test_a_changed_tensor_divides_a_run(weights: Weights) -> None:
    assert runs(weights, "abcd", changed="b") == [(0, 0, 40), (80, 60, 80)]


def test_runs_are_cut_into_pieces(weights: Weights) -> None:
    assert runs(weights, "abcd", piece=70) == [(0, 0, 70), (70, 70, 70), (140, 140, 20)]


def test_nothing_to_copy_gives_no_run(weights: Weights) -> None:
    assert runs(weights, "") == []
    assert runs(weights, "0") == []
    assert runs(weights, "a", changed="a") == []


def test_tensors_of_different_files_are_never_joined(weights: Weights, tmp_path: Path) -> None:
    with opened(tmp_path / "other.safetensors", {"b": torch.ones(10)}) as other:
        outputs = (Output("a", DTYPES["F32"], read(weights, "a")), Output("b", DTYPES["F32"], read(other, "b")))
        found = list(copy_runs(OutputFile(Path("out"), outputs, {}), {"a": 0, "b": 40}, 1000))
        assert found == [
            CopyRun(weights, 0, weights.tensors["a"].offset, 0, 40),
            CopyRun(other, 0, other.tensors["b"].offset, 40, 40),
        ]


def test_only_plain_reads_of_the_same_type_are_copied(weights: Weights) -> None:
    source = read(weights, "a")
    assert Output("a", DTYPES["F32"], source).copied is source
    assert Output("a", DTYPES["F16"], source).copied is None
    assert Output("a", DTYPES["F32"], Reshape(source, (2, 5))).copied is None


def test_sizes_are_known_before_anything_is_read(weights: Weights) -> None:
    file = OutputFile(
        Path("out"),
        (
            Output("a", DTYPES["F16"], Reshape(read(weights, "a"), (5, 2))),
            Output("b", DTYPES["F32"], read(weights, "b")),
        ),
        {},
    )
    assert file.layout() == [("a", DTYPES["F16"], (5, 2)), ("b", DTYPES["F32"], (10,))]
    assert file.nbytes == 60


def test_tensors_put_together_are_copied_where_they_lie_in_files(weights: Weights) -> None:
    together = Output("ca", DTYPES["F32"], Cat((read(weights, "c"), read(weights, "a"))))
    assert [piece.info.name for piece in together.pieces] == ["c", "a"] and together.copied is None
    start = weights.tensors["a"].offset
    found = copy_runs(OutputFile(Path("out"), (together,), {}), {"ca": 0}, 1000)
    assert [(run.source - start, run.target, run.length) for run in found] == [(80, 0, 40), (0, 40, 40)]
    assert Output("ca", DTYPES["F16"], together.expression).pieces == ()


def test_rows_are_copied_from_the_middle_of_a_tensor(tmp_path: Path) -> None:
    with opened(tmp_path / "m.safetensors", {"m": torch.arange(12.0).reshape(6, 2)}) as weights:
        rows = rows_of(read(weights, "m"), 2, 5)
        (piece,) = Output("rows", DTYPES["F32"], rows).pieces
        assert (piece.info.offset - weights.tensors["m"].offset, piece.info.nbytes) == (16, 24)
        assert piece.load().tolist() == [[4, 5], [6, 7], [8, 9]]
