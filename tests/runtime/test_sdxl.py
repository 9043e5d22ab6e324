"""SDXL as diffusers' own pipeline runs it: prompts, sizes, and one call of the U-Net."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SDXL_UNET, TEXT, TEXT_2, VAE

from sdkit.families.clip import text_parameters
from sdkit.families.configs import CONFIG_KEY, text_layout, unet_layout, vae_layout
from sdkit.families.unet import unet_parameters
from sdkit.families.vae import vae_parameters
from sdkit.runtime.backbone import Backbone, Frame
from sdkit.runtime.load import load_backbone
from sdkit.runtime.tensors import write_tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
PROMPTS = ["a cat", "dogs, 7"]


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True)


@pytest.fixture(scope="module")
def backbone(tiny_sdxl: Path) -> Backbone:
    return load_backbone(tiny_sdxl)


def test_text_is_what_encode_prompt_gives(backbone: Backbone, pipeline: Any) -> None:
    with torch.no_grad():
        context, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        ours = backbone.encode_text(backbone.tokenize(PROMPTS), (24, 16))
    assert torch.equal(ours.context, context) and torch.equal(ours.added["text_embeds"], pooled)
    ids = backbone.tokenize(PROMPTS)
    assert ids["text_encoder"][0, -1] == 1 and ids["text_encoder_2"][0, -1] == 2  # padded with different tokens


@pytest.mark.parametrize("cut", [None, Frame((40, 30), (3, 0), (24, 16))])
def test_the_denoiser_is_told_what_the_pipeline_tells_it(backbone: Backbone, pipeline: Any, cut: Frame | None) -> None:
    noised, steps = torch.randn(2, 4, 8, 12), torch.tensor([3, 900])
    with torch.no_grad():
        context, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        original, corner = ((16, 24), (0, 0)) if cut is None else ((30, 40), (0, 3))
        ids = pipeline._get_add_time_ids(original, corner, (16, 24), torch.float32, text_encoder_projection_dim=20)
        added = {"text_embeds": pooled, "time_ids": ids.repeat(2, 1)}
        expected = pipeline.unet(noised, steps, context, added_cond_kwargs=added).sample
        cond = backbone.encode_text(backbone.tokenize(PROMPTS), (24, 16))
        cond = cond if cut is None else backbone.framed(cond, [cut] * 2)
        assert torch.equal(cond.added["time_ids"], added["time_ids"])
        assert torch.equal(backbone.denoise(noised, steps, cond), expected)


def test_a_single_file_is_the_same_model(tmp_path: Path) -> None:
    """With CLIP's vocabulary; the second tokenizer fills up with ``!``, as the published one does."""
    from tiny import write_sdxl_configs

    from sdkit.runtime.create import create_base

    marks = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    texts = {"text_encoder": {**TEXT, **marks}, "text_encoder_2": {**TEXT_2, **marks}}
    configs = write_sdxl_configs(tmp_path / "configs")
    for name, config in texts.items():
        (configs / name / "config.json").write_text(json.dumps(config))
    create_base(configs, tmp_path / "base")
    folder = load_backbone(tmp_path / "base")
    tables = {
        "unet": ("model.diffusion_model.", unet_parameters(unet_layout(SDXL_UNET))),
        "vae": ("first_stage_model.", vae_parameters(vae_layout(VAE))),
        "text_encoder": (
            "conditioner.embedders.0.transformer.",
            text_parameters(text_layout(texts["text_encoder"]), "hf"),
        ),
        "text_encoder_2": (
            "conditioner.embedders.1.model.",
            text_parameters(text_layout(texts["text_encoder_2"]), "openclip"),
        ),
    }
    tensors: dict[str, torch.Tensor] = {}
    for component, (prefix, rows) in tables.items():
        for row in rows:
            module, _, name = row.hub.rpartition(".")
            value = getattr(folder.module(f"{component}.{module}"), name).detach()
            value = value.t() if row.transposed else value
            known = tensors.get(prefix + row.ldm)
            tensors[prefix + row.ldm] = value if known is None else torch.cat([known, value])
    stated = json.dumps({**texts, "unet": SDXL_UNET, "vae": VAE, "scheduler": {}})
    write_tensors(tmp_path / "single.safetensors", tensors, {CONFIG_KEY: stated})
    single = load_backbone(tmp_path / "single.safetensors")
    for component, module in folder.components.items():
        for (name, one), (_, other) in zip(
            module.named_parameters(), single.components[component].named_parameters(), strict=True
        ):
            assert torch.equal(one, other), (component, name)
    ids = single.tokenize(["a cat"])
    assert ids["text_encoder"][0, 3:6].tolist() == [49407] * 3
    assert ids["text_encoder_2"][0, 3:6].tolist() == [49407, 0, 0]


def test_published_tokenizers_fill_up_as_we_do() -> None:
    from importlib.resources import files

    from sdkit.runtime.load import padding

    folder = files("sdkit") / "assets" / "families"
    for family, component in (
        ("sdxl", "text_encoder"),
        ("sdxl", "text_encoder_2"),
        ("sd2", "text_encoder"),
        ("sd1", "text_encoder"),
    ):
        place = folder / family / "base" / component.replace("text_encoder", "tokenizer") / "special_tokens_map.json"
        stated = json.loads(place.read_text())["pad_token"]
        assert padding(family, component) == (stated if isinstance(stated, str) else stated["content"])
