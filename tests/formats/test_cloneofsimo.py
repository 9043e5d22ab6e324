from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sdkit.adapters.artifact import Target
from sdkit.adapters.computed import Computed, computed_artifact
from sdkit.core.errors import SdkitError
from sdkit.families import reference
from sdkit.formats import adapter_family, read_adapter, recognise, write_adapter
from sdkit.formats.cloneofsimo import positions
from sdkit.weights import DTYPES, TensorInfo, Weights, open_weights
from sdkit.weights.reader import Container

DISNEY = Path(__file__).parents[1] / "data" / "lora_disney.safetensors"


@pytest.fixture
def disney():
    with open_weights(DISNEY) as weights:
        yield weights


def test_every_index_of_a_real_file_has_the_shape_of_its_module(disney, make_model, sd1_shapes):
    name, _ = recognise(disney)
    assert name == "cloneofsimo"
    artifact = read_adapter(disney, make_model(sd1_shapes))
    assert artifact.unmatched == () and len(artifact.deltas) == 144 + 48
    assert {target.module for target in artifact.deltas} == set(sd1_shapes)
    for target, delta in artifact.deltas.items():
        assert delta.shape == sd1_shapes[target.module]
        assert (delta.scale, delta.rank) == (1.0, 1)


def test_tokens_and_family(disney):
    artifact = read_adapter(disney)
    assert [(row.token, row.component, row.info.shape) for row in artifact.tokens] == [
        ("<s1>", "text_encoder", (768,)),
        ("<s2>", "text_encoder", (768,)),
    ]
    assert len(artifact.deltas) == 192
    assert adapter_family(disney)[0] == "sd1"


def test_the_frozen_order(make_model, sd1_shapes):
    model = make_model(sd1_shapes)
    unet = positions(model, "unet", frozenset(["CrossAttention", "GEGLU"]))
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    assert unet[:9] == [
        f"{block}.{slot}"
        for slot in (
            *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
            "ff.net.0.proj",
            *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
        )
    ]
    firsts = [name.split(".transformer_blocks")[0].removeprefix("unet.") for name in unet[::9]]
    assert firsts == [
        *(f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)),
        *(f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)),
        "mid_block.attentions.0",
    ]
    text = positions(model, "text_encoder", frozenset(["CLIPAttention"]))
    assert [name.rpartition(".")[2] for name in text[:4]] == ["k_proj", "v_proj", "q_proj", "out_proj"]
    assert ".layers.2." in text[8] and ".layers.11." in text[-1]


def test_the_factors_arrive_at_their_module(disney, make_model, sd1_shapes, dense):
    from safetensors.torch import load_file

    file = load_file(DISNEY)
    artifact = read_adapter(disney, make_model(sd1_shapes))
    block = "down_blocks.0.attentions.1.transformer_blocks.0"
    for index, module in ((13, f"unet.{block}.ff.net.0.proj"), (15, f"unet.{block}.attn2.to_k")):
        expected = file[f"unet:{index}:up"].double() @ file[f"unet:{index}:down"].double()
        assert torch.allclose(dense(artifact, module), expected, atol=1e-12)


def pair(component: str, index: int, out: int, columns: int) -> dict[str, torch.Tensor]:
    return {f"{component}:{index}:up": torch.ones(out, 1), f"{component}:{index}:down": torch.ones(1, columns)}


@pytest.fixture
def small(make_model):
    block = "unet.mid_block.attentions.0.transformer_blocks.0"
    attention = ("to_q", "to_k", "to_v", "to_out.0")
    shapes = {f"{block}.{name}.{slot}": (4, 4) for name in ("attn1", "attn2") for slot in attention}
    return make_model(shapes | {f"{block}.ff.net.0.proj": (32, 4)})


