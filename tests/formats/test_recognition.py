from __future__ import annotations

import pytest

from sdkit.core.errors import SdkitError
from sdkit.formats import adapter_family, formats, read_adapter, recognise
from sdkit.weights import DTYPES, TensorInfo, Weights
from sdkit.weights.reader import Container


@pytest.fixture
def pickled(tmp_path):
    """Weights as the pickle reader presents them: only names, shapes and plain values matter here."""

    def make(shapes: dict[str, tuple[int, ...]], **extra: object) -> Weights:
        path = tmp_path / "thing.pt"
        path.write_bytes(bytes(8))
        tensors = {name: TensorInfo(name, DTYPES["F32"], shape, 0) for name, shape in shapes.items()}
        return Weights(path, Container.PICKLE, [path], tensors, {}, extra=extra)

    return make


@pytest.mark.parametrize(
    ("shapes", "extra", "tokens"),
    [
        ({"string_to_param.*": (4, 768)}, {"name": "cat"}, [("cat", "text_encoder")]),
        ({"string_to_param.*": (4, 768)}, {}, [("thing", "text_encoder")]),
        ({"<cat>": (768,)}, {}, [("<cat>", "text_encoder")]),
        ({"<cat>": (2, 1024), "<dog>": (1024,)}, {}, [("<cat>", "text_encoder"), ("<dog>", "text_encoder")]),
        ({"emb_params": (8, 768)}, {}, [("thing", "text_encoder")]),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, {}, [("thing", "text_encoder"), ("thing", "text_encoder_2")]),
    ],
)
def test_textual_inversion(pickled, shapes, extra, tokens):
    weights = pickled(shapes, **extra)
    assert recognise(weights)[0] == "textual-inversion"
    artifact = read_adapter(weights)
    assert artifact.kind == "textual-inversion" and "teaches the tokenizer" in (artifact.not_bakeable or "")
    assert [(row.token, row.component) for row in artifact.tokens] == tokens


def test_aesthetic(pickled):
    weights = pickled({"": (768,)})
    assert recognise(weights)[0] == "aesthetic"
    artifact = read_adapter(weights)
    assert artifact.kind == "aesthetic" and artifact.steering[0].width == 768 and artifact.tokens == ()
    assert "steers" in (artifact.not_bakeable or "")


def test_hypernetwork(pickled):
    shapes = {"linear.0.weight": (1536, 768), "linear.0.bias": (1536,)}
    shapes |= {"linear.1.weight": (768, 1536), "linear.1.bias": (768,)}
    weights = pickled({**{f"768.{side}.{name}": shape for side in "01" for name, shape in shapes.items()}, "step": ()})
    assert recognise(weights)[0] == "hypernetwork"
    artifact = read_adapter(weights)
    assert artifact.kind == "hypernetwork" and artifact.unmatched == ("step",)
    assert artifact.key_value is not None and list(artifact.key_value.networks) == [768]
    assert artifact.not_bakeable


@pytest.mark.parametrize(
    ("format", "shapes"),
    [
        (
            "custom-diffusion",
            {
                "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_custom_diffusion.weight": (
                    320,
                    768,
                )
            },
        ),
        (
            "custom-diffusion-delta",
            {"unet.down_blocks.0.attn2.to_k.weight": (320, 768), "modifier_token.<new1>": (768,)},
        ),
    ],
)
def test_custom_diffusion(pickled, format, shapes):
    weights = pickled(shapes)
    assert recognise(weights)[0] == format
    artifact = read_adapter(weights)
    assert artifact.kind == "custom-diffusion" and len(artifact.deltas) == 1
    assert next(iter(artifact.deltas)).name.endswith("attn2.to_k.weight")
    assert not artifact.not_bakeable and len(artifact.tokens) == len(shapes) - 1


def test_a_checkpoint_is_no_adapter_and_every_codec_says_why(pickled):
    weights = pickled({"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)})
    name, verdicts = recognise(weights)
    assert name is None and set(verdicts) == set(formats())
    assert all(verdict.reason and not verdict.recognised for verdict in verdicts.values())
    with pytest.raises(SdkitError, match="not an adapter in a known format") as error:
        read_adapter(weights)
    assert all(f"{name}: " in error.value.hint for name in verdicts)


def test_two_formats_in_one_file(pickled):
    weights = pickled({"lora_unet_x.lora_up.weight": (4, 2), "unet.down_blocks.0.x.lora_A.weight": (2, 4)})
    assert recognise(weights)[0] is None
    with pytest.raises(SdkitError, match="mixes the formats diffusers and kohya"):
        read_adapter(weights)


@pytest.mark.parametrize(
    ("shapes", "metadata", "family"),
    [
        ({"lora_unet_x_attn2_to_k.lora_down.weight": (4, 768)}, {}, "sd1"),
        ({"lora_unet_x_attn2_to_v.lora_down.weight": (4, 1024)}, {}, "sd2"),
        ({"unet.x.attn2.to_k.lora_A.weight": (4, 2048)}, {}, "sdxl"),
        ({"unet.x.attn2.processor.to_k_lora.down.weight": (4, 1280)}, {}, "sdxl-refiner"),
        ({"base_model.model.x.attn2.to_k.lora_A.weight": (4, 768)}, {}, "sd1"),
        ({"lora_unet_x_attn2_to_k.hada_w1_b": (4, 2048)}, {}, "sdxl"),
        ({"lora_unet_x_attn2_to_k.lora_down.weight": (4, 768)}, {"ss_base_model_version": "sdxl_base_v1-0"}, "sd1"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280)}, {}, "sdxl"),
        ({"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight": (4, 640)}, {}, "sdxl"),
        ({"lora_unet_double_blocks_7_img_attn_qkv.lora_down.weight": (4, 3072)}, {}, "flux"),
        ({"clip_l": (1, 768), "clip_g": (1, 1280)}, {}, "sdxl"),
        ({"lora_unet_x_attn1_to_k.lora_down.weight": (4, 320)}, {"ss_base_model_version": "sd_v2_v"}, "sd2"),
        ({"x": (4, 320)}, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "sdxl"),
        ({"lora_te_text_model_encoder_layers_0_self_attn_k_proj.lora_down.weight": (4, 768)}, {}, "sd1"),
        ({"lora_unet_x_attn1_to_k.lora_down.weight": (4, 320)}, {}, None),
        ({"320.0.linear.0.bias": (640,), "1024.0.linear.0.bias": (2048,)}, {}, "sd2"),
        ({"640.0.linear.0.bias": (1280,), "1280.0.linear.0.bias": (2560,)}, {}, None),
    ],
)
def test_family(pickled, shapes, metadata, family):
    weights = pickled(shapes)
    weights.metadata.update(metadata)
    found, reason = adapter_family(weights)
    assert found == family and reason
