from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import sdkit
from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.hadamard import Hadamard
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.core.errors import SdkitError
from sdkit.formats import read_adapter, write_adapter
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.install import install
from sdkit.runtime.layers.low_rank import factor_shapes
from sdkit.runtime.load import load_backbone
from sdkit.runtime.tensors import in_memory
from sdkit.streaming.expression import Read
from sdkit.weights import open_weights


def random_adapter(backbone: Backbone) -> Artifact:
    """Every kind of change: low-rank beside all of attention, and a full, a bias and a Hadamard one elsewhere."""
    torch.manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    modules = [
        name
        for name, module in backbone.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        and ("unet" in name and "attentions" in name or "self_attn" in name)
    ]
    for name in modules:
        down, up = factor_shapes(backbone.module(name), 2, name)
        tensors[f"{name}.down"], tensors[f"{name}.up"] = torch.randn(down) * 0.1, torch.randn(up) * 0.1
    conv = "unet.conv_in"
    tensors["diff"] = torch.randn(32, 4, 3, 3) * 0.1
    tensors["diff_b"] = torch.randn(32) * 0.1
    tensors["norm"] = torch.randn(32) * 0.1
    fc1 = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    for role, shape in {"w1_a": (48, 2), "w1_b": (2, 24), "w2_a": (48, 2), "w2_b": (2, 24)}.items():
        tensors[role] = torch.randn(shape) * 0.3
    held = in_memory("random", tensors)
    read = {name: Read(held, info) for name, info in held.tensors.items()}
    deltas = {Target(name): LowRank(read[f"{name}.up"], read[f"{name}.down"], 0.5) for name in modules}
    return Artifact(
        held,
        "test",
        deltas={
            **deltas,
            Target(conv): Full(read["diff"]),
            Target(conv, "bias"): Full(read["diff_b"]),
            Target(fc1): Hadamard(read["w1_a"], read["w1_b"], read["w2_a"], read["w2_b"], 0.5),
        },
    )


def outputs(backbone: Backbone) -> torch.Tensor:
    noised = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8)
    with torch.no_grad():
        cond = backbone.encode_text(backbone.tokenize(["a cat"]), (16, 16))
        return backbone.denoise(noised, torch.tensor([500]), cond)


@pytest.fixture
def backbone(tiny_base: Path) -> Backbone:
    return load_backbone(tiny_base)


def test_live_and_merged_are_one_model(backbone: Backbone, tiny_base: Path, tmp_path: Path) -> None:
    adapter = random_adapter(backbone)
    write_adapter(adapter, backbone.model, tmp_path / "a.safetensors", {})
    sdkit.merge(tiny_base, {tmp_path / "a.safetensors": 0.7}, tmp_path / "merged")
    merged = outputs(load_backbone(tmp_path / "merged"))
    before = outputs(backbone)
    with install(adapter, backbone, 0.7) as count:
        live = outputs(backbone)
    assert count == len(adapter.deltas)
    torch.testing.assert_close(live, merged, atol=1e-5, rtol=0)
    assert (live - before).abs().max() > 1e-3
    assert torch.equal(outputs(backbone), before)


def test_strength_zero_is_the_base_bit_for_bit(backbone: Backbone) -> None:
    before = outputs(backbone)
    with install(random_adapter(backbone), backbone, 0.0):
        assert torch.equal(outputs(backbone), before)


def test_the_model_is_itself_again_after_an_error(backbone: Backbone) -> None:
    before = outputs(backbone)
    with pytest.raises(RuntimeError), install(random_adapter(backbone), backbone):
        raise RuntimeError
    assert torch.equal(outputs(backbone), before)


def test_an_adapter_that_would_do_nothing_or_only_half_is_refused(backbone: Backbone) -> None:
    adapter = random_adapter(backbone)
    with pytest.raises(SdkitError, match="nothing of it applies"), install(replace(adapter, deltas={}), backbone):
        pass
    with (
        pytest.raises(SdkitError, match="1 modules have no place"),
        install(replace(adapter, unmatched=("x",)), backbone),
    ):
        pass


def test_diffusers_loads_what_we_write_and_draws_the_same(backbone: Backbone, tiny_base: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    adapter = random_adapter(backbone)
    plain = {target: delta for target, delta in adapter.deltas.items() if isinstance(delta, LowRank)}
    unet_only = {target: delta for target, delta in plain.items() if target.component == "unet"}
    adapter = replace(adapter, deltas=unet_only)
    write_adapter(adapter, backbone.model, tmp_path / "peft", {}, format="peft")
    write_adapter(adapter, backbone.model, tmp_path / "kohya.safetensors", {})
    with install(adapter, backbone, 1.0):
        wanted = outputs(backbone)

    from peft import PeftModel

    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    backbone.components["unet"] = PeftModel.from_pretrained(unet, str(tmp_path / "peft")).base_model.model
    torch.testing.assert_close(outputs(backbone), wanted, atol=1e-5, rtol=0)

    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin as Loader

    state, alphas = Loader.lora_state_dict(tmp_path / "kohya.safetensors")
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    Loader.load_lora_into_unet(state, alphas, unet)
    backbone.components["unet"] = unet
    torch.testing.assert_close(outputs(backbone), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_what_is_written_reads_back_with_equal_changes(backbone: Backbone, tmp_path: Path, format: str) -> None:
    adapter = random_adapter(backbone)
    deltas = {t: d for t, d in adapter.deltas.items() if isinstance(d, LowRank) and t.component == "unet"}
    path = tmp_path / ("x" if format == "peft" else "x.safetensors")
    write_adapter(replace(adapter, deltas=deltas), backbone.model, path, {"note": "kept"}, format=format)
    with open_weights(path) as weights:
        again = read_adapter(weights, backbone.model)
        assert again.format == format
        assert again.deltas.keys() == deltas.keys()
        assert again.metadata["note"] == "kept"
        for target, delta in again.deltas.items():
            assert isinstance(delta, LowRank)
            assert torch.equal(delta.up.load(), deltas[target].up.load())
            assert delta.scale == deltas[target].scale


def test_what_reads_back_differently_is_an_error(backbone: Backbone, tmp_path: Path) -> None:
    from sdkit.formats._verify import verify

    one, two = random_adapter(backbone), random_adapter(backbone)
    target = next(iter(one.deltas))
    delta = one.deltas[target]
    assert isinstance(delta, LowRank)
    changed = {**two.deltas, target: replace(delta, scale=delta.scale * 1.001)}
    verify(one, two, tmp_path)
    with pytest.raises(SdkitError, match="does not read back"):
        verify(one, replace(two, deltas=changed), tmp_path)


def test_peft_writes_no_bias_alone_and_unwritten_formats_say_so(backbone: Backbone, tmp_path: Path) -> None:
    adapter = random_adapter(backbone)
    with pytest.raises(SdkitError, match="PEFT gives every LoRA a bias or none"):
        write_adapter(adapter, backbone.model, tmp_path / "x", {}, format="peft")
    with pytest.raises(SdkitError, match="is read but not written"):
        write_adapter(adapter, backbone.model, tmp_path / "x", {}, format="loralib")
