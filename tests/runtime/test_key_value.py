from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.adapters.key_value import Structure, attention_inputs
from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.install import install
from sdkit.runtime.layers.key_value import KeyValueNetwork
from sdkit.runtime.load import load_backbone
from sdkit.runtime.losses import HeldOut, held_out_losses
from sdkit.runtime.rng import StepRNG
from sdkit.runtime.tensors import in_memory
from sdkit.streaming.expression import Read
from sdkit.training.trainables.key_value import KeyValue, new_networks

WIDTHS = (24, 32, 64)  # the tiny base's text, and its U-Net's two


@pytest.fixture
def backbone(tiny_base: Path) -> Backbone:
    return load_backbone(tiny_base)


def hypernetwork(seed: int, structure: Structure | None = None, widths: tuple[int, ...] = WIDTHS) -> Artifact:
    structure = structure or Structure((1, 2, 1), "swish", layer_norm=True)
    networks = KeyValue(new_networks(structure, widths, "XavierNormal", StepRNG(seed)), structure, lr=0)
    for number, parameter in enumerate(networks.parameters.values()):
        parameter.data += 0.3 * StepRNG(seed + number).normal(tuple(parameter.shape), "more")
    return networks.artifact(torch.float32)


def lora(backbone: Backbone) -> Artifact:
    modules = [module for group in attention_inputs(backbone.model).values() for module in group]
    tensors = {}
    for number, module in enumerate(modules):
        outputs, inputs = backbone.module(module).weight.shape  # type: ignore[misc]
        tensors[f"{module}.down"] = StepRNG(number).normal((2, inputs), "down")
        tensors[f"{module}.up"] = StepRNG(number).normal((outputs, 2), "up")
    held = in_memory("random", tensors)
    read = {name: Read(held, info) for name, info in held.tensors.items()}
    deltas = {Target(name): LowRank(read[f"{name}.up"], read[f"{name}.down"], 0.5) for name in modules}
    return Artifact(held, "test", deltas=deltas)


def outputs(backbone: Backbone) -> torch.Tensor:
    noised = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8)
    with torch.no_grad():
        cond = backbone.encode_text(backbone.tokenize(["a cat"]), (16, 16))
        return backbone.denoise(noised, torch.tensor([500]), cond)


