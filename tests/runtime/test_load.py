from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tiny import UNET, write_single_file
from transformers import CLIPTextModel

from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import Cond
from sdkit.runtime.load import build_component, load_backbone
from sdkit.runtime.tensors import write_tensors


def test_a_folder_computes_what_diffusers_and_transformers_compute(tiny_base: Path) -> None:
    backbone = load_backbone(tiny_base)
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    text = CLIPTextModel.from_pretrained(tiny_base / "text_encoder")
    vae = AutoencoderKL.from_pretrained(tiny_base / "vae")
    ids = backbone.tokenize(["a cat", "dogs"])
    noised, steps = torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        cond = backbone.encode_text(ids, (16, 16))
        assert torch.equal(cond.context, text(ids["text_encoder"]).last_hidden_state)
        assert torch.equal(backbone.denoise(noised, steps, cond), unet(noised, steps, cond.context).sample)
        latents, posterior = backbone.encode_image(pixels), vae.encode(pixels).latent_dist
        assert torch.equal(latents.mean, posterior.mean * 0.5)
        assert torch.equal(latents.std, posterior.std * 0.5)
        assert torch.equal(backbone.decode(latents.mean), vae.decode(latents.mean / 0.5).sample)


def test_a_single_file_is_the_same_model(tmp_path: Path) -> None:
    write_single_file(tmp_path)
    folder = load_backbone(tmp_path / "base")
    single = load_backbone(tmp_path / "single.safetensors")

    for component in ("unet", "vae", "text_encoder"):
        for (name, one), (other_name, other) in zip(
            folder.components[component].named_parameters(),
            single.components[component].named_parameters(),
            strict=True,
        ):
            assert name == other_name and torch.equal(one, other), name
    ids = single.tokenize(["a photo of a cat"])["text_encoder"][0].tolist()
    assert ids[:6] == [49406, 320, 1125, 539, 320, 2368]


def test_modules_are_found_by_hub_name(tiny_base: Path) -> None:
    backbone = load_backbone(tiny_base)
    names = dict(backbone.modules())
    hub = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj"
    assert names[hub] is backbone.module(hub)
    missing = {name for name in backbone.model.places if name.rpartition(".")[0] not in names}
    assert not missing
    with pytest.raises(SdkitError, match="no module unet.nothing"):
        backbone.module("unet.nothing")


def test_what_is_no_base_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"weight": torch.zeros(3)})
    with pytest.raises(SdkitError, match="not a base model"):
        load_backbone(tmp_path / "x.safetensors")


def test_a_vocabulary_of_its_own_needs_a_tokenizer_of_its_own(tmp_path: Path, tiny_base: Path) -> None:
    import shutil

    shutil.copytree(tiny_base, tmp_path / "base")
    shutil.rmtree(tmp_path / "base/tokenizer")
    with pytest.raises(SdkitError, match="knows 64 tokens"):
        load_backbone(tmp_path / "base")


def test_a_weight_of_another_shape_than_configured_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    import shutil

    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base/unet/config.json").write_text(json.dumps({**UNET, "block_out_channels": [32, 96]}))
    with pytest.raises(SdkitError, match="its configuration asks for"):
        load_backbone(tmp_path / "base")


def test_empty_models_have_the_published_sizes() -> None:
    from sdkit.families.reference import published_config

    counts = {
        family: sum(p.numel() for p in build_component("unet", published_config(f"{family}/base", "unet")).parameters())
        for family in ("sd1", "sdxl")
    }
    assert counts == {"sd1": 859_520_964, "sdxl": 2_567_463_684}


def test_joined_conditioning_keeps_its_parts() -> None:
    one = Cond(torch.zeros(1, 2, 3), {"time_ids": torch.zeros(1, 6)})
    two = Cond(torch.ones(2, 2, 3), {"time_ids": torch.ones(2, 6)})
    joined = Cond.join([one, two])
    assert joined.context.shape == (3, 2, 3)
    assert joined.added["time_ids"][:, 0].tolist() == [0, 1, 1]


def test_clip_skip_reads_the_text_encoder_as_if_it_had_fewer_layers(tiny_base: Path) -> None:
    whole, short = load_backbone(tiny_base), load_backbone(tiny_base)
    ids = whole.tokenize(["a cat"])
    last = whole.encode_text(ids, (16, 16)).context
    before = whole.encode_text(ids, (16, 16), clip_skip=2).context
    layers = short.module("text_encoder.text_model.encoder").layers
    del layers[-1]
    assert torch.equal(short.encode_text(ids, (16, 16)).context, before)
    assert not torch.equal(last, before)


RECIPE = Path(__file__).parents[2] / "recipes" / "tiny-base" / "configs"


@pytest.fixture
def recipe_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny base's structure with random weights; its tokenizer among those that come with sdkit."""
    from sdkit.families import tokenizers
    from sdkit.runtime.create import create_base

    monkeypatch.setattr(tokenizers, "_FOLDERS", (*tokenizers._FOLDERS[:1], RECIPE / "tokenizer"))
    create_base(RECIPE, tmp_path / "base")
    return tmp_path / "base"


def test_the_tiny_base_as_a_single_file_is_the_same_model(tmp_path: Path, recipe_base: Path) -> None:
    """Its widths, its missing attention, its heads and its tokenizer are nobody's published ones."""
    import sdkit

    sdkit.convert(recipe_base, "single", tmp_path / "single.safetensors")
    folder, single = load_backbone(recipe_base), load_backbone(tmp_path / "single.safetensors")
    ids, others = (backbone.tokenize(["a red cat"])["text_encoder"] for backbone in (folder, single))
    assert torch.equal(ids, others)
    noised, steps = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        outputs = [
            backbone.denoise(noised, steps, backbone.encode_text({"text_encoder": ids}, (64, 64)))
            for backbone in (folder, single)
        ]
    assert torch.equal(*outputs)


def test_a_single_file_without_a_word_is_read_by_its_family_s_rule(tmp_path: Path) -> None:
    """The example's widths are unusual; SD1 has eight heads of any width."""
    from example_model import Sizes, make_checkpoint

    from sdkit.families import identify
    from sdkit.runtime.load import base_configs
    from sdkit.weights import open_weights

    write_tensors(tmp_path / "x.safetensors", make_checkpoint(Sizes()))
    with open_weights(tmp_path / "x.safetensors") as weights:
        configs = base_configs(weights, identify(weights))
    assert configs["unet"]["block_out_channels"] == [32, 64, 128, 128] and configs["unet"]["attention_head_dim"] == 8
    assert configs["text_encoder"]["num_attention_heads"] == 1
    load_backbone(tmp_path / "x.safetensors")
