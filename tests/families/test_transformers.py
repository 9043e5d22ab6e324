"""SD3, FLUX and Z-Image against diffusers: names, shapes, and every row where diffusers' own converters put it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdkit.families import identify, reference
from sdkit.families.configs import transformer_layout
from sdkit.families.flux2_transformer import Flux2Layout
from sdkit.families.flux_transformer import FluxLayout
from sdkit.families.parameter import Names
from sdkit.families.parts import Part, find_parts
from sdkit.families.reference import published_config
from sdkit.families.t5 import T5Layout, read_t5
from sdkit.families.z_image_transformer import ZImageLayout

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

FLUX = {"num_layers": 2, "num_single_layers": 3, "attention_head_dim": 4, "num_attention_heads": 3}
FLUX |= {"in_channels": 8, "joint_attention_dim": 10, "pooled_projection_dim": 6, "guidance_embeds": True}
FLUX2 = {"num_layers": 2, "num_single_layers": 3, "attention_head_dim": 4, "num_attention_heads": 3}
FLUX2 |= {"in_channels": 8, "joint_attention_dim": 10, "axes_dims_rope": (1, 1, 1, 1)}
Z_IMAGE = {"in_channels": 4, "dim": 12, "n_layers": 3, "n_refiner_layers": 2, "n_heads": 3, "n_kv_heads": 3}
Z_IMAGE |= {"cap_feat_dim": 10, "axes_dims": [2, 1, 1]}
SD3 = {"num_layers": 3, "attention_head_dim": 4, "num_attention_heads": 2, "caption_projection_dim": 8}
SD3 |= {"in_channels": 4, "out_channels": 4, "joint_attention_dim": 10, "pooled_projection_dim": 6}
SD3 |= {"patch_size": 2, "pos_embed_max_size": 3, "sample_size": 4}
SD35 = SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
MODELS = {
    "flux": (diffusers.FluxTransformer2DModel, FLUX),
    "schnell": (diffusers.FluxTransformer2DModel, FLUX | {"guidance_embeds": False}),
    "flux2": (diffusers.Flux2Transformer2DModel, FLUX2),
    "klein": (diffusers.Flux2Transformer2DModel, FLUX2 | {"guidance_embeds": False}),
    "z-image": (diffusers.ZImageTransformer2DModel, Z_IMAGE),
    "sd3": (diffusers.SD3Transformer2DModel, SD3),
    "sd3.5": (diffusers.SD3Transformer2DModel, SD35),
}

# Their layouts are read off headers alone.
WITHOUT_CONFIG = {
    "flux2": Flux2Layout(12, 4, 36, 2, 3, 8, 8, 10, 256, guidance=True),
    "klein": Flux2Layout(12, 4, 36, 2, 3, 8, 8, 10, 256, guidance=False),
    "z-image": ZImageLayout(12, 4, 32, 3, 2, 4, 10, 256, 1024, 12),
}
FAMILY = {"schnell": "flux", "sd3.5": "sd3", "klein": "flux2"}


def small(name):
    """A small model of diffusers', on no device, and the layout its configuration describes."""
    kind, config = MODELS[name]
    with torch.device("meta"):
        model = kind(**config)
    if name in WITHOUT_CONFIG:
        return model, WITHOUT_CONFIG[name]
    return model, transformer_layout({**model.config, "_class_name": kind.__name__})


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def single_file(layout, *, narrow=False):
    """A single file of this layout whose every number is another one, and the parameters it should divide into.

    Narrow ones have a single column, which is enough to see where each row goes.
    """
    tensors, start = {}, 0
    table = layout.parameters()
    for row in table:
        if row.ldm not in tensors:
            rows, columns = row.height if row.rows else row.shape[0], row.shape[1:]
            shape = (rows, *(1 for _ in columns)) if narrow else (rows, *columns)
            count = torch.Size(shape).numel()
            tensors[row.ldm] = torch.arange(start, start + count, dtype=torch.float64).reshape(shape)
            start += count
    parts = {}
    for row in table:
        part = tensors[row.ldm][slice(*row.rows)] if row.rows else tensors[row.ldm]
        parts[row.hub] = torch.cat(part.chunk(2)[::-1]) if row.swapped else part
    return tensors, parts


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_those_of_diffusers(name):
    model, layout = small(name)
    assert {row.hub: row.shape for row in layout.parameters()} == shapes_of(model)


@pytest.mark.parametrize("name", MODELS)
def test_diffusers_divides_a_single_file_into_the_same_rows(name):
    from diffusers.loaders import single_file_utils as oracle

    _, layout = small(name)
    convert = oracle.convert_sd3_transformer_checkpoint_to_diffusers
    if isinstance(layout, Flux2Layout):
        convert = oracle.convert_flux2_transformer_checkpoint_to_diffusers
    elif isinstance(layout, ZImageLayout):
        convert = oracle.convert_z_image_transformer_checkpoint_to_diffusers
    elif isinstance(layout, FluxLayout):  # the oracle knows the published width alone
        convert = oracle.convert_flux_transformer_checkpoint_to_diffusers
        layout = replace(layout, width=3072, inner=12288, head=128)
    tensors, expected = single_file(layout, narrow=True)
    converted = convert(dict(tensors))
    assert set(converted) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(converted[key], tensor), key


