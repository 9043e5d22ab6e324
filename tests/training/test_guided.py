from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from tiny import SCHEDULER

from sdkit.runtime.backbone import Backbone, Cond, Latents
from sdkit.runtime.guidance import Guidance
from sdkit.runtime.load import load_backbone
from sdkit.runtime.losses import HeldOut, held_out_losses
from sdkit.runtime.rng import StepRNG
from sdkit.runtime.tokens import spliced
from sdkit.training.batch import Batch
from sdkit.training.objectives.denoising import Denoising
from sdkit.training.objectives.guided import Guided

ENCODER = "text_encoder"


@pytest.fixture
def backbone(tiny_base: Path) -> Backbone:
    return load_backbone(tiny_base)


def batch(names: str, context: torch.Tensor) -> Batch:
    """Samples named by letters, each with numbers of its own."""
    generators = [torch.Generator().manual_seed(ord(name)) for name in names]
    mean = torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in generators])
    pixels = torch.stack([torch.rand(3, 16, 16, generator=generator) * 2 - 1 for generator in generators])
    latents = Latents(mean, torch.zeros_like(mean))
    cond = Cond(context.expand(len(names), -1, -1))
    return Batch(tuple(names), prior=(False,) * len(names), latents=latents, pixels=pixels, cond=cond)


def text(backbone: Backbone, prompt: str) -> torch.Tensor:
    return backbone.encode_text(backbone.tokenize([prompt]), (16, 16)).context


def test_the_loss_is_the_formula(backbone: Backbone) -> None:
    rng, positive, negative = StepRNG(3, 4), text(backbone, "ab"), text(backbone, "cd")
    given = batch("xy", positive)
    loss = Guided(Guidance("cd", 3.0), reconstruction=0.25)(backbone, given, rng)

    scheduler = DDPMScheduler.from_config({**SCHEDULER, "clip_sample": False})
    errors, pixels = [], []
    for index, name in enumerate("xy"):
        assert given.latents is not None and given.pixels is not None
        noise = rng.normal((4, 8, 8), "noise", name)[None]
        step = torch.tensor([rng.integer(1000, "timestep", name)])
        noised = scheduler.add_noise(given.latents.mean[index][None], noise, step)
        plus, minus = (backbone.unet(noised, step, context).sample for context in (positive, negative))
        guided = minus + 3.0 * (plus - minus)
        errors.append((guided - noise).square().mean())
        clean = scheduler.step(guided, int(step), noised).pred_original_sample
        pixels.append((backbone.vae.decode(clean / 0.5).sample[0] - given.pixels[index]).abs().mean())
    wanted = (torch.stack(errors).mean(), torch.stack(pixels).mean())
    torch.testing.assert_close(loss.parts["denoising"], wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.parts["reconstruction"], wanted[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(loss.value, wanted[0] + 0.25 * wanted[1], rtol=1e-3, atol=1e-4)


def test_a_batch_has_the_gradient_of_its_samples(backbone: Backbone) -> None:
    objective, rng = Guided(Guidance("<n>", 5.0)), StepRNG(0, 1)

    def gradients(groups: list[str]) -> list[torch.Tensor]:
        rows = [torch.nn.Parameter(torch.full((2, 24), value)) for value in (0.1, -0.1)]
        with spliced(backbone, {"<p>": {ENCODER: rows[0]}, "<n>": {ENCODER: rows[1]}}):
            for names in groups:
                given = batch(names, text(backbone, "a <p>"))
                (objective(backbone, given, rng).value / len(groups)).backward()
        assert all(row.grad is not None and row.grad.abs().max() > 0 for row in rows)
        return [row.grad for row in rows if row.grad is not None]

    for one, other in zip(gradients(["wxyz"]), gradients(["w", "x", "y", "z"]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_guidance_it_is_denoising(backbone: Backbone) -> None:
    given, rng = batch("xyz", text(backbone, "ab")), StepRNG(0, 2)
    plain = Denoising()(backbone, given, rng).value
    assert torch.equal(Guided(Guidance("cd", 1.0))(backbone, given, rng).value, plain)
    torch.testing.assert_close(Guided(Guidance("ab", 4.0))(backbone, given, rng).value, plain)
    assert not torch.allclose(Guided(Guidance("cd", 4.0))(backbone, given, rng).value, plain)


def test_what_the_mask_leaves_out_does_not_count(backbone: Backbone) -> None:
    context = text(backbone, "ab")
    given, mask = batch("x", context), torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    assert given.pixels is not None
    spoilt = given.pixels.clone()
    spoilt[..., :8] = 1 - spoilt[..., :8]
    objective = Guided(Guidance("cd", 3.0), reconstruction=1.0)
    rng = StepRNG(0, 3)
    losses = [
        objective(backbone, replace(given, mask=mask, pixels=pixels), rng).value for pixels in (given.pixels, spoilt)
    ]
    assert torch.equal(*losses)
    assert not torch.equal(objective(backbone, replace(given, pixels=spoilt), rng).value, losses[0])


def test_the_held_out_loss_is_of_the_guided_prediction(backbone: Backbone) -> None:
    mean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = [HeldOut("a", "ab", (16, 16), Latents(mean, torch.zeros_like(mean)))]
    plain = held_out_losses(backbone, pictures)
    assert torch.equal(held_out_losses(backbone, pictures, guidance=Guidance("cd", 1.0)), plain)
    assert not torch.allclose(held_out_losses(backbone, pictures, guidance=Guidance("cd", 4.0)), plain)


def test_sdxl_s_negative_prompt_has_its_own_pooled_text_and_the_picture_s_frame(tiny_sdxl: Path) -> None:
    backbone = load_backbone(tiny_sdxl)
    noised, steps = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    ab, cd = (backbone.encode_text(backbone.tokenize([prompt] * 2), (16, 16)) for prompt in ("ab", "cd"))
    frames = torch.arange(12.0).reshape(2, 6)
    ab, cd = (Cond(cond.context, {**cond.added, "time_ids": frames}) for cond in (ab, cd))
    plus, minus = (backbone.denoise(noised, steps, cond) for cond in (ab, cd))
    torch.testing.assert_close(Guidance("cd", 3.0)(backbone, noised, steps, ab), minus + 3 * (plus - minus))
