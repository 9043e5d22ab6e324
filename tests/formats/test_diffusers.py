from __future__ import annotations

import json

import pytest
import torch

from sdkit.adapters.artifact import Target
from sdkit.core.errors import SdkitError
from sdkit.formats import read_adapter, recognise

ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn"
SHAPES = {f"{ATTENTION}.{slot}": (8, 8) for slot in ("to_q", "to_k", "to_v", "to_out.0")}
SHAPES |= {f"{TEXT}.{slot}": (4, 4) for slot in ("q_proj", "k_proj", "v_proj", "out_proj")}


@pytest.fixture
def model(make_model):
    return make_model(SHAPES)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DOWN, UP = normal(2, 8), normal(8, 2, seed=1)
PRODUCT = UP.double() @ DOWN.double()


@pytest.mark.parametrize(
    ("down", "up", "slot"),
    [
        ("{a}.to_q.lora_A.weight", "{a}.to_q.lora_B.weight", "to_q"),
        ("{a}.to_q.lora_A.default.weight", "{a}.to_q.lora_B.default.weight", "to_q"),
        ("{a}.to_out.0.lora.down.weight", "{a}.to_out.0.lora.up.weight", "to_out.0"),
        ("{a}.to_k.lora_linear_layer.down.weight", "{a}.to_k.lora_linear_layer.up.weight", "to_k"),
        ("{a}.processor.to_v_lora.down.weight", "{a}.processor.to_v_lora.up.weight", "to_v"),
        ("{a}.processor.to_out_lora.down.weight", "{a}.processor.to_out_lora.up.weight", "to_out.0"),
        ("{bare}.processor.to_out_lora.down.weight", "{bare}.processor.to_out_lora.up.weight", "to_out.0"),
        ("unet._orig_mod.{bare}.to_q.lora_A.weight", "unet._orig_mod.{bare}.to_q.lora_B.weight", "to_q"),
        ("unet.base_model.model.{bare}.to_q.lora_A.weight", "unet.base_model.model.{bare}.to_q.lora_B.weight", "to_q"),
    ],
)
def test_spellings_of_the_unet(save, model, dense, down, up, slot):
    names = {"a": ATTENTION, "bare": ATTENTION.removeprefix("unet.")}
    weights = save({down.format(**names): DOWN, up.format(**names): UP})
    assert recognise(weights)[0] == "diffusers"
    artifact = read_adapter(weights, model)
    assert set(artifact.deltas) == {Target(f"{ATTENTION}.{slot}")} and artifact.unmatched == ()
    assert torch.allclose(dense(artifact, f"{ATTENTION}.{slot}"), PRODUCT)
    assert "scale 1" in artifact.notes[0]


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("{t}.out_proj.lora_A.weight", "{t}.out_proj.lora_B.weight"),
        ("{t}.out_proj.lora_linear_layer.down.weight", "{t}.out_proj.lora_linear_layer.up.weight"),
        ("{t}.to_out_lora.down.weight", "{t}.to_out_lora.up.weight"),
        ("{short}.out_proj.lora_A.weight", "{short}.out_proj.lora_B.weight"),
    ],
)
def test_spellings_of_the_text_encoder(save, model, down, up):
    names = {"t": TEXT, "short": TEXT.replace("text_model.", "")}
    artifact = read_adapter(save({down.format(**names): normal(2, 4), up.format(**names): normal(4, 2)}), model)
    assert set(artifact.deltas) == {Target(f"{TEXT}.out_proj")}


def pair(module: str) -> dict[str, torch.Tensor]:
    return {f"{module}.lora_A.weight": DOWN, f"{module}.lora_B.weight": UP}


@pytest.mark.parametrize("alpha", ["to_q.alpha", "to_q.lora.alpha", "processor.to_q_lora.alpha"])
def test_alpha_beside_the_factors(save, model, dense, alpha):
    artifact = read_adapter(save(pair(f"{ATTENTION}.to_q") | {f"{ATTENTION}.{alpha}": torch.tensor(1.0)}), model)
    assert torch.allclose(dense(artifact, f"{ATTENTION}.to_q"), PRODUCT / 2) and artifact.notes == ()


def test_metadata_in_the_header(save, model, dense):
    table = {"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_k": 1}, "unet.rank_pattern": {}}
    weights = save(pair(f"{ATTENTION}.to_q") | pair(f"{ATTENTION}.to_k"), {"lora_adapter_metadata": json.dumps(table)})
    artifact = read_adapter(weights, model)
    assert torch.allclose(dense(artifact, f"{ATTENTION}.to_q"), PRODUCT * 4)
    assert torch.allclose(dense(artifact, f"{ATTENTION}.to_k"), PRODUCT / 2)
    assert artifact.notes == ()


