from __future__ import annotations

import pytest
import torch

from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.hadamard import Hadamard
from sdkit.adapters.deltas.kronecker import Kronecker, Side
from sdkit.core.errors import SdkitError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_full_by_hand(reads, dense):
    diff = torch.arange(16.0).reshape(4, 4)
    delta = Full(reads(diff=diff)["diff"], scale=0.5)
    assert (delta.kind, delta.shape, delta.rank) == ("full", (4, 4), None)
    assert torch.equal(dense(delta, 3.0), 1.5 * diff.double())
    assert torch.equal(dense(delta, transpose=True), 0.5 * diff.T.double())


def test_full_bias_and_kernel(reads, dense):
    file = reads(bias=torch.tensor([1.0, -2.0, 3.0]), kernel=normal(4, 2, 3, 3))
    assert torch.equal(dense(Full(file["bias"])), torch.tensor([[1.0], [-2.0], [3.0]], dtype=torch.float64))
    assert torch.equal(dense(Full(file["kernel"])), normal(4, 2, 3, 3).flatten(1))


def test_hadamard_by_hand(reads, dense):
    file = reads(
        a1=torch.tensor([[1.0], [2.0], [0.0], [-1.0]]),
        b1=torch.tensor([[1.0, 2.0, 3.0, 4.0]]),
        a2=torch.tensor([[2.0], [1.0], [5.0], [1.0]]),
        b2=torch.tensor([[1.0, 0.0, -1.0, 2.0]]),
    )
    delta = Hadamard(file["a1"], file["b1"], file["a2"], file["b2"], scale=0.5)
    first = torch.tensor([[1.0, 2, 3, 4], [2, 4, 6, 8], [0, 0, 0, 0], [-1, -2, -3, -4]])
    second = torch.tensor([[2.0, 0, -2, 4], [1, 0, -1, 2], [5, 0, -5, 10], [1, 0, -1, 2]])
    expected = 0.5 * (first * second).double()
    assert (delta.kind, delta.shape, delta.rank) == ("loha", (4, 4), 1)
    assert torch.equal(dense(delta), expected)
    assert torch.equal(dense(delta, 2.0, transpose=True), 2 * expected.T)


def test_hadamard_tucker(reads, dense):
    shapes = {"a1": (2, 5), "b1": (2, 3), "t1": (2, 2, 3, 3), "a2": (2, 5), "b2": (2, 3), "t2": (2, 2, 3, 3)}
    parts = {name: normal(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    file = reads(**parts)
    delta = Hadamard(file["a1"], file["b1"], file["a2"], file["b2"], 1.0, file["t1"], file["t2"])
    halves = [torch.einsum("rshw,ro,si->oihw", parts[f"t{n}"], parts[f"a{n}"], parts[f"b{n}"]) for n in "12"]
    assert delta.shape == (5, 3, 3, 3)
    assert torch.allclose(dense(delta), (halves[0] * halves[1]).flatten(1), atol=1e-12)


def test_kronecker_by_hand(reads, dense):
    file = reads(w1=torch.tensor([[1.0, 2.0], [0.0, -1.0]]), w2=torch.tensor([[1.0, 0.0], [3.0, 1.0]]))
    delta = Kronecker(Side(file["w1"]), Side(file["w2"]), scale=0.5)
    expected = 0.5 * torch.tensor([[1.0, 0, 2, 0], [3, 1, 6, 2], [0, 0, -1, 0], [0, 0, -3, -1]], dtype=torch.float64)
    assert (delta.kind, delta.shape, delta.rank) == ("lokr", (4, 4), None)
    assert torch.equal(dense(delta), expected)
    assert torch.equal(dense(delta, 2.0, transpose=True), 2 * expected.T)


@pytest.mark.parametrize("form", ["whole", "product", "core"])
def test_kronecker_of_convolutions(reads, dense, form):
    w1 = normal(2, 3)
    parts = {
        "whole": {"whole": normal(4, 5, 3, 3, seed=1)},
        "product": {"a": normal(4, 2, seed=1), "b": normal(2, 5, 3, 3, seed=2)},
        "core": {"a": normal(2, 4, seed=1), "b": normal(2, 5, seed=2), "core": normal(2, 2, 3, 3, seed=3)},
    }[form]
    file = reads(w1=w1, **parts)
    delta = Kronecker(Side(file["w1"]), Side(*(file.get(part) for part in ("whole", "a", "b", "core"))), 1.0)
    inner = {
        "whole": lambda: parts["whole"],
        "product": lambda: torch.einsum("or,rihw->oihw", parts["a"], parts["b"]),
        "core": lambda: torch.einsum("rshw,ro,si->oihw", parts["core"], parts["a"], parts["b"]),
    }[form]()
    assert delta.shape == (8, 15, 3, 3)
    assert torch.allclose(dense(delta), torch.kron(w1[:, :, None, None], inner.contiguous()).flatten(1), atol=1e-12)


def test_misfits_are_refused(reads):
    file = reads(a=torch.ones(4, 2), b=torch.ones(2, 4), short=torch.ones(3, 4), core=torch.ones(5, 5, 3, 3))
    a, b, short, core = file["a"], file["b"], file["short"], file["core"]
    with pytest.raises(SdkitError, match="cannot be multiplied"):
        Hadamard(a, short, a, b, 1.0)
    with pytest.raises(SdkitError, match="two Tucker cores or none"):
        Hadamard(a, b, a, b, 1.0, t1=core)
    with pytest.raises(SdkitError, match="does not fit"):
        Hadamard(a, b, a, b, 1.0, core, core)
    with pytest.raises(SdkitError, match="not both"):
        Side(a, b)
    with pytest.raises(SdkitError, match="two matrices"):
        Side(None, a)
    with pytest.raises(SdkitError, match="core does not fit"):
        Side(None, a, b, core)


def test_nan_is_refused(reads):
    broken = torch.ones(4, 4)
    broken[2, 3] = float("nan")
    file = reads(diff=broken, fine=torch.ones(4, 4))
    with pytest.raises(SdkitError, match="diff: holds NaN"):
        Full(file["diff"]).prepare(1.0, torch.float32)
    with pytest.raises(SdkitError, match="diff: holds NaN"):
        Hadamard(file["fine"], file["fine"], file["fine"], file["diff"], 1.0).prepare(1.0, torch.float32)
    with pytest.raises(SdkitError, match="diff: holds NaN"):
        Kronecker(Side(file["fine"]), Side(file["diff"]), 1.0).prepare(1.0, torch.float32)
