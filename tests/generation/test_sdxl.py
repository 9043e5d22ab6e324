from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdkit.generation.conditioning import encode_texts
from sdkit.generation.pictures import draw
from sdkit.generation.request import Request
from sdkit.generation.samplers import make_scheduler
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.load import load_backbone
from sdkit.runtime.tokens import spliced


@pytest.fixture(scope="module")
def backbone(tiny_sdxl: Path) -> Backbone:
    return load_backbone(tiny_sdxl)


@pytest.mark.parametrize("negative", ["", "a dog"])
def test_pictures_are_those_of_diffusers_own_pipeline(tiny_sdxl: Path, backbone: Backbone, negative: str) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True, add_watermarker=False)
    pipeline.scheduler = make_scheduler("DPM++ 2M Karras", backbone.schedule)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.tokenizer.model_max_length = pipeline.tokenizer_2.model_max_length = 12
    theirs = pipeline(
        "a cat",
        negative_prompt=negative or None,  # which is where it puts zeros
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=4,
        guidance_scale=5.0,
        width=24,
        height=16,
    ).images[0]
    request = Request("a cat", negative=negative, seed=3, steps=4, cfg=5.0, width=24, height=16)
    assert draw(backbone, [request])[0].tobytes() == theirs.tobytes()


def test_each_text_encoder_weighs_its_own_part(backbone: Backbone) -> None:
    norm = backbone.module("text_encoder.text_model.final_layer_norm")
    assert norm.weight.shape == (24,)

    def context(prompt: str) -> torch.Tensor:
        with torch.no_grad():
            return encode_texts(backbone, Request(prompt, width=16, height=16)).prompt.context.double()

    plain, weighed = context("ab"), context("a(b:1.4)")
    for part in (slice(0, 24), slice(24, 64)):
        expected = plain[..., part].clone()
        expected[0, 2] *= 1.4
        mean = plain[..., part].mean()
        if abs(mean) >= 0.01 * plain[..., part].std():
            expected *= mean / expected.mean()
        assert torch.allclose(weighed[..., part], expected, atol=1e-5)


def test_words_of_different_lengths_leave_the_encoders_in_step(backbone: Backbone) -> None:
    rows = {"text_encoder": torch.zeros(8, 24), "text_encoder_2": torch.zeros(2, 40)}
    with spliced(backbone, {"zz": rows}), torch.no_grad():
        texts = encode_texts(backbone, Request("abc zz", width=16, height=16))
    assert texts.prompt.context.shape == texts.negative.context.shape == (1, 24, 64)
    assert torch.count_nonzero(texts.negative.context) == 0
