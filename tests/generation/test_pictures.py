from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL.Image import Image

from sdkit.core.errors import UsageError
from sdkit.generation.pictures import default_size, draw
from sdkit.generation.request import Request
from sdkit.generation.samplers import make_scheduler
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.load import load_backbone


@pytest.fixture(scope="module")
def backbone(tiny_base: Path) -> Backbone:
    return load_backbone(tiny_base)


def pixels(picture: Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def same(one: Image, other: Image) -> bool:
    return one.tobytes() == other.tobytes()


@pytest.mark.parametrize("sampler", ["DDIM", "Euler a", "DPM++ 2M Karras"])
def test_pictures_are_those_of_diffusers_own_pipeline(tiny_base: Path, backbone: Backbone, sampler: str) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True, safety_checker=None)
    pipeline.scheduler = make_scheduler(sampler, backbone.schedule)
    pipeline.tokenizer.model_max_length = 12
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a cat",
        negative_prompt="a dog",
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=4,
        guidance_scale=5.0,
    ).images[0]
    request = Request("a cat", negative="a dog", seed=3, steps=4, cfg=5.0, sampler=sampler)
    assert same(draw(backbone, [request])[0], theirs)


def test_a_picture_is_the_same_alone_and_among_others(backbone: Backbone) -> None:
    requests = [Request("a cat", seed=seed, steps=3, sampler="Euler a") for seed in range(3)]
    requests.append(Request("a dog", seed=1, steps=2, width=24, height=16))
    together = draw(backbone, requests)
    assert [picture.size for picture in together] == [(16, 16)] * 3 + [(24, 16)]
    for request, picture in zip(requests, together, strict=True):
        assert same(draw(backbone, [request])[0], picture)
    assert not same(together[0], together[1])
    for one, other in zip(draw(backbone, requests, batch=3), together, strict=True):
        assert abs(pixels(one) - pixels(other)).max() <= 1


def test_nothing_but_pictures_comes_of_it(backbone: Backbone) -> None:
    backbone.unet.train()
    before = {name: backbone.content_id(name) for name in backbone.components}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    seen: list[tuple[int, int]] = []
    draw(
        backbone, [Request("a", steps=2, sampler="Heun"), Request("b", steps=3)], watch=lambda *step: seen.append(step)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: backbone.content_id(name) for name in backbone.components} == before
    assert all(module.training for module in backbone.unet.modules())
    assert not any(module.training for module in backbone.vae.modules())
    assert not backbone.unet._forward_hooks and not backbone.unet._forward_pre_hooks
    assert seen[-1] == (5, 5) and seen == sorted(seen)
    backbone.unet.eval()


def test_drawing_in_half_precision_and_under_autocast(tiny_base: Path) -> None:
    exact = draw(load_backbone(tiny_base), [Request("a cat", steps=4)])[0]
    half = load_backbone(tiny_base).to(torch.device("cpu"), torch.bfloat16)
    assert 0 < abs(pixels(draw(half, [Request("a cat", steps=4)])[0]) - pixels(exact)).mean() < 4
    training = load_backbone(tiny_base)  # as the weights are that a run in bfloat16 trains
    with torch.autocast("cpu", torch.bfloat16):
        mixed = draw(training, [Request("a cat", steps=4)])[0]
    assert 0 < abs(pixels(mixed) - pixels(exact)).mean() < 4


def test_an_interrupted_drawing_leaves_the_base_as_it_was(backbone: Backbone) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(backbone, [Request("a", steps=3)], watch=stop)
    assert not backbone.unet._forward_hooks


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("a", width=20), "width 20 is no multiple of 8"),
        (Request("a", height=0), "height 0 is no multiple of 8"),
        (Request("a", width=1 << 40), "width 1099511627776 is no multiple of 8 up to 16384"),
        (Request("a", steps=0), "steps 0 is less than 1"),
        (Request("a", steps=1001), "steps 1001 is out of bounds"),
        (Request("a", cfg=float("nan")), "cfg nan is no finite number"),
        (Request("a", seed=1 << 64), "is out of bounds"),
        (Request("a", sampler="LCM", steps=60), "LCM does not take 60 steps"),
        (Request("a", clip_skip=3), "clip skip 3: the text encoder has 2 layers"),
        (Request("a", clip_skip=0), "clip skip 0 is less than 1"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_anything_is(backbone: Backbone, request_: Request, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw(backbone, [Request("fine"), request_], watch=lambda *step: pytest.fail("something was drawn"))


def test_no_requests_no_pictures(backbone: Backbone) -> None:
    assert draw(backbone, []) == []
    assert default_size(backbone) == (16, 16)
