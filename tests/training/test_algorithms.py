"""LoRA, DoRA, LoHa and LoKr from their start to the files, beside LyCORIS and PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdkit
from sdkit.core.errors import SdkitError, UsageError
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.load import load_backbone
from sdkit.runtime.rng import StepRNG
from sdkit.runtime.tensors import read_tensors
from sdkit.training.algorithms.algorithm import load_algorithm
from sdkit.training.method import load_method
from sdkit.training.option_sets import LoraOptions
from sdkit.training.options import parse_options
from sdkit.training.trainable import Trainable
from sdkit.weights import open_weights

# LyCORIS' factor → ours, and its arguments.
LYCORIS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("locon.LoConModule", {}),
    "dora": ("locon.LoConModule", {"weight_decompose": True}),
    "loha": ("loha.LohaModule", {}),
    "lokr": ("lokr.LokrModule", {}),
}
ALGORITHMS = [
    {"algo": "lora", "network_alpha": 1},
    {"algo": "dora", "network_alpha": 1},
    {"algo": "loha", "network_alpha": 3},
    {"algo": "lokr"},
    {"algo": "lokr", "factor": 2, "network_alpha": 1},
    {"algo": "lokr", "factor": 4, "decompose_both": True, "rank": 1, "conv_rank": 1},
    {"algo": "lokr", "rank": 1000, "conv_rank": 1000},
]
KINDS = [ALGORITHMS[index] for index in (0, 1, 2, 4, 6)]


def named(given: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in given.items())


def lycoris_module(algo: str, layer: nn.Module, rank: int, alpha: float, **more: Any) -> Any:
    import importlib

    place, arguments = LYCORIS[algo]
    module, _, name = place.partition(".")
    kind = getattr(importlib.import_module(f"lycoris.modules.{module}"), name)
    return kind("m", layer, 1.0, rank, alpha, **arguments, **more)


def train(base: Path, data: Path, out: Path, given: dict[str, Any], **more: Any) -> Any:
    options = {"rank": 2, "conv_rank": 2, "steps": 2, "batch": 2, "lr": 0.05, "save_dtype": "fp32", "seed": 3}
    return sdkit.train("lora", base, data, out, **{**options, **given, **more})


def continued(backbone: Backbone, path: str, given: dict[str, Any]) -> Trainable:
    """What trains, taken up from a file."""
    name, method = load_method("lora")
    options = parse_options(method.options, {**given, "init": path}, name)
    (trainable,) = method.trainables(backbone, options, StepRNG(0))
    return trainable


def outputs(backbone: Backbone) -> torch.Tensor:
    noised = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8)
    with torch.no_grad():
        cond = backbone.encode_text(backbone.tokenize(["a cat"]), (16, 16))
        return backbone.denoise(noised, torch.tensor([500]), cond)


@pytest.mark.parametrize("rank", [1, 3, 8, 64])
@pytest.mark.parametrize("settings", [{}, {"factor": 4}, {"factor": 16, "decompose_both": True}, {"factor": 5}])
@pytest.mark.parametrize("weight", [(24, 36), (64, 32, 3, 3), (32, 64, 1, 1), (7, 13)])
def test_lokr_is_divided_as_lycoris_does(weight: tuple[int, ...], settings: dict[str, Any], rank: int) -> None:
    ours = load_algorithm(LoraOptions(algo="lokr", **settings)).shapes(weight, rank)
    theirs = lycoris_module("lokr", layer_of(weight), rank, rank, **settings)
    expected = {name: tuple(value.shape) for name, value in theirs.named_parameters() if name.startswith("lokr_")}
    assert {f"lokr_{name}": shape for name, shape in ours.items()} == expected


def layer_of(weight: tuple[int, ...]) -> nn.Module:
    if len(weight) == 2:
        return nn.Linear(weight[1], weight[0])
    return nn.Conv2d(weight[1], weight[0], weight[2], padding=weight[2] // 2)


@pytest.mark.parametrize("algo", LYCORIS)
@pytest.mark.parametrize("weight", [(300, 200), (120, 60, 3, 3)])
def test_factors_begin_as_lycoris_do(algo: str, weight: tuple[int, ...]) -> None:
    """Zero where theirs are, else with the same spread; DoRA's lengths are the base's."""
    from sdkit.training.algorithms.algorithm import Draw

    torch.manual_seed(0)
    rng, layer = StepRNG(0), layer_of(weight)
    algorithm = load_algorithm(LoraOptions(algo=algo))
    draw = Draw(lambda shape, purpose: rng.uniform(shape, purpose), lambda shape, purpose: rng.normal(shape, purpose))
    start = algorithm.start(layer, algorithm.shapes(weight, 8), draw)
    theirs = lycoris_module(algo, layer, 8, 8)
    names = {"down": "lora_down.weight", "up": "lora_up.weight", "lengths": "dora_scale"}
    prefix = {"loha": "hada_", "lokr": "lokr_"}.get(algo, "")
    state = theirs.custom_state_dict()
    for name, value in start.items():
        wanted = state[names.get(name, prefix + name)].detach()
        assert value.shape == wanted.shape
        if name == "lengths":
            torch.testing.assert_close(value, wanted)
        elif wanted.abs().max() == 0:
            assert value.abs().max() == 0
        else:
            assert 0.85 < float(value.std() / wanted.std()) < 1.15
            assert 0.7 < float(value.abs().max() / wanted.abs().max()) < 1.4  # a normal has tails, a uniform none


@pytest.mark.parametrize("given", ALGORITHMS, ids=named)
def test_a_trained_file_merged_is_the_live_adapter(
    tiny_base: Path, pictures: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    report = train(tiny_base, pictures, tmp_path / "x", given, text_encoder=True)
    merged = sdkit.merge(tiny_base, report.output, tmp_path / "merged")
    assert merged.matched == report.plan.modules and not merged.unmatched
    tensors = read_tensors(Path(report.output))
    assert sum(value.numel() for name, value in tensors.items() if "alpha" not in name) == report.parameters
    backbone = load_backbone(tiny_base)
    before = outputs(backbone)
    with continued(backbone, report.output, given).install(backbone):
        live = outputs(backbone)
    assert (live - before).abs().max() > 1e-3
    torch.testing.assert_close(outputs(load_backbone(tmp_path / "merged")), live, atol=1e-5, rtol=0)
    assert torch.equal(outputs(backbone), before)


@pytest.mark.parametrize("given", ALGORITHMS, ids=named)
def test_lycoris_computes_the_same_with_our_file(
    tiny_base: Path, pictures: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    report = train(tiny_base, pictures, tmp_path / "x", given)
    tensors = read_tensors(Path(report.output))
    with open_weights(report.output) as weights:
        assert weights.metadata["ss_network_module"] == (
            "networks.lora" if given["algo"] == "lora" else "lycoris.kohya"
        )
        wanted = {"loha": "loha", "lokr": "lokr"}.get(given["algo"], "lora")
        assert json.loads(weights.metadata["ss_network_args"]).get("algo", "lora") == wanted
    backbone = load_backbone(tiny_base)
    for hub in ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "down_blocks.0.resnets.0.conv1"):
        flat = f"lora_unet_{hub.replace('.', '_')}"
        own = {name.removeprefix(f"{flat}."): value for name, value in tensors.items() if name.startswith(f"{flat}.")}
        layer = backbone.module(f"unet.{hub}")
        more = {key: given[key] for key in ("factor", "decompose_both") if key in given}
        theirs = lycoris_module(given["algo"], layer, given.get("rank", 2), float(own["alpha"]), **more)
        with torch.no_grad():
            for name, value in theirs.named_parameters():
                if not name.startswith("org_module"):
                    assert value.shape == own[name].shape, name
                    value.copy_(own[name])
            x = torch.randn(2, 5, 24) if isinstance(layer, nn.Linear) else torch.randn(2, 32, 6, 6)
            expected = theirs(x)
        trainable = continued(backbone, report.output, given)
        with trainable.install(backbone), torch.no_grad():
            got = backbone.module(f"unet.{hub}")(x)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("given", KINDS, ids=named)
def test_peft_loads_what_is_written_for_it(
    tiny_base: Path, pictures: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    from diffusers import UNet2DConditionModel
    from peft import PeftModel

    kohya = train(tiny_base, pictures, tmp_path / "k", given)
    report = train(tiny_base, pictures, tmp_path / "p", given, format="peft")
    backbone = load_backbone(tiny_base)
    with continued(backbone, kohya.output, given).install(backbone):
        live = outputs(backbone)
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    backbone.components["unet"] = PeftModel.from_pretrained(unet, report.output).base_model.model
    torch.testing.assert_close(outputs(backbone), live, atol=1e-5, rtol=0)
    sdkit.merge(tiny_base, report.output, tmp_path / "merged")
    torch.testing.assert_close(outputs(load_backbone(tmp_path / "merged")), live, atol=1e-5, rtol=0)


@pytest.mark.parametrize("given", KINDS, ids=named)
@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_training_goes_on_from_a_file_of_its_kind(
    tiny_base: Path, pictures: Path, tmp_path: Path, given: dict[str, Any], format: str
) -> None:
    first = train(tiny_base, pictures, tmp_path / "a", given, format=format)
    still = {"init": first.output, "lr": 0.0, "weight_decay": 0, "steps": 1}
    second = train(tiny_base, pictures, tmp_path / "b", given, **still)
    again = train(tiny_base, pictures, tmp_path / "c", given)
    one, two = read_tensors(Path(again.output)), read_tensors(Path(second.output))
    assert one.keys() == two.keys()
    assert all(torch.equal(value.flatten(), two[name].flatten()) for name, value in one.items())
    assert first.parameters == second.parameters


def test_what_does_not_go_together_is_said(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown algorithm 'lokrr'") as unknown:
        train(tiny_base, pictures, tmp_path / "x", {"algo": "lokrr"})
    assert unknown.value.hint == "did you mean lokr?"
    with pytest.raises(UsageError, match="factor=0"):
        train(tiny_base, pictures, tmp_path / "x", {"algo": "lokr", "factor": 0})
    with pytest.raises(UsageError, match="lora_plus= says nothing of algo=loha"):
        train(tiny_base, pictures, tmp_path / "x", {"algo": "loha", "lora_plus": 16})
    first = train(tiny_base, pictures, tmp_path / "a", {"algo": "loha"}, steps=1)
    with pytest.raises(SdkitError, match="cannot be trained on with this algorithm") as other:
        train(tiny_base, pictures, tmp_path / "b", {"algo": "lokr"}, init=first.output, dry_run=True)
    assert "algo=loha" in other.value.hint
    divided = {"algo": "lokr", "factor": 16, "conv_rank": 0}
    with pytest.raises(SdkitError, match="PEFT has no rule"):
        train(tiny_base, pictures, tmp_path / "c", divided, format="peft", dry_run=True)


def test_a_folder_of_several_components_may_be_replaced(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    for _ in range(2):
        report = train(tiny_base, pictures, tmp_path / "x", {}, format="peft", text_encoder=True, force=True, steps=1)
    folders = sorted(path.parent.name for path in Path(report.output).glob("*/adapter_config.json"))
    assert folders == ["text_encoder", "unet"]