def test_without_geglu_the_numbers_skip_the_feed_forward(save, small):
    tensors = {name: tensor for i in range(8) for name, tensor in pair("unet", i, 4, 4).items()}
    artifact = read_adapter(save(tensors, {"unet": '["CrossAttention"]'}), small)
    assert len(artifact.deltas) == 8
    assert Target("unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj") not in artifact.deltas


@pytest.mark.parametrize(
    ("change", "metadata", "reason"),
    [
        ({"unet:9:up": torch.ones(4, 1), "unet:9:down": torch.ones(1, 4)}, {}, "numbers 10 pairs, the model has 9"),
        ({"unet:4:up": None, "unet:4:down": None}, {}, "numbers 8 pairs"),
        ({"unet:4:up": None}, {}, "unet:4 is incomplete: it has down only"),
        ({"unet:4:up": torch.ones(4, 1)}, {}, r"unet:4 changes a weight of shape \[4, 4\]"),
        ({}, {"unet": '["CrossAttention", "ResnetBlock2D"]'}, "layers of ResnetBlock2D"),
        ({}, {"unet": "no list"}, "no JSON list"),
    ],
)
def test_broken_files(save, small, change, metadata, reason):
    tensors = {name: t for i in range(9) for name, t in pair("unet", i, 32 if i == 4 else 4, 4).items()} | change
    with pytest.raises(SdkitError, match=reason):
        read_adapter(save({name: t for name, t in tensors.items() if t is not None}, metadata), small)


def test_a_model_without_the_component_leaves_it_unmatched(save, small):
    assert read_adapter(save(pair("text_encoder", 0, 4, 4)), small).unmatched == ("text_encoder:0",)


def test_the_list_in_an_old_pickle(tmp_path, small):
    shapes = [shape for i in range(9) for shape in ((32 if i == 4 else 4, 1), (1, 4))]
    path = tmp_path / "lora.pt"
    path.write_bytes(bytes(4 * 64 * len(shapes)))
    tensors = {str(i): TensorInfo(str(i), DTYPES["F32"], shape, 256 * i) for i, shape in enumerate(shapes)}
    weights = Weights(path, Container.PICKLE, [path], tensors, {})
    assert recognise(weights)[0] == "cloneofsimo"
    artifact = read_adapter(weights, small)
    assert len(artifact.deltas) == 9 and "does not say which component" in artifact.notes[0]


def test_the_real_file_is_written_again_tensor_by_tensor(tmp_path):
    artifact = read_adapter(open_weights(DISNEY), reference("sd1"))
    write_adapter(artifact, reference("sd1"), tmp_path / "a.safetensors", {}, format="cloneofsimo")
    before, after = load_file(DISNEY), load_file(tmp_path / "a.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with safe_open(DISNEY, "pt") as one, safe_open(tmp_path / "a.safetensors", "pt") as other:
        wanted, found = one.metadata(), other.metadata()
    ranks = {key for key in wanted if key.endswith(":rank") or key.startswith("<")}
    assert all(found[key] == wanted[key] for key in ranks)
    assert {*json.loads(found["unet"])} == {*json.loads(wanted["unet"])}


def test_a_scale_goes_into_the_factors_and_missing_layers_are_refused(tmp_path):
    model = reference("sd1")
    modules = positions(model, "text_encoder", frozenset(["CLIPAttention"]))
    factors = {"up": torch.randn(768, 2), "down": torch.randn(2, 768)}
    changes = {Target(module): Computed.of(factors, 0.3) for module in modules}
    write_adapter(computed_artifact("a", changes, DTYPES["F16"]), model, tmp_path / "a", {}, format="cloneofsimo")
    read = read_adapter(open_weights(tmp_path / "a"), model)
    assert {delta.scale for delta in read.deltas.values()} == {1.0}
    part = computed_artifact("b", dict(list(changes.items())[1:]), DTYPES["F16"])
    with pytest.raises(SdkitError, match="number all attention layers"):
        write_adapter(part, model, tmp_path / "b", {}, format="cloneofsimo")