class WebUiProcessor:
    """Attention with hypernetworks as the web UI computes it: K and V from contexts of their own."""

    def __init__(self, loaded: list[tuple[Artifact, float]]) -> None:
        self.loaded = loaded

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **other: Any) -> Any:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        for_keys, for_values = context, context
        for artifact, multiplier in self.loaded:
            assert artifact.key_value is not None
            pair = artifact.key_value.networks.get(context.shape[2])
            if pair is not None:
                for_keys = for_keys + self.network(artifact, pair[0])(for_keys) * multiplier
                for_values = for_values + self.network(artifact, pair[1])(for_values) * multiplier
        q, k, v = attn.to_q(hidden_states), attn.to_k(for_keys), attn.to_v(for_values)
        q, k, v = (t.unflatten(2, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[0](out.to(q.dtype))

    @staticmethod
    def network(artifact: Artifact, reads: Any) -> nn.Module:
        tensors = {name: read.load() for name, read in reads.items()}
        assert artifact.key_value is not None
        return KeyValueNetwork(tensors["linear.0.weight"].shape[1], artifact.key_value.structure, tensors).eval()


def live(backbone: Backbone, *pairs: tuple[Artifact, float]) -> torch.Tensor:
    with ExitStack() as stack:
        for artifact, strength in pairs:
            stack.enter_context(install(artifact, backbone, strength))
        return outputs(backbone)


def test_live_it_draws_what_the_web_ui_s_attention_draws(backbone: Backbone) -> None:
    one, other = hypernetwork(1), hypernetwork(2, widths=(24, 64))
    before = outputs(backbone)
    found = live(backbone, (one, 0.8), (other, -0.5))
    assert torch.equal(outputs(backbone), before)
    backbone.unet.set_attn_processor(WebUiProcessor([(one, 0.8), (other, -0.5)]))
    wanted = outputs(backbone)
    assert torch.equal(found, wanted)
    assert (found - before).abs().max() > 1e-3


def test_it_reaches_self_and_cross_attention_keys_and_values(backbone: Backbone) -> None:
    inputs = attention_inputs(backbone.model)
    assert set(inputs) == set(WIDTHS)
    with install(hypernetwork(1), backbone) as count:
        wrapped = [
            name.removesuffix(".base") for name, _ in backbone.modules() if name.endswith(("to_k.base", "to_v.base"))
        ]
    assert count == len(wrapped) == sum(map(len, inputs.values()))
    assert {name.split(".")[-2] for name in wrapped} == {"attn1", "attn2"}
    before = outputs(backbone)
    assert all(not torch.equal(live(backbone, (hypernetwork(1, widths=(width,)), 1.0)), before) for width in WIDTHS)


def test_strength_zero_is_the_base_bit_for_bit(backbone: Backbone) -> None:
    before = outputs(backbone)
    with install(hypernetwork(1), backbone, 0.0):
        assert not any(name.endswith("to_k.base") for name, _ in backbone.modules())
        assert torch.equal(outputs(backbone), before)


def test_a_lora_changes_what_stands_behind_the_networks_in_whatever_order(backbone: Backbone) -> None:
    first, second = (hypernetwork(1), 0.7), (lora(backbone), 0.4)
    found = live(backbone, first, second)
    assert torch.equal(live(backbone, second, first), found)
    assert not torch.equal(live(backbone, first), found)


def test_in_half_precision_the_networks_still_compute_in_float32(backbone: Backbone) -> None:
    backbone.to(torch.device("cpu"), torch.bfloat16)
    with install(hypernetwork(1), backbone):
        assert outputs(backbone).dtype == torch.bfloat16
        kinds = {
            p.dtype for name, module in backbone.modules() if name.endswith(".network") for p in module.parameters()
        }
    assert kinds == {torch.float32}


def test_what_does_not_fit_is_refused(backbone: Backbone) -> None:
    artifact = hypernetwork(1)
    strange = replace(artifact, unmatched=("the networks of width 768",))
    with pytest.raises(SdkitError, match="networks of width 768"), install(strange, backbone):
        pass
    assert artifact.key_value is not None
    empty = replace(artifact, key_value=replace(artifact.key_value, networks={}))
    with pytest.raises(SdkitError, match="nothing of it applies"), install(empty, backbone):
        pass


def test_making_networks_leaves_torch_s_generator_alone() -> None:
    before = torch.get_rng_state()
    new_networks(Structure((1, 2, 1), "prelu", layer_norm=True), (8,), "KaimingUniform", StepRNG(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("weight_init", ["Normal", "XavierNormal", "XavierUniform", "KaimingNormal", "KaimingUniform"])
def test_weights_begin_as_torch_s_own_functions_would_draw_them(weight_init: str) -> None:
    networks = new_networks(Structure((1, 2, 1), "relu", layer_norm=True), (96,), weight_init, StepRNG(0))
    reference = torch.empty(192, 96)
    torch.manual_seed(0)
    {
        "Normal": lambda w: nn.init.normal_(w, 0.0, 0.01),
        "XavierNormal": nn.init.xavier_normal_,
        "XavierUniform": nn.init.xavier_uniform_,
        "KaimingNormal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
        "KaimingUniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    }[weight_init](reference)
    state = networks[96][0].state_dict()
    assert state["linear.0.weight"].std().item() == pytest.approx(reference.std().item(), rel=0.02)
    assert state["linear.0.weight"].abs().max().item() == pytest.approx(reference.abs().max().item(), rel=0.25)
    assert not state["linear.0.bias"].any() and not state["linear.2.bias"].any()
    assert state["linear.2.weight"].std().item() == pytest.approx(0.01, rel=0.2)  # the norm's gain
    assert not torch.equal(state["linear.0.weight"], networks[96][1].state_dict()["linear.0.weight"])


def test_the_held_out_loss_in_the_midst_of_training_knows_no_dropout(backbone: Backbone) -> None:
    structure = Structure((1, 2, 1), "relu", dropout=(0, 0.5, 0))
    networks = KeyValue(new_networks(structure, WIDTHS, "KaimingNormal", StepRNG(0)), structure, lr=0)
    latents = backbone.encode_image(torch.zeros(1, 3, 16, 16))
    pictures = [HeldOut("a", "a cat", (16, 16), latents)]
    with networks.install(backbone):
        assert not torch.equal(outputs(backbone), outputs(backbone))  # dropout at work
        losses = [held_out_losses(backbone, pictures, pairs=2) for _ in range(2)]
        assert torch.equal(losses[0], losses[1])
        assert not torch.equal(outputs(backbone), outputs(backbone))
