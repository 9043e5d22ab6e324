"""The rules against the libraries that define the names: models on the meta device, and single-file conversion."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sdkit.families import identify, reference
from sdkit.families.clip import TextLayout, text_parameters
from sdkit.families.reference import published_config

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

PUBLISHED = [("sd1", "base"), ("sd1", "inpainting"), ("sd2", "base"), ("sd2", "inpainting")]
PUBLISHED += [("sdxl", "base"), ("sdxl", "inpainting"), ("sdxl-refiner", "base")]


def component_shapes(model, component):
    prefix = component + "."
    return {name.removeprefix(prefix): place.shape for name, place in model.places.items() if name.startswith(prefix)}


def state_shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def nested(shapes):
    """transformers 5 leaves out the nesting that published folders have."""
    outside = ("text_model.", "text_projection.")
    return {name if name.startswith(outside) else f"text_model.{name}": shape for name, shape in shapes.items()}


def meta_text_encoder(folder, component):
    config = published_config(folder, component)
    kind = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        return kind(transformers.CLIPTextConfig(**config))


@pytest.mark.parametrize(("family", "variant"), PUBLISHED)
def test_unet_and_vae_have_the_names_and_shapes_of_diffusers(family, variant):
    model, folder = reference(family, variant), f"{family}/{variant}"
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(published_config(folder, "unet"))
        vae = diffusers.AutoencoderKL.from_config(published_config(folder, "vae"))
    assert component_shapes(model, "unet") == state_shapes(unet)
    assert component_shapes(model, "vae") == state_shapes(vae)


@pytest.mark.parametrize(
    ("family", "folder", "component"),
    [
        ("sd1", "text_encoder", "text_encoder"),
        ("sd2", "text_encoder", "text_encoder"),
        ("sdxl", "text_encoder", "text_encoder"),
        ("sdxl", "text_encoder_2", "text_encoder_2"),
        ("sdxl-refiner", "text_encoder", "text_encoder_2"),
    ],
)
def test_text_encoders_have_the_names_and_shapes_of_transformers(family, folder, component):
    expected = nested(state_shapes(meta_text_encoder(f"{family}/base", folder)))
    assert component_shapes(reference(family), component) == expected


def tagged(model):
    """A checkpoint of tiny tensors, each parameter filled with its own number, as a single file would store it."""
    tags = {name: float(number) for number, name in enumerate(model.places, 1)}
    tensors = {}
    for name, place in model.places.items():
        part = torch.full((1,) * len(place.shape), tags[name])
        tensors[place.key] = torch.cat([tensors[place.key], part]) if place.key in tensors else part
    return tensors, tags


def assert_same_tags(converted, tags, component):
    expected = {
        name.removeprefix(f"{component}."): tag for name, tag in tags.items() if name.startswith(f"{component}.")
    }
    assert {name: tensor.item() for name, tensor in converted.items()} == expected


@pytest.mark.parametrize(("family", "variant"), PUBLISHED)
def test_diffusers_converts_every_key_to_the_same_name(family, variant):
    from diffusers.loaders import single_file_utils as oracle

    tensors, tags = tagged(reference(family, variant, "ldm"))
    folder = f"{family}/{variant}"
    unet = oracle.convert_ldm_unet_checkpoint(dict(tensors), published_config(folder, "unet"))
    assert_same_tags(unet, tags, "unet")
    vae = oracle.convert_ldm_vae_checkpoint(dict(tensors), published_config(folder, "vae"))
    assert_same_tags(vae, tags, "vae")


@pytest.mark.parametrize(
    ("family", "component", "prefix"),
    [
        ("sd2", "text_encoder", "cond_stage_model.model."),
        ("sdxl", "text_encoder_2", "conditioner.embedders.1.model."),
        ("sdxl-refiner", "text_encoder_2", "conditioner.embedders.0.model."),
    ],
)
def test_diffusers_converts_openclip_to_the_same_names(family, component, prefix):
    from diffusers.loaders import single_file_utils as oracle

    tensors, tags = tagged(reference(family, naming="ldm"))
    stand_in = SimpleNamespace(config=SimpleNamespace(hidden_size=1))
    assert_same_tags(oracle.convert_open_clip_checkpoint(stand_in, dict(tensors), prefix), tags, component)


def test_diffusers_transposes_the_projection_as_the_rules_do():
    from diffusers.loaders import single_file_utils as oracle

    layout = TextLayout(width=2, inner=4, layers=1, vocabulary=5, positions=3, projection=6)
    (row,) = [row for row in text_parameters(layout, "openclip") if row.transposed]
    stored = torch.arange(12.0).reshape(2, 6)
    assert stored.shape == row.shape[::-1]
    converted = oracle.convert_open_clip_checkpoint(None, {f"te.{row.ldm}": stored}, "te.")
    assert torch.equal(converted[row.hub], stored.T)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_diffusers_converts_clip_to_the_same_names(family):
    from diffusers.loaders import single_file_utils as oracle

    tensors, tags = tagged(reference(family, naming="ldm"))
    assert_same_tags(oracle.convert_ldm_clip_checkpoint(dict(tensors)), tags, "text_encoder")


TINY = {
    "block_out_channels": (64, 96, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": 32,
    "norm_num_groups": 16,
}
TINY_XL = TINY | {
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 3),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
TINY_REFINER = TINY_XL | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
TINY_SD2 = TINY | {
    "use_linear_projection": True,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


@pytest.mark.parametrize("prefix", ["", "unet/"])
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("sd1", TINY),
        ("sd1", TINY | {"layers_per_block": 2}),
        ("sd2", TINY_SD2),
        ("sd2", TINY_SD2 | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 64}),
        ("sdxl", TINY_XL),
        ("sdxl-refiner", TINY_REFINER),
    ],
)
def test_small_models_of_the_same_structure_are_recognised_whole(make_weights, prefix, family, config):
    with torch.device("meta"):
        shapes = state_shapes(diffusers.UNet2DConditionModel(**config))
    model = identify(make_weights({prefix + name: shape for name, shape in shapes.items()}))
    assert (model.family, model.naming, model.components) == (family, "diffusers", ("unet",))
    assert component_shapes(model, "unet") == shapes
    assert {place.key for place in model.places.values()} == {prefix + name for name in shapes}
    assert model.unclaimed == ()
    assert model.variant == ("unclip" if "class_embed_type" in config else "base")
