from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdkit.adapters.artifact import Target
from sdkit.conversion.adapter import relative_change
from sdkit.core.errors import SdkitError
from sdkit.formats import read_adapter, recognise, write_adapter
from sdkit.formats.peft import LoraSettings
from sdkit.weights import Weights
from sdkit.weights.header import read_header
from sdkit.weights.reader import Container

UNET = {"mid_block.attentions.0.proj_in": (8, 6), "down_blocks.0.resnets.0.conv1": (8, 4, 3, 3), "mid_block.q": (6, 6)}


def open_peft(folder: Path) -> Weights:
    """A folder of PEFT's, as the folder opener presents it."""
    file = folder / "adapter_model.safetensors"
    header = read_header(file)
    config = json.loads((folder / "adapter_config.json").read_text())
    return Weights(
        folder, Container.FOLDER, [file], header.tensors, header.metadata, configs={"adapter_config": config}
    )


@pytest.fixture
def folder(tmp_path):
    """A hand-made folder with one pair of rank 2."""

    def make(tensors: dict[str, torch.Tensor] | None = None, **config: object) -> Weights:
        name = "base_model.model.mid_block.attentions.0.proj_in"
        tensors = tensors or {f"{name}.lora_A.weight": torch.ones(2, 6), f"{name}.lora_B.weight": torch.ones(8, 2)}
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3} | config
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        return open_peft(tmp_path)

    return make


@pytest.fixture
def unet(make_model):
    return make_model({f"unet.{name}": shape for name, shape in UNET.items()})


