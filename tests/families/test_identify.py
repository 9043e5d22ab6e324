"""Detection: variants, components on their own, old spellings, damaged and strange files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdkit.families import FAMILIES, identify, reference
from sdkit.weights import Weights
from sdkit.weights.reader import Container, open_safetensors

UNET = "model.diffusion_model."
CONV_IN = UNET + "input_blocks.0.0.weight"


def reasons(model):
    return "\n".join(model.reasons)


@pytest.mark.parametrize("naming", ["ldm", "diffusers"])
@pytest.mark.parametrize(
    ("family", "variant"), [(family.name, variant) for family in FAMILIES for variant in family.variants]
)
def test_every_variant_is_recognised_in_both_namings(make_weights, tensors_of, naming, family, variant):
    published = reference(family, variant, naming)
    model = identify(make_weights(tensors_of(published)))
    assert (model.family, model.variant, model.naming) == (family, variant, naming)
    assert dict(model.places) == dict(published.places)
    assert model.unclaimed == ()
    for other in FAMILIES:
        assert (f"not {other.name}:" in reasons(model)) == (other.name != family)


def test_an_unheard_of_number_of_input_channels_is_named(make_weights, tensors_of):
    shapes = tensors_of(reference("sd1", naming="ldm")) | {CONV_IN: (320, 12, 3, 3)}
    assert identify(make_weights(shapes)).variant == "12-channel"


def test_old_sd1_files_lack_the_nesting_of_the_text_encoder(make_weights, tensors_of):
    published = reference("sd1", naming="ldm")
    shapes = {name.replace(".text_model.", "."): shape for name, shape in tensors_of(published).items()}
    shapes["cond_stage_model.transformer.embeddings.position_ids"] = (1, 77)
    model = identify(make_weights(shapes))
    assert model.family == "sd1" and model.places.keys() == published.places.keys()
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight"
    assert model.places[name].key == "cond_stage_model.transformer.encoder.layers.0.mlp.fc1.weight"
    assert model.unclaimed == ()


def test_folders_of_transformers_5_lack_the_nesting_too(make_weights, tensors_of):
    published = reference("sdxl")
    shapes = {name.replace("/text_model.", "/"): shape for name, shape in tensors_of(published).items()}
    model = identify(make_weights(shapes))
    assert model.places.keys() == published.places.keys()
    assert model.places["text_encoder_2.text_model.final_layer_norm.bias"].key == "text_encoder_2/final_layer_norm.bias"
    assert model.places["text_encoder_2.text_projection.weight"].key == "text_encoder_2/text_projection.weight"
    assert model.unclaimed == ()


def test_old_diffusers_autoencoders_call_their_attention_otherwise(make_weights, tensors_of):
    published = reference("sd1")
    shapes = tensors_of(published)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        shapes = {
            name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.") if name.startswith("vae/") else name: shape
            for name, shape in shapes.items()
        }
    model = identify(make_weights(shapes))
    assert model.places.keys() == published.places.keys() and model.unclaimed == ()
    assert model.places["vae.decoder.mid_block.attentions.0.to_out.0.bias"].key.endswith("attentions.0.proj_attn.bias")


def test_the_refiner_keeps_its_only_text_encoder_in_either_folder(make_weights, tensors_of):
    shapes = tensors_of(reference("sdxl-refiner"))
    moved = {name.replace("text_encoder_2/", "text_encoder/"): shape for name, shape in shapes.items()}
    assert moved != shapes
    model = identify(make_weights(moved))
    assert model.components == ("text_encoder_2", "unet", "vae")
    assert model.places["text_encoder_2.text_projection.weight"].key == "text_encoder/text_projection.weight"


def test_what_sd2_never_runs_is_left_alone(make_weights, tensors_of):
    shapes = tensors_of(reference("sd2", naming="ldm"))
    prefix = "cond_stage_model.model."
    unused = {
        name.replace("resblocks.22.", "resblocks.23."): shape
        for name, shape in shapes.items()
        if "resblocks.22." in name
    }
    unused |= {f"{prefix}text_projection": (1024, 1024), f"{prefix}logit_scale": ()}
    model = identify(make_weights(shapes | unused))
    assert model.places == reference("sd2", naming="ldm").places
    assert set(model.unclaimed) == set(unused) and len(unused) == 14


@pytest.mark.parametrize(("family", "prefix"), [("sd1", UNET), ("sdxl", UNET)])
def test_a_bare_unet_is_enough(make_weights, tensors_of, family, prefix):
    shapes = tensors_of(reference(family, naming="ldm"))
    bare = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    model = identify(make_weights(bare))
    assert (model.family, model.components) == (family, ("unet",))
    assert model.places["unet.conv_in.weight"].key == "input_blocks.0.0.weight"
    assert not any(name.startswith("lora_te") for name in model.kohya_modules)
    assert model.unclaimed == ()


@pytest.mark.parametrize(
    ("naming", "prefix", "component"),
    [
        ("ldm", "first_stage_model.", "vae"),
        ("diffusers", "vae/", "vae"),
        ("ldm", "cond_stage_model.transformer.", "text_encoder"),
        ("diffusers", "text_encoder/", "text_encoder"),
    ],
)
def test_a_shared_component_has_places_but_no_family(make_weights, tensors_of, naming, prefix, component):
    published = reference("sd1", naming=naming)
    shapes = tensors_of(published)
    bare = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    model = identify(make_weights(bare))
    assert (model.family, model.components) == ("unknown", (component,))
    assert {n: p.shape for n, p in model.places.items()} == {
        n: p.shape for n, p in published.places.items() if n.startswith(f"{component}.")
    }
    assert f"it holds only {component}" in reasons(model)
    assert model.unclaimed == ()


def test_an_openclip_text_encoder_alone_has_places(make_weights, tensors_of):
    prefix = "conditioner.embedders.1.model."
    shapes = tensors_of(reference("sdxl", naming="ldm"))
    bare = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    model = identify(make_weights(bare))
    assert model.family == "unknown" and model.unclaimed == ()
    assert model.places["text_encoder.text_projection.weight"].transposed


@pytest.mark.parametrize(
    ("metadata", "configs", "extra", "expected"),
    [
        ({}, {}, {}, None),
        ({"modelspec.prediction_type": "v"}, {}, {}, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, {}, {}, "epsilon"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, {}, {}, "v_prediction"),
        ({}, {"scheduler": {"prediction_type": "v_prediction"}}, {}, "v_prediction"),
        ({}, {"scheduler": {"prediction_type": ["v"]}}, {}, None),
        ({"modelspec.prediction_type": "epsilon"}, {}, {"v_pred": (0,)}, "v_prediction"),
        ({}, {"scheduler": {"prediction_type": "epsilon"}}, {"edm_mean": (4,), "edm_std": (4,)}, None),
    ],
)
def test_prediction_is_only_known_where_something_says_it(make_weights, tensors_of, metadata, configs, extra, expected):
    shapes = tensors_of(reference("sd2", naming="ldm")) | extra
    model = identify(make_weights(shapes, metadata=metadata, configs=configs))
    assert (model.family, model.prediction) == ("sd2", expected)
    assert set(model.markers) == set(extra)
    if not extra and expected is None:
        assert "do not say whether it predicts" in reasons(model)


def test_random_names_are_unknown_and_say_why(make_weights):
    model = identify(make_weights({"layer.weight": (3, 4), "other.bias": (4,)}))
    assert (model.family, model.places, model.unclaimed) == ("unknown", {}, ("layer.weight", "other.bias"))
    assert "neither a U-Net" in reasons(model)


@pytest.mark.parametrize(
    ("names", "family", "title"),
    [
        (["control_model.input_blocks.0.0.weight"], "unknown", "ControlNet"),
        (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "unknown", "ControlNet"),
        (["image_proj.proj.weight"], "unknown", "IP-Adapter"),
        (["model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"], "unknown", "upscaler"),
        (
            ["distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.norm.key_norm.scale"],
            "chroma",
            "Chroma",
        ),
        (["transformer/single_transformer_blocks.0.attn.to_q.weight"], "flux", "FLUX.1, but not whole"),
        (["model.diffusion_model.t_block.1.weight"], "pixart", "PixArt"),
        (["net.x_embedder.proj.1.weight"], "cosmos", "Cosmos"),
    ],
)
def test_other_kinds_of_file_are_named(make_weights, names, family, title):
    model = identify(make_weights(dict.fromkeys(names, (4, 4))))
    assert (model.family, model.places) == (family, {})
    assert f"looks like {'' if family != 'unknown' else 'a'}" in model.reasons[0] and title in model.reasons[0]


def test_kolors_is_not_taken_for_sdxl(make_weights, tensors_of):
    model = identify(make_weights(tensors_of(reference("sdxl")) | {"unet/encoder_hid_proj.weight": (2048, 4096)}))
    assert (model.family, model.places) == ("kolors", {})


def test_a_unet_of_another_build_is_unknown_with_the_reason(make_weights, tensors_of):
    shapes = tensors_of(reference("sd1", naming="ldm"))
    cut = {name: shape for name, shape in shapes.items() if not name.startswith(UNET + "output_blocks.11.")}
    model = identify(make_weights(cut))
    assert (model.family, model.places) == ("unknown", {})
    assert "does not mirror" in reasons(model)


def test_missing_and_misshapen_tensors_are_counted_and_named(make_weights, tensors_of):
    shapes = tensors_of(reference("sd1", naming="ldm"))
    gone = UNET + "middle_block.1.proj_out.bias"
    odd = UNET + "middle_block.1.proj_out.weight"
    del shapes[gone]
    shapes[odd] = (1280, 640, 1, 1)
    model = identify(make_weights(shapes))
    assert model.family == "sd1"
    assert f"missing of this layout: 1 tensor, the first is {gone}" in model.reasons
    assert f"the first is {odd}" in reasons(model)
    assert "unet.mid_block.attentions.0.proj_out.weight" not in model.places and odd in model.unclaimed


def test_quantised_weights_are_no_places(make_weights, tensors_of):
    """Numbers that mean nothing without their scale must not be merged as if they were weights."""
    shapes = tensors_of(reference("sd1", naming="ldm"))
    stem = UNET + "middle_block.1.proj_out"
    packed = UNET + "middle_block.1.proj_in.weight"
    model = identify(make_weights(shapes | {f"{stem}.weight_scale": (1,)}, dtypes={packed: "U8"}))
    assert "unet.mid_block.attentions.0.proj_out.weight" not in model.places
    assert "unet.mid_block.attentions.0.proj_in.weight" not in model.places
    assert "unet.mid_block.attentions.0.proj_out.bias" in model.places
    assert "2 tensors have a shape, type or scale" in reasons(model)


def test_scaled_fp8_weights_keep_their_places(make_weights, tensors_of):
    """Their one factor is known, so whoever changes them can divide by it."""
    shapes = tensors_of(reference("sd1", naming="ldm"))
    stem = UNET + "middle_block.1.proj_out"
    model = identify(make_weights(shapes | {f"{stem}.scale_weight": (1,)}))
    assert "unet.mid_block.attentions.0.proj_out.weight" in model.places
    assert model.unclaimed == (f"{stem}.scale_weight",)


def test_pruned_middles_keep_their_places(make_weights, tensors_of):
    """SSD-1B has one residual layer in the middle, Vega none."""
    shapes = tensors_of(reference("sdxl"))
    for kept in ("unet/mid_block.resnets.0.", "nothing"):
        pruned = {n: s for n, s in shapes.items() if not n.startswith("unet/mid_block.") or n.startswith(kept)}
        model = identify(make_weights(pruned))
        assert (model.family, model.unclaimed) == ("sdxl", ())
        assert not any("missing" in reason for reason in model.reasons)


def test_a_safety_checker_is_a_component_nothing_explains(make_weights, tensors_of):
    extra = "safety_checker/concept_embeds"
    model = identify(make_weights(tensors_of(reference("sd1")) | {extra: (17, 768)}))
    assert model.components == ("safety_checker", "text_encoder", "unet", "vae")
    assert model.unclaimed == (extra,)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_hostile_header_never_raises(make_weights, tensors_of, data):
    shapes = tensors_of(reference("sd1", naming=data.draw(st.sampled_from(["ldm", "diffusers"]))))
    names = st.sampled_from(sorted(shapes))
    for name in data.draw(st.lists(names, max_size=8)):
        shapes.pop(name, None)
    anchors = ["input_blocks.0.0.weight", "input_blocks.1.1.proj_in.weight", "time_embed.0.weight", "out.2.weight"]
    targets = st.one_of(names, st.sampled_from([UNET + anchor for anchor in anchors]))
    for name in data.draw(st.lists(targets, max_size=8)):
        shapes[name] = tuple(data.draw(st.lists(st.integers(0, 2**62), max_size=5)))
    model = identify(make_weights(shapes))
    claimed = {place.key for place in model.places.values()}
    assert claimed | set(model.unclaimed) == set(shapes) and not claimed & set(model.unclaimed)


@pytest.mark.skipif("SDKIT_TEST_DATA" not in os.environ, reason="SDKIT_TEST_DATA names no folder of test data")
def test_a_real_small_pipeline_is_sd1():
    folder = Path(os.environ["SDKIT_TEST_DATA"]) / "data" / "tiny"
    tensors = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        tensors |= {f"{file.parent.name}/{name}": info for name, info in open_safetensors(file).tensors.items()}
    model = identify(Weights(folder, Container.FOLDER, [], tensors, {}))
    assert (model.family, model.variant, model.naming) == ("sd1", "base", "diffusers")
    assert model.components == ("text_encoder", "unet", "vae")
    assert {place.key for place in model.places.values()} == {n for n in tensors if not n.endswith("position_ids")}
    assert model.unclaimed == ()
