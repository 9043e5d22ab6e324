"""DoRA baked into weights, against LyCORIS, PEFT and the formula by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from example_model import Sizes, make_checkpoint
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.streaming import expression

UNET = "model.diffusion_model"
QUERY = f"{UNET}.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
FLAT_QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
KERNEL = f"{UNET}.input_blocks.1.0.in_layers.2.weight"
FLAT_KERNEL = "lora_unet_down_blocks_0_resnets_0_conv1"


@pytest.fixture(scope="module")
def base_tensors() -> dict[str, torch.Tensor]:
    tensors = make_checkpoint(Sizes())
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@pytest.fixture
def base(base_tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    save_file(base_tensors, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def lora(flat: str, weight: torch.Tensor, rank: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ones = [1] * (weight.ndim - 2)
    return {
        f"{flat}.lora_up.weight": torch.randn(weight.shape[0], rank, *ones, generator=generator) * 0.3,
        f"{flat}.lora_down.weight": torch.randn(rank, *weight.shape[1:], generator=generator) * 0.3,
        f"{flat}.alpha": torch.tensor(float(rank) / 2),
    }


def dora_by_hand(weight: torch.Tensor, tensors: dict[str, torch.Tensor], flat: str, strength: float) -> torch.Tensor:
    """W + k (m (W + ΔW) / ‖W + ΔW‖ − W), in float64; the axis is where dora_scale is long."""
    up, down = (tensors[f"{flat}.lora_{side}.weight"].double().flatten(1) for side in ("up", "down"))
    moved = weight.double() + 0.5 * (up @ down).reshape(weight.shape)
    lengths = tensors[f"{flat}.dora_scale"].double()
    others = tuple(axis for axis in range(weight.ndim) if axis != (0 if lengths.shape[0] > 1 else 1))
    whole = lengths * moved / torch.linalg.vector_norm(moved, dim=others, keepdim=True)
    return weight.double() + strength * (whole - weight.double())


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.3])
@pytest.mark.parametrize("by_input", [False, True])
@pytest.mark.parametrize("tile", [256 * 1024, 700])
def test_equals_the_formula_on_either_axis(
    base: Path,
    base_tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    strength: float,
    by_input: bool,
    tile: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a weight is cut into several tiles, which a norm over input features must see together."""
    monkeypatch.setattr(expression, "TILE_ELEMENTS", tile)
    tensors: dict[str, torch.Tensor] = {}
    for seed, (flat, key) in enumerate([(FLAT_QUERY, QUERY), (FLAT_KERNEL, KERNEL)]):
        weight = base_tensors[key]
        shape = [1] * weight.ndim
        shape[1 if by_input else 0] = weight.shape[1 if by_input else 0]
        tensors |= lora(flat, weight, 3, seed) | {f"{flat}.dora_scale": torch.rand(shape) + 0.5}
    save_file(tensors, tmp_path / "dora.safetensors")
    sdkit.merge(base, {tmp_path / "dora.safetensors": strength}, tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")
    for flat, key in ((FLAT_QUERY, QUERY), (FLAT_KERNEL, KERNEL)):
        wanted = dora_by_hand(base_tensors[key], tensors, flat, strength)
        assert torch.allclose(merged[key].double(), wanted, atol=1e-6), key
    assert all(torch.equal(merged[key], base_tensors[key]) for key in merged if key not in (QUERY, KERNEL))


def test_several_adapters_all_change_the_base(
    base: Path, base_tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Two DoRAs and a LoRA of one weight: each sees the base, whatever the order."""
    weight = base_tensors[QUERY]
    files, wanted = [], weight.double()
    for seed in (0, 1):
        tensors = lora(FLAT_QUERY, weight, 2, seed)
        tensors[f"{FLAT_QUERY}.dora_scale"] = torch.rand(weight.shape[0], 1) + 0.5
        files.append(tmp_path / f"{seed}.safetensors")
        save_file(tensors, files[-1])
        wanted = wanted + dora_by_hand(weight, tensors, FLAT_QUERY, 0.5) - weight.double()
    plain = lora(FLAT_QUERY, weight, 2, 2)
    save_file(plain, tmp_path / "plain.safetensors")
    up, down = plain[f"{FLAT_QUERY}.lora_up.weight"], plain[f"{FLAT_QUERY}.lora_down.weight"]
    wanted = wanted + 0.5 * 0.5 * (up.double() @ down.double())
    for number, order in enumerate(
        [[*files, tmp_path / "plain.safetensors"], [tmp_path / "plain.safetensors", *files]]
    ):
        sdkit.merge(base, dict.fromkeys(order, 0.5), tmp_path / f"out{number}")
        assert torch.allclose(load_file(tmp_path / f"out{number}")[QUERY].double(), wanted, atol=1e-6)


@pytest.mark.parametrize("by_output", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_agrees_with_lycoris(
    base: Path, base_tensors: dict[str, torch.Tensor], tmp_path: Path, by_output: bool, kind: str
) -> None:
    locon = pytest.importorskip("lycoris.modules.locon")
    flat, key = (FLAT_QUERY, QUERY) if kind == "linear" else (FLAT_KERNEL, KERNEL)
    weight = base_tensors[key]
    if kind == "linear":
        layer: torch.nn.Module = torch.nn.Linear(*weight.shape[::-1], bias=False)
    else:
        layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False)
    layer.weight.data.copy_(weight)
    module = locon.LoConModule("m", layer, 1.0, 3, 1.5, weight_decompose=True, wd_on_out=by_output)
    torch.manual_seed(0)
    for parameter in (module.lora_up.weight, module.lora_down.weight):
        torch.nn.init.normal_(parameter, std=0.3)
    module.dora_scale.data.mul_(1.2)
    save_file({f"{flat}.{name}": tensor.clone() for name, tensor in module.state_dict().items()}, tmp_path / "d")
    sdkit.merge(base, tmp_path / "d", tmp_path / "out.safetensors")
    oracle, _ = module.get_merged_weight()
    assert torch.allclose(load_file(tmp_path / "out.safetensors")[key], oracle, atol=1e-5)


def test_agrees_with_peft(base: Path, base_tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    names = ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.resnets.0.conv1"]
    query, kernel = base_tensors[QUERY], base_tensors[KERNEL]
    layers = [torch.nn.Linear(*query.shape[::-1], bias=False), torch.nn.Conv2d(32, 32, 3, bias=False)]
    layers[0].weight.data.copy_(query)
    layers[1].weight.data.copy_(kernel)
    net = torch.nn.Module()
    for name, layer in zip(names, layers, strict=True):
        inner = net
        for part in name.split(".")[:-1]:
            if part not in dict(inner.named_children()):
                inner.add_module(part, torch.nn.Module())
            inner = inner.get_submodule(part)
        inner.add_module(name.split(".")[-1], layer)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=names, use_dora=True, init_lora_weights=False)
    model = get_peft_model(net, config)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data.mul_(1.3)
    model.save_pretrained(str(tmp_path / "dora"))
    assert json.loads((tmp_path / "dora/adapter_config.json").read_text())["use_dora"]
    sdkit.merge(base, tmp_path / "dora", tmp_path / "out.safetensors")
    oracle = model.merge_and_unload()
    merged = load_file(tmp_path / "out.safetensors")
    assert torch.allclose(merged[QUERY], oracle.get_submodule(names[0]).weight, atol=1e-5)
    assert torch.allclose(merged[KERNEL], oracle.get_submodule(names[1]).weight, atol=1e-5)


def test_what_cannot_be_done_is_said(base: Path, base_tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tensors = lora(FLAT_QUERY, base_tensors[QUERY], 2, 0)
    adapter = tmp_path / "d.safetensors"
    save_file({**tensors, f"{FLAT_QUERY}.dora_scale": torch.ones(7, 1)}, adapter)
    with pytest.raises(SdkitError, match=r"shape \[7, 1\] is no length for 32 output features"):
        sdkit.merge(base, adapter, tmp_path / "out")
    save_file({f"{FLAT_QUERY}.dora_scale": torch.ones(32, 1)}, adapter)
    with pytest.raises(SdkitError, match="no change of direction beside it"):
        sdkit.merge(base, adapter, tmp_path / "out")
    save_file({**tensors, f"{FLAT_QUERY}.dora_scale": torch.ones(32, 1)}, adapter)
    with pytest.raises(SdkitError, match="depends on the weights it is merged into"):
        sdkit.scale(adapter, 0.5, tmp_path / "out")
    sdkit.merge(base, adapter, tmp_path / "merged.safetensors")
    with pytest.raises(SdkitError, match="cannot be subtracted"):
        sdkit.unmerge(tmp_path / "merged.safetensors", [adapter], tmp_path / "out")


def test_a_feature_of_zeros_stays_one(base_tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tensors = {**base_tensors, QUERY: base_tensors[QUERY].clone()}
    tensors[QUERY][3] = 0
    save_file(tensors, tmp_path / "base")
    adapter = lora(FLAT_QUERY, tensors[QUERY], 2, 0)
    adapter[f"{FLAT_QUERY}.lora_up.weight"][3] = 0
    save_file({**adapter, f"{FLAT_QUERY}.dora_scale": torch.ones(32, 1)}, tmp_path / "d")
    sdkit.merge(tmp_path / "base", tmp_path / "d", tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out")[QUERY][3], torch.zeros(32))