class Tiny(torch.nn.Module):
    """A model with the module names of UNET."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in UNET.items():
            layer = torch.nn.Conv2d(shape[1], shape[0], 3) if len(shape) == 4 else torch.nn.Linear(shape[1], shape[0])
            *path, last = name.split(".")
            parent: torch.nn.Module = self
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, torch.nn.Module())
                parent = getattr(parent, part)
            parent.add_module(last, layer)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank_pattern": {"conv1": 3, r"mid_block\.q": 1}, "alpha_pattern": {"q": 7.0}},
        {"alpha_pattern": {"proj_.*": 2.0, "conv1": 5}},
        {"use_rslora": True},
        {"use_rslora": True, "rank_pattern": {"q": 4}},
        {"lora_bias": True},
        {"init_lora_weights": "orthogonal", "target_modules": ["proj_in", "q"]},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_equals_pefts_own_merge(tmp_path, unet, dense, options):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    model = Tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["proj_in", "conv1", "q"]} | options
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path)
    weights = open_peft(tmp_path)
    assert recognise(weights)[0] == "peft"
    artifact = read_adapter(weights, unet)
    merged = adapted.merge_and_unload().state_dict()
    changed = set()
    for name, value in before.items():
        module, _, parameter = f"unet.{name}".rpartition(".")
        change = merged[name] - value
        if Target(module, parameter) in artifact.deltas:
            changed.add(module)
            assert torch.allclose(dense(artifact, module, parameter).float(), change, atol=1e-5)
        else:
            assert not change.any()
    assert len(changed) == len(settings["target_modules"]) and artifact.unmatched == ()


def test_scale(folder, unet, dense):
    change = dense(read_adapter(folder(), unet), "unet.mid_block.attentions.0.proj_in")
    assert torch.equal(change, torch.full((8, 6), 3.0, dtype=torch.float64))
    artifact = read_adapter(folder(use_rslora=True), unet)
    assert math.isclose(next(iter(artifact.deltas.values())).scale, 3 / math.sqrt(2))


@pytest.mark.parametrize(
    "options",
    [
        {"oft_block_size": 2},
        {"oft_block_size": 3, "target_modules": ["proj_in", "q"]},
        {"oft_block_size": 2, "use_cayley_neumann": False},
        {"oft_block_size": 2, "num_cayley_neumann_terms": 2},
        {"oft_block_size": 2, "num_cayley_neumann_terms": 3},
        {"oft_block_size": 2, "num_cayley_neumann_terms": 7},
        {"oft_block_size": 2, "block_share": True},
        {"oft_block_size": 0, "r": 2},
    ],
    ids=str,
)
def test_oft_equals_pefts_own_merge_and_comes_back(tmp_path, unet, options):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    model = Tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"target_modules": ["proj_in", "conv1", "q"], "bias": "none"} | options
    adapted = peft.get_peft_model(model, peft.OFTConfig(**settings))
    for name, parameter in adapted.named_parameters():
        if "oft_R" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path)
    weights = open_peft(tmp_path)
    artifact = read_adapter(weights, unet)
    uniform = "r" not in options
    if uniform:
        write_adapter(artifact, unet, tmp_path / "again", {}, format="peft")
        again = read_adapter(open_peft(tmp_path / "again"), unet)
        assert again.deltas.keys() == artifact.deltas.keys()
    merged = adapted.merge_and_unload().state_dict()
    for read in (artifact, again) if uniform else (artifact,):
        assert len(read.deltas) == len(settings["target_modules"]) and read.unmatched == ()
        for target, delta in read.deltas.items():
            name = target.name.removeprefix("unet.")
            rows = before[name].double().flatten(1)
            change = (merged[name] - before[name]).flatten(1).double()
            assert delta.kind == "oftv2" and change.norm() > 0.01
            assert torch.allclose(relative_change(delta, rows), change, atol=1e-5), name


@pytest.mark.parametrize("long", [True, False])
def test_text_encoder_in_both_spellings(folder, make_model, long):
    spelled = "encoder.layers.0.self_attn.q_proj"
    model = make_model({f"text_encoder.text_model.{spelled}": (4, 4), "unet.mid_block.q": (4, 4)})
    name = f"base_model.model.{'text_model.' if long else ''}{spelled}"
    weights = folder({f"{name}.lora_A.weight": torch.ones(2, 4), f"{name}.lora_B.weight": torch.ones(4, 2)})
    assert set(read_adapter(weights, model).deltas) == {Target(f"text_encoder.text_model.{spelled}")}


def test_the_text_encoder_is_told_by_shape(folder, make_model):
    spelled = "text_model.encoder.layers.0.self_attn.q_proj"
    model = make_model({f"text_encoder.{spelled}": (4, 4), f"text_encoder_2.{spelled}": (6, 6)})
    name = f"base_model.model.{spelled}"
    weights = folder({f"{name}.lora_A.weight": torch.ones(2, 6), f"{name}.lora_B.weight": torch.ones(6, 2)})
    assert set(read_adapter(weights, model).deltas) == {Target(f"text_encoder_2.{spelled}")}


def test_unmatched_and_contradicting(folder, unet):
    name = "base_model.model.nowhere"
    pair = {f"{name}.lora_A.weight": torch.ones(2, 6), f"{name}.lora_B.weight": torch.ones(8, 2)}
    assert read_adapter(folder(pair), unet).unmatched == ("nowhere",)
    with pytest.raises(SdkitError, match="proj_in has rank 2, its configuration says 4"):
        read_adapter(folder(r=4), unet)
    with pytest.raises(SdkitError, match="nowhere is incomplete: lora_B missing"):
        read_adapter(folder({f"{name}.lora_A.weight": torch.ones(2, 6)}), unet)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "lora_magnitude_vector missing"),
        ({"bias": "all"}, "trained biases"),
        ({"modules_to_save": ["conv_in"]}, "whole modules"),
        ({"layer_replication": [[0, 4]]}, "layer replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"init_lora_weights": "olora"}, "changes the base"),
        ({"init_lora_weights": "corda"}, "changes the base"),
        ({"peft_type": "OFT", "coft": True}, "held near the identity"),
        ({"peft_type": "OFT", "num_cayley_neumann_terms": 10**9}, "no usable value"),
        ({"lora_alpha": "big"}, "no usable value"),
        ({"rank_pattern": {"q": None}}, "no usable value"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"rank_pattern": {"(a+)+": 2}}, "too complicated"),
        ({"rank_pattern": {"(a|a)" * 30: 2}}, "too complicated"),
        ({"alpha_pattern": {".*.*.*.*.*x": 2}}, "too complicated"),
    ],
)
def test_refusals(folder, unet, config, reason):
    with pytest.raises(SdkitError, match=reason):
        read_adapter(folder(**config), unet)


def test_dora_magnitudes_need_their_pair(folder, unet):
    name = "base_model.model.mid_block.q.lora_magnitude_vector"
    with pytest.raises(SdkitError, match="is incomplete"):
        read_adapter(folder({name: torch.ones(6)}), unet)


def test_other_kinds_and_a_lone_file_say_why_not(folder, save):
    weights = folder(peft_type="BOFT")
    name, verdicts = recognise(weights)
    assert name is None and "BOFT" in verdicts["peft"].reason
    lone = save({"base_model.model.x.lora_A.weight": torch.ones(2, 2)})
    assert "open the folder" in recognise(lone)[1]["peft"].reason
    with pytest.raises(SdkitError, match="not an adapter in a known format") as error:
        read_adapter(lone)
    assert "open the folder" in error.value.hint


@pytest.mark.parametrize(
    "pattern", ["to_q", "attn1.to_q", r"attn\d.to_q", "to_(q|k)", r"mid_block\..*\.to_q", "^mid.*q"]
)
@pytest.mark.parametrize("module", ["mid_block.attn1.to_q", "mid_block.attn1.to_k", "xto_q", "to_q", "to_q.0"])
def test_patterns_match_as_pefts(pattern, module):
    other = pytest.importorskip("peft.utils.other", reason="peft is not installed")
    expected = 2.0 if other.get_pattern_key([pattern], module) == pattern else 1.0
    settings = LoraSettings.parse({"lora_alpha": 4, "alpha_pattern": {pattern: 8}}, Path("x"))
    assert settings.scale(module, 4) == (2.0 if pattern == module else expected)