@pytest.mark.parametrize("prefix", ["transformer/", ""])
@pytest.mark.parametrize("name", MODELS)
def test_a_small_model_is_recognised_whole_in_diffusers_names(make_weights, name, prefix):
    module, layout = small(name)
    shapes = {prefix + key: shape for key, shape in shapes_of(module).items()}
    model = identify(make_weights(shapes))
    family = FAMILY.get(name, name)
    assert (model.family, model.naming, model.components, model.faults) == (family, "diffusers", ("transformer",), ())
    assert model.unclaimed == () and {place.key for place in model.places.values()} == set(shapes)
    found = find_parts(shapes).transformer
    assert found is not None and found.layout == layout


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
@pytest.mark.parametrize("name", MODELS)
def test_a_small_model_is_recognised_whole_in_its_makers_names(make_weights, name, prefix):
    _, layout = small(name)
    shapes = {prefix + key: tuple(tensor.shape) for key, tensor in single_file(layout)[0].items()}
    model = identify(make_weights(shapes))
    assert (model.naming, model.faults, model.unclaimed) == ("ldm", (), ())
    assert find_parts(shapes).transformer == Part("ldm", prefix, layout)


@pytest.mark.parametrize(("family", "folder"), [("flux", "flux/dev"), ("flux", "flux/schnell"), ("sd3", "sd3/medium")])
def test_published_configurations_describe_the_published_models(family, folder):
    config = published_config(folder, "transformer")
    kind = getattr(diffusers, config["_class_name"])
    with torch.device("meta"):
        module = kind.from_config(config)
    places = reference(family, folder.partition("/")[2]).places
    assert shapes_of(module) == {
        name.removeprefix("transformer."): place.shape
        for name, place in places.items()
        if name.startswith("transformer.")
    }


@pytest.mark.parametrize(
    ("variant", "config"),
    [
        ("3.5-medium", {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))}),
        (
            "3.5-large",
            {"qk_norm": "rms_norm", "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432},
        ),
    ],
)
def test_the_sizes_of_35_are_those_of_its_published_configuration(variant, config):
    """As https://huggingface.co/stabilityai/stable-diffusion-3.5-medium and -large have them."""
    with torch.device("meta"):
        module = diffusers.SD3Transformer2DModel.from_config(
            {**published_config("sd3/medium", "transformer"), **config}
        )
    places = reference("sd3", variant).places
    assert shapes_of(module) == {
        name.removeprefix("transformer."): place.shape
        for name, place in places.items()
        if name.startswith("transformer.")
    }


@pytest.mark.parametrize(
    ("variant", "config"),
    [
        ("dev", {}),
        (
            "klein-4b",
            {"num_attention_heads": 24, "num_layers": 5, "num_single_layers": 20, "joint_attention_dim": 7680},
        ),
        ("klein-9b", {"num_attention_heads": 32, "num_single_layers": 24, "joint_attention_dim": 12288}),
    ],
)
def test_the_sizes_of_flux2_are_those_of_its_published_configurations(variant, config):
    """As https://huggingface.co/black-forest-labs/FLUX.2-dev (diffusers' defaults) and FLUX.2-klein-… have them."""
    with torch.device("meta"):
        module = diffusers.Flux2Transformer2DModel(**config, guidance_embeds=variant == "dev")
    places = reference("flux2", variant).places
    assert {name.removeprefix("transformer."): place.shape for name, place in places.items()} == shapes_of(module)


def test_the_sizes_of_z_image_are_those_of_its_published_configuration():
    """As https://huggingface.co/Tongyi-MAI/Z-Image-Turbo has it: diffusers' defaults."""
    with torch.device("meta"):
        module = diffusers.ZImageTransformer2DModel()
    places = reference("z-image").places
    assert {name.removeprefix("transformer."): place.shape for name, place in places.items()} == shapes_of(module)


def test_z_image_is_not_taken_for_lumina(make_weights):
    """Both call the text's first layers alike; a file that is not whole is named by what only Z-Image has."""
    model = identify(make_weights({"cap_embedder.0.weight": (8,), "layers.0.adaLN_modulation.0.weight": (8, 4)}))
    assert (model.family, model.places) == ("z-image", {})


def test_t5_has_the_names_and_shapes_of_transformers():
    layout = T5Layout(width=12, attention=8, heads=2, inner=20, layers=2, vocabulary=30, buckets=5)
    config = transformers.T5Config(
        vocab_size=30, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=2, relative_attention_num_buckets=5,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        shapes = shapes_of(transformers.T5EncoderModel(config))
    shapes.pop("encoder.embed_tokens.weight", None)  # the same tensor as `shared`
    assert {row.hub: row.shape for row in layout.parameters()} == shapes
    assert read_t5(Names(shapes)) == layout


def test_the_last_modulation_is_swapped_and_the_rest_is_not():
    places = reference("sd3", naming="ldm").places
    swapped = {
        name.removesuffix(".weight") for name, place in places.items() if place.swapped and name.endswith("weight")
    }
    assert swapped == {"transformer.norm_out.linear", "transformer.transformer_blocks.23.norm1_context.linear"}
    assert not any(place.swapped for place in reference("sd3").places.values())


@pytest.mark.parametrize("broken", ["img_in.weight", "txt_in.weight", "final_layer.linear.weight"])
def test_a_transformer_that_lacks_what_decides_its_sizes_says_so(make_weights, broken):
    tensors, _ = single_file(small("flux")[1])
    model = identify(make_weights({key: tuple(t.shape) for key, t in tensors.items() if key != broken}))
    assert (model.family, model.places) == ("flux", {}) and f"{broken} is missing" in model.reasons[0]


def test_chroma_is_not_taken_for_flux(make_weights):
    shapes = {key: tuple(t.shape) for key, t in single_file(small("flux")[1])[0].items()}
    model = identify(make_weights(shapes | {"distilled_guidance_layer.in_proj.weight": (4, 4)}))
    assert (model.family, model.places) == ("chroma", {})
