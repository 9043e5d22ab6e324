"""The layers of adapters beside PEFT's: the same factors give the same outputs and the same gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from torch import nn

from sdkit.adapters.deltas.hadamard import PreparedHadamard
from sdkit.adapters.deltas.kronecker import PreparedKronecker
from sdkit.core.errors import SdkitError
from sdkit.runtime.layers.dora import DoraLayer
from sdkit.runtime.layers.hadamard import HadamardLayer
from sdkit.runtime.layers.kronecker import KroneckerLayer
from sdkit.runtime.layers.layer import AdapterLayer
from sdkit.runtime.layers.low_rank import LowRankLayer, factor_shapes
from sdkit.training.algorithms.lokr import Lokr

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (3, 7, 6)),
    "conv": (lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1), (3, 6, 8, 8)),
    "conv1x1": (lambda: nn.Conv2d(6, 5, 1, bias=False), (3, 6, 4, 4)),
}
# Both of whose sides can be divided.
DIVISIBLE = {
    "linear": (lambda: nn.Linear(12, 8), (3, 7, 12)),
    "conv": (lambda: nn.Conv2d(12, 8, 3, stride=2, padding=1), (3, 12, 8, 8)),
}


def of_peft(base: nn.Module, config: Any) -> Any:
    model = nn.Sequential()
    model.add_module("layer", base)
    inject_adapter_in_model(config, model)
    return model.layer


def assert_same(ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...], pairs: Mapping[str, nn.Parameter]) -> None:
    """Outputs, the gradient of the input, and those of the factors: our name → their parameter."""
    x = torch.randn(shape, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ours(x).square().sum().backward()
    theirs(y).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(y), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)
    for name, parameter in pairs.items():
        gradient = getattr(ours, name).grad
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient.flatten(), parameter.grad.flatten(), msg=name, rtol=1e-4, atol=1e-4)


def put(theirs: nn.Parameter, ours: torch.Tensor) -> nn.Parameter:
    with torch.no_grad():
        theirs.copy_(ours.reshape(theirs.shape))
    return theirs


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dora", [False, True])
def test_lora_and_dora_are_peft_s(kind: str, dora: bool) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    base = make()
    down, up = (nn.Parameter(torch.randn(size)) for size in factor_shapes(base, 4, kind))
    config = LoraConfig(r=4, lora_alpha=10, target_modules=["layer"], init_lora_weights=False, use_dora=dora)
    theirs = of_peft(base, config)
    pairs = {
        "down": put(theirs.lora_A["default"].weight, down),
        "up": put(theirs.lora_B["default"].weight, up),
    }
    ours: AdapterLayer = LowRankLayer(base, down, up, 2.5)
    if dora:
        lengths = nn.Parameter(torch.rand(5, *[1] * (base.weight.ndim - 1)) + 0.5)
        pairs["lengths"] = put(theirs.lora_magnitude_vector["default"].weight, lengths)
        ours = DoraLayer(base, down, up, lengths, 2.5)
    assert_same(ours, theirs, shape, pairs)


@pytest.mark.parametrize("kind", LAYERS)
def test_loha_is_peft_s_and_the_delta_s(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    base = make()
    columns = base.weight[0].numel()
    sizes = {"w1_a": (5, 3), "w1_b": (3, columns), "w2_a": (5, 3), "w2_b": (3, columns)}
    factors = {name: nn.Parameter(torch.randn(size) * 0.5) for name, size in sizes.items()}
    theirs = of_peft(base, LoHaConfig(r=3, alpha=6, target_modules=["layer"], init_weights=False))
    pairs = {name: put(getattr(theirs, f"hada_{name}")["default"], factor) for name, factor in factors.items()}
    ours = HadamardLayer(base, **factors, scale=2.0)
    assert_same(ours, theirs, shape, pairs)
    dense = torch.zeros(5, columns)
    with torch.no_grad():
        PreparedHadamard(2.0 * factors["w1_a"], *list(factors.values())[1:]).add_rows(dense, 0)
        x = torch.randn(shape)
        base.weight += dense.view(base.weight.shape)
        changed = base(x)
        base.weight -= dense.view(base.weight.shape)
        torch.testing.assert_close(ours(x), changed)


@pytest.mark.parametrize("kind", DIVISIBLE)
@pytest.mark.parametrize(("factor", "both", "rank"), [(-1, False, 1), (2, True, 1), (2, False, 99), (4, False, 1)])
def test_lokr_is_peft_s_and_the_delta_s(kind: str, factor: int, both: bool, rank: int) -> None:
    torch.manual_seed(0)
    make, shape = DIVISIBLE[kind]
    base = make()
    shapes = Lokr(factor, both).shapes(tuple(base.weight.shape), rank)
    factors = {name: nn.Parameter(torch.randn(size) * 0.5) for name, size in shapes.items()}
    config = LoKrConfig(
        r=rank,
        alpha=2 * rank,
        target_modules=["layer"],
        init_weights=False,
        decompose_both=both,
        decompose_factor=factor if factor != 4 else 2,  # PEFT's outer side is then the larger, LyCORIS' is not
    )
    ours = KroneckerLayer(base, factors, 2.0)
    if factor != 4:
        theirs = of_peft(base, config)
        pairs = {name: put(getattr(theirs, f"lokr_{name}")["default"], value) for name, value in factors.items()}
        assert_same(ours, theirs, shape, pairs)
    with torch.no_grad():
        outer = factors["w1"] if "w1" in factors else factors["w1_a"] @ factors["w1_b"]
        inner = factors["w2"].flatten(1) if "w2" in factors else factors["w2_a"] @ factors["w2_b"]
        dense = torch.zeros(8, base.weight[0].numel())
        PreparedKronecker(2.0 * outer, inner).add_rows(dense, 0)
        x = torch.randn(shape)
        base.weight += dense.view(base.weight.shape)
        changed = base(x)
        base.weight -= dense.view(base.weight.shape)
        torch.testing.assert_close(ours(x), changed)


def test_at_scale_zero_the_base_s_bits_come_out() -> None:
    base = nn.Linear(4, 4)
    layer = LowRankLayer(base, torch.full((1, 4), math.inf), torch.ones(4, 1), 0.0)
    x = torch.randn(2, 4)
    assert torch.equal(layer(x), base(x))


def test_layers_stack() -> None:
    base = nn.Linear(4, 3, bias=False)
    pairs = [(torch.randn(2, 4), torch.randn(3, 2)) for _ in range(2)]
    layer: nn.Module = base
    for down, up in pairs:
        layer = LowRankLayer(layer, down, up, 0.5)
    x = torch.randn(5, 4)
    weight = base.weight + sum(0.5 * up @ down for down, up in pairs)
    torch.testing.assert_close(layer(x), x @ weight.T)


def test_a_loha_keeps_no_product_for_the_backward_pass() -> None:
    base = nn.Linear(64, 64, bias=False).requires_grad_(False)
    layer = HadamardLayer(base, *(nn.Parameter(torch.randn(size)) for size in [(64, 2), (2, 64)] * 2), scale=1.0)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(3, 64, requires_grad=True))
    assert sum(size for size in kept if size == 64 * 64) <= 64 * 64  # the base's own weight


def test_a_layer_that_cannot_carry_a_change_is_named() -> None:
    with pytest.raises(SdkitError, match="norm: a LayerNorm cannot"):
        factor_shapes(nn.LayerNorm(3), 2, "norm")