def test_unmatched(save, model):
    artifact = read_adapter(save(pair("unet.nowhere") | {"stray": torch.ones(2)} | pair(f"{ATTENTION}.to_q")), model)
    assert set(artifact.unmatched) == {"unet.nowhere", "stray"}


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        ({f"{ATTENTION}.to_q.lora_A.weight": DOWN}, {}, "to_q is incomplete: lora_B missing"),
        ({f"{ATTENTION}.to_q.lora_magnitude_vector": DOWN} | pair(f"{ATTENTION}.to_q"), {}, "no length for 8 output"),
        (
            {f"{ATTENTION}.to_q.dora_scale": DOWN} | pair(f"{ATTENTION}.to_q"),
            {},
            "LyCORIS' DoRA among diffusers' names",
        ),
        ({f"{ATTENTION}.to_q.lora.down.weight": DOWN} | pair(f"{ATTENTION}.to_q"), {}, "are the same factor"),
        ({f"{ATTENTION}.to_k.alpha": torch.tensor(1.0)} | pair(f"{ATTENTION}.to_q"), {}, "nothing that it scales"),
        (pair(f"{ATTENTION}.to_q"), {"lora_adapter_metadata": "{"}, "no JSON table"),
        (
            pair(f"{ATTENTION}.to_q"),
            {"lora_adapter_metadata": '{"unet.use_dora": true}'},
            "lora_magnitude_vector missing",
        ),
        (
            pair(f"{ATTENTION}.to_q"),
            {"lora_adapter_metadata": '{"unet.r": 16}'},
            "has rank 2, its configuration says 16",
        ),
    ],
)
def test_broken_files(save, model, tensors, metadata, reason):
    with pytest.raises(SdkitError, match=reason):
        read_adapter(save(tensors, metadata), model)


def tiny_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


@pytest.mark.parametrize("new", [True, False])
def test_equals_diffusers_and_peft(tmp_path, make_model, dense, new):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    pytest.importorskip("peft", reason="peft is not installed")
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from sdkit.weights import open_weights

    unet = tiny_unet()
    shapes = {
        f"unet.{name.removesuffix('.weight')}": tuple(value.shape)
        for name, value in unet.named_parameters()
        if name.endswith(".weight")
    }
    config = LoraConfig(
        r=4,
        lora_alpha=2 if new else 4,
        target_modules=["to_q", "to_out.0", "conv1", "proj_in"],
        rank_pattern={"conv1": 2} if new else {},
        alpha_pattern={"to_q": 16} if new else {},
    )
    unet.add_adapter(config)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    state = get_peft_model_state_dict(unet)
    if new:
        StableDiffusionPipeline.save_lora_weights(
            tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=config.to_dict()
        )
    else:
        layers = convert_state_dict_to_diffusers(state)
        StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    weights = open_weights(tmp_path / "pytorch_lora_weights.safetensors")
    artifact = read_adapter(weights, make_model(shapes))
    assert artifact.unmatched == ()
    before = {name.replace(".base_layer", ""): value.clone() for name, value in unet.state_dict().items()}
    unet.fuse_lora()
    after = {name.replace(".base_layer", ""): value for name, value in unet.state_dict().items()}
    changed = {name for name in before if "lora_" not in name and not torch.equal(before[name], after[name])}
    assert {target.name for target in artifact.deltas} == {f"unet.{name}" for name in changed} and len(changed) > 8
    for name in changed:
        module = f"unet.{name.removesuffix('.weight')}"
        assert torch.allclose(
            dense(artifact, module).reshape(before[name].shape).float(), after[name] - before[name], atol=1e-4
        )


@pytest.mark.parametrize("header", [True, False])
def test_doras_go_through_diffusers_both_ways(tmp_path, header):
    """Its file, merged here, is what its own U-Net computes; and it takes what is written here for what it meant."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    pytest.importorskip("peft", reason="peft is not installed")
    from diffusers import StableDiffusionPipeline
    from header_files import weights_of
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    import sdkit
    from sdkit.families import identify
    from sdkit.formats import write_adapter
    from sdkit.weights import open_weights

    unet = tiny_unet()
    plain = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    config = LoraConfig(r=4, lora_alpha=2 if header else 4, target_modules=["to_q", "conv1", "proj_in"], use_dora=True)
    unet.add_adapter(config)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    settings = {"unet_lora_adapter_metadata": config.to_dict()} if header else {}
    layers = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **settings)
    theirs, ours = tmp_path / "pytorch_lora_weights.safetensors", tmp_path / "ours.safetensors"
    model = identify(weights_of({f"unet/{name}": tuple(tensor.shape) for name, tensor in plain.items()}))
    with open_weights(theirs) as weights:
        artifact = read_adapter(weights, model)
        assert artifact.unmatched == () and {delta.kind for delta in artifact.deltas.values()} == {"dora"}
        write_adapter(artifact, model, ours, {}, format="diffusers")
    again = load_file(ours)
    assert again.keys() == load_file(theirs).keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in load_file(theirs).items())

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    text = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(2))

    def picture(model):
        with torch.no_grad():
            return model(noise, torch.tensor([3.0]), text).sample

    fresh, merged = tiny_unet(), tiny_unet()
    fresh.load_state_dict(plain)
    state, alphas, read = StableDiffusionPipeline.lora_state_dict(ours, return_lora_metadata=True)
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, fresh, metadata=read)
    assert torch.equal(picture(fresh), picture(unet))

    merged.load_state_dict(plain)
    merged.save_pretrained(tmp_path / "unet")
    sdkit.merge(tmp_path / "unet", theirs, tmp_path / "merged")
    merged = type(merged).from_pretrained(tmp_path / "merged")
    assert torch.allclose(picture(merged), picture(unet), atol=1e-4)
    assert not torch.allclose(picture(merged), picture(tiny_unet()), atol=1e-2)
