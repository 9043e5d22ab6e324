"""Layouts as data: reading one back from the names it generates, blocks, flat names, and the reference models."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdkit.core.errors import UsageError
from sdkit.families import FAMILIES, reference
from sdkit.families.clip import TextLayout, read_text, text_parameters
from sdkit.families.kohya import flat_modules
from sdkit.families.parameter import Names, Parameter
from sdkit.families.unet import UNetLayout, unet_blocks, unet_parameters
from sdkit.families.unet_header import read_unet
from sdkit.families.vae import VaeLayout, read_vae, vae_parameters

TABLES = ("_embedding.weight", "shared.weight", "relative_attention_bias.weight")  # looked up, not multiplied with


@st.composite
def unet_layouts(draw):
    levels = draw(st.integers(1, 4))
    down = [draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)) for _ in range(levels)]
    up = [draw(st.lists(st.integers(0, 3), min_size=len(d) + 1, max_size=len(d) + 1)) for d in reversed(down)]
    resnets = draw(st.integers(0, 2))
    middle = draw(st.integers(1, 3)) if resnets == 2 else 0
    if not middle and not any(map(any, down)) and not any(map(any, up)):
        up[0][0] = 1
    return UNetLayout(
        channels=tuple(draw(st.lists(st.integers(1, 64), min_size=levels, max_size=levels))),
        down=tuple(map(tuple, down)),
        middle=middle,
        middle_resnets=resnets,
        up=tuple(map(tuple, up)),
        in_channels=draw(st.integers(1, 9)),
        out_channels=draw(st.integers(1, 9)),
        time_dim=draw(st.integers(1, 99)),
        cross_dim=draw(st.integers(1, 99)),
        linear=draw(st.booleans()),
        label_dim=draw(st.integers(0, 9)),
    )


def names_in(parameters, naming):
    """The tensors a file in this naming has."""
    shapes = {}
    for row in parameters:
        shape = (3 * row.shape[0], *row.shape[1:]) if row.rows else row.shape
        shapes[row.ldm if naming == "ldm" else row.hub] = shape[::-1] if row.transposed else shape
    return shapes


@settings(max_examples=80, deadline=None)
@given(unet_layouts())
def test_any_unet_is_read_back_from_its_own_names(layout):
    parameters = unet_parameters(layout)
    for naming in ("ldm", "diffusers"):
        shapes = names_in(parameters, naming)
        assert len(shapes) == len(parameters)
        assert read_unet(Names(shapes), naming) == layout


@settings(max_examples=40, deadline=None)
@given(unet_layouts())
def test_every_step_of_the_walk_has_a_block(layout):
    blocks = unet_blocks(layout)
    rest = ("time_embedding.", "add_embedding.", "class_embedding.")
    for parameter in unet_parameters(layout):
        parts = parameter.hub.split(".")
        owner = [blocks[".".join(parts[:n])] for n in range(1, len(parts)) if ".".join(parts[:n]) in blocks]
        assert len(owner) == (0 if parameter.hub.startswith(rest) else 1), parameter.hub
        if owner and parameter.ldm.startswith(("input_blocks.", "output_blocks.")):
            part, number = parameter.ldm.split(".")[:2]
            assert owner == [f"{'IN' if part == 'input_blocks' else 'OUT'}{int(number):02d}"]


@settings(max_examples=40, deadline=None)
@given(unet_layouts())
def test_flat_names_of_a_unet_never_collide(layout):
    parameters = unet_parameters(layout)
    modules = flat_modules("unet", "lora_unet", parameters, ldm=True)
    weights = [p.hub for p in parameters if p.hub.endswith(".weight")]
    assert set(modules.values()) == {f"unet.{name.removesuffix('.weight')}" for name in weights}


def test_a_collision_of_flat_names_is_an_error():
    rows = [Parameter("a.b_c.weight", "x.weight", (1, 1)), Parameter("a.b.c.weight", "y.weight", (1, 1))]
    with pytest.raises(ValueError, match="a_b_c could be unet.a.b_c or unet.a.b.c"):
        flat_modules("unet", "lora_unet", rows)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("naming", ["ldm", "diffusers"])
def test_an_autoencoder_is_read_back_from_its_own_names(naming, attention, quantised):
    layout = VaeLayout((16, 32, 64), (1, 2, 1), 3, 5, 7, attention, quantised)
    assert read_vae(Names(names_in(vae_parameters(layout), naming)), naming) == layout


@pytest.mark.parametrize("projection", [0, 24])
@pytest.mark.parametrize("style", ["hf", "openclip"])
def test_a_text_encoder_is_read_back_from_its_own_names(style, projection):
    layout = TextLayout(16, 48, 3, 100, 12, projection)
    shapes = names_in(text_parameters(layout, style), "ldm")
    assert read_text(Names(shapes, "text_model." if style == "hf" else ""), style) == layout
    if projection and style == "openclip":
        assert shapes["text_projection"] == (16, 24)


@pytest.mark.parametrize(
    ("family", "module", "block"),
    [
        ("sd1", "unet.conv_in", "IN00"),
        ("sd1", "unet.down_blocks.0.resnets.0.conv1", "IN01"),
        ("sd1", "unet.down_blocks.0.downsamplers.0.conv", "IN03"),
        ("sd1", "unet.down_blocks.1.attentions.0.proj_in", "IN04"),
        ("sd1", "unet.down_blocks.3.resnets.1.conv2", "IN11"),
        ("sd1", "unet.mid_block.attentions.0.proj_out", "M00"),
        ("sd1", "unet.up_blocks.0.resnets.0.conv1", "OUT00"),
        ("sd1", "unet.up_blocks.0.upsamplers.0.conv", "OUT02"),
        ("sd1", "unet.up_blocks.3.attentions.2.proj_in", "OUT11"),
        ("sd1", "unet.conv_out.weight", "OUT11"),
        ("sd2", "unet.up_blocks.3.attentions.2.proj_in", "OUT11"),
        ("sdxl", "unet.down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2", "IN08"),
        ("sdxl", "unet.up_blocks.0.attentions.0.proj_in", "OUT00"),
        ("sdxl", "unet.conv_norm_out", "OUT08"),
        ("sdxl", "unet.time_embedding.linear_1", "BASE"),
        ("sdxl", "unet.add_embedding.linear_1", "BASE"),
        ("sdxl", "text_encoder.text_model.encoder.layers.0.mlp.fc1", "BASE"),
    ],
)
def test_block_names_are_those_of_the_web_uis(family, module, block):
    assert reference(family).block_of(module) == block


@pytest.mark.parametrize(("family", "count"), [("sd1", 25), ("sd2", 25), ("sdxl", 19), ("sdxl-refiner", 25)])
def test_every_block_of_a_family_exists(family, count):
    assert len(set(reference(family).block_names.values())) == count


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
         "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
         "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("lora_unet_input_blocks_3_0_op", "unet.down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_output_blocks_2_2_conv", "unet.up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_middle_block_0_in_layers_2", "unet.mid_block.resnets.0.conv1"),
        ("lora_unet_time_embed_0", "unet.time_embedding.linear_1"),
        ("lora_unet_label_emb_0_2", "unet.add_embedding.linear_2"),
        ("lora_unet_input_blocks_0_0", "unet.conv_in"),
        ("lora_unet_out_2", "unet.conv_out"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ("lora_te2_text_model_encoder_layers_31_self_attn_v_proj",
         "text_encoder_2.text_model.encoder.layers.31.self_attn.v_proj"),
        ("lora_te2_text_projection", "text_encoder_2.text_projection"),
    ],
)  # fmt: skip
def test_kohya_names_of_sdxl(name, module):
    assert reference("sdxl").kohya_modules[name] == module


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_kohya_modules_are_exactly_the_layers_with_weights(family):
    model = reference(family)
    modules = {
        name.removesuffix(".weight")
        for name in model.places
        if name.endswith(".weight") and not name.endswith(TABLES) and not name.startswith("vae.")
    }
    named = set(model.kohya_modules.values())
    assert named - set(model.stacks) == modules
    stacked = {module for stack in model.stacks.values() for module, _ in stack.members}
    assert named & set(model.stacks) == set(model.stacks) and stacked <= modules
    assert set(model.native_modules) - set(model.stacks) >= modules - stacked


def test_variants_differ_from_the_base_in_the_first_convolution_only():
    base, depth = reference("sd2").places, reference("sd2", "depth").places
    assert [name for name in base if base[name] != depth[name]] == ["unet.conv_in.weight"]
    assert depth["unet.conv_in.weight"].shape == (320, 5, 3, 3)


@pytest.mark.parametrize(
    ("family", "variant", "hint"), [("sd9", "base", "sd1, sd2"), ("sdxl", "depth", "base, inpainting")]
)
def test_asking_for_what_does_not_exist_names_what_does(family, variant, hint):
    with pytest.raises(UsageError) as error:
        reference(family, variant)
    assert hint in error.value.hint


def test_a_reference_is_made_once():
    assert reference("sd1") is reference("sd1")
