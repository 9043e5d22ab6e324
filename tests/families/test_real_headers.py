"""The rules against real models, key for key and shape for shape."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter

import pytest

from sdkit.families import identify, reference

LOGITS = [f"text_encoders.{text}.logit_scale" for text in ("clip_g", "clip_l", "t5xxl")]
SCHEDULE = ("alphas_cumprod", "betas", "sqrt_", "posterior_", "log_one_minus")


@pytest.mark.parametrize(
    ("name", "family", "components"),
    [
        ("sd1-ldm", "sd1", ("text_encoder", "unet", "vae")),
        ("sdxl-sgm", "sdxl", ("text_encoder", "text_encoder_2", "unet", "vae")),
    ],
)
def test_every_weight_of_a_real_checkpoint_is_claimed(header, name, family, components):
    weights = header(name)
    model = identify(weights)
    assert (model.family, model.variant, model.naming, model.components) == (family, "base", "ldm", components)
    left = [key for key in model.unclaimed if not key.startswith(SCHEDULE)]
    assert left == (["conditioner.embedders.1.model.logit_scale"] if family == "sdxl" else [])
    claimed = {place.key for place in model.places.values()}
    buffers = {key for key in weights.tensors if key.endswith("position_ids")}
    assert claimed | set(model.unclaimed) | set(model.ema) | set(model.markers) | buffers == set(weights.tensors)


@pytest.mark.parametrize("name", ["sd1-ldm", "sdxl-sgm"])
def test_places_describe_the_stored_tensors_exactly(header, name):
    weights = header(name)
    places = identify(weights).places
    for place in places.values():
        stored = weights.tensors[place.key].shape
        expected = (3 * place.shape[0], *place.shape[1:]) if place.rows else place.shape
        expected = expected[::-1] if place.transposed else expected
        assert stored[: len(expected)] == expected and set(stored[len(expected) :]) <= {1}, place
    shared = Counter(place.key for place in places.values())
    rows = {key: sorted(p.rows for p in places.values() if p.key == key and p.rows) for key in shared}
    for key, times in shared.items():
        if times > 1:
            height = weights.tensors[key].shape[0] // 3
            assert rows[key] == [(0, height), (height, 2 * height), (2 * height, 3 * height)]


@pytest.mark.parametrize(("name", "family"), [("sd1-ldm", "sd1"), ("sdxl-sgm", "sdxl")])
def test_a_real_checkpoint_and_the_shipped_configuration_agree(header, name, family):
    found, published = identify(header(name)), reference(family, naming="ldm")
    assert found.places == published.places
    assert found.block_names == published.block_names
    assert found.kohya_modules == published.kohya_modules


@pytest.mark.parametrize(
    ("name", "family", "variant", "left"),
    [
        ("sd3-comfyui", "sd3", "medium", ["model.model_sampling.sigmas", *LOGITS]),
        ("flux-bfl", "flux", "dev", []),
    ],
)
def test_every_weight_of_a_real_transformer_checkpoint_is_claimed(header, name, family, variant, left):
    weights = header(name)
    model, published = identify(weights), reference(family)
    assert (model.family, model.variant, model.naming, model.faults) == (family, variant, "ldm", ())
    assert sorted(model.unclaimed) == left
    claimed = {place.key for place in model.places.values()}
    assert claimed | set(left) == set(weights.tensors) and not claimed & set(left)
    assert {name: place.shape for name, place in model.places.items()} == {
        name: place.shape for name, place in published.places.items()
    }
    assert model.kohya_modules == published.kohya_modules and model.stacks == published.stacks


def test_the_ema_copy_is_set_apart(header):
    weights = header("sd1-ldm")
    model = identify(weights)
    assert len(model.ema) == 688
    assert all(key.startswith("model_ema.") for key in model.ema)


def test_markers_are_flags_not_weights(header):
    model = identify(header("sdxl-sgm"))
    assert model.markers == ("v_pred", "ztsnr", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
    assert model.prediction == "v_prediction"
    assert not set(model.markers) & set(model.unclaimed)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_kohya_modules_resolve_to_weights_of_the_listed_shape(kohya_list, family):
    model = reference(family)
    listed = kohya_list(family)
    assert listed
    for name, shape in listed.items():
        assert model.places[f"{model.kohya_modules[name]}.weight"].shape == shape, name


def test_the_second_text_encoder_is_fused_and_transposed(header):
    places = identify(header("sdxl-sgm")).places
    key = places["text_encoder_2.text_model.encoder.layers.3.self_attn.k_proj.weight"]
    assert (key.key, key.rows) == (
        "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight",
        (1280, 2560),
    )
    projection = places["text_encoder_2.text_projection.weight"]
    assert (projection.key, projection.transposed) == ("conditioner.embedders.1.model.text_projection", True)


def test_identifying_sdxl_is_quick(header):
    weights = header("sdxl-sgm")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        identify(weights)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1  # about 0.01; `sdkit inspect` has 0.15 for everything


def test_no_torch_is_needed():
    code = "import sys, sdkit.families as f; f.reference('sdxl'); print({'torch', 'numpy'} & {*sys.modules})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
