from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from sdkit.core.errors import SdkitError
from sdkit.runtime.layers.low_rank import LowRankLayer, factor_shapes

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (3, 7, 6)),
    "conv": (lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1), (3, 6, 8, 8)),
    "conv1x1": (lambda: nn.Conv2d(6, 5, 1, bias=False), (3, 6, 4, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_output_and_gradients_are_peft_s(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    base = make()
    down, up = (nn.Parameter(torch.randn(size)) for size in factor_shapes(base, 4, kind))
    ours = LowRankLayer(base, down, up, 2.5)
    model = nn.Sequential()
    model.add_module("layer", base)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=10, target_modules=["layer"], init_lora_weights=False), model)
    theirs = model.layer
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(down)
        theirs.lora_B["default"].weight.copy_(up)
    x = torch.randn(shape, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ours(x).square().sum().backward()
    theirs(y).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(y))
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(down.grad, theirs.lora_A["default"].weight.grad)
    torch.testing.assert_close(up.grad, theirs.lora_B["default"].weight.grad)


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


def test_a_layer_that_cannot_carry_a_change_is_named() -> None:
    with pytest.raises(SdkitError, match="norm: a LayerNorm cannot"):
        factor_shapes(nn.LayerNorm(3), 2, "norm")
