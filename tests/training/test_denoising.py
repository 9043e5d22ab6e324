from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import compute_snr

from sdkit.runtime.backbone import Backbone, Cond, Latents
from sdkit.runtime.load import load_backbone
from sdkit.runtime.rng import StepRNG
from sdkit.training.batch import Batch
from sdkit.training.objectives.denoising import Denoising


@pytest.fixture
def backbone(tiny_base: Path) -> Backbone:
    return load_backbone(tiny_base)


def batch(count: int = 3) -> Batch:
    torch.manual_seed(0)
    latents = Latents(torch.randn(count, 4, 8, 8), torch.rand(count, 4, 8, 8) * 0.1)
    names = tuple("abcdef"[:count])
    return Batch(names, prior=(False,) * count, latents=latents, cond=Cond(torch.randn(count, 12, 24)))


def by_hand(backbone: Backbone, given: Batch, rng: StepRNG) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sample's error and timestep, written out."""
    errors, steps = [], []
    alphas = backbone.schedule.alphas.double()
    for index, name in enumerate(given.samples):
        assert given.latents is not None and given.cond is not None
        z0 = given.latents.mean[index] + given.latents.std[index] * rng.normal((4, 8, 8), "posterior", name)
        noise = rng.normal((4, 8, 8), "noise", name)
        step = rng.integer(1000, "timestep", name)
        zt = (alphas[step].sqrt() * z0 + (1 - alphas[step]).sqrt() * noise).float()
        prediction = backbone.unet(zt[None], torch.tensor([step]), given.cond.context[index : index + 1]).sample
        errors.append((prediction[0] - noise).square().mean())
        steps.append(step)
    return torch.stack(errors), torch.tensor(steps)


def test_the_loss_is_the_formula(backbone: Backbone) -> None:
    given, rng = batch(), StepRNG(3, 4)
    errors, steps = by_hand(backbone, given, rng)
    loss = Denoising()(backbone, given, rng)
    torch.testing.assert_close(loss.value, errors.mean(), rtol=1e-4, atol=1e-5)

    from diffusers import DDPMScheduler
    from tiny import SCHEDULER

    snr = compute_snr(DDPMScheduler.from_config(SCHEDULER), steps)
    weighted = (errors * torch.minimum(snr, torch.full_like(snr, 5.0)) / snr).mean()
    torch.testing.assert_close(Denoising(snr_gamma=5.0)(backbone, given, rng).value, weighted, rtol=1e-4, atol=1e-5)


def test_a_sample_s_draws_do_not_depend_on_its_batch(backbone: Backbone) -> None:
    given, rng = batch(), StepRNG(0, 1)
    assert given.latents is not None and given.cond is not None
    whole = Denoising()(backbone, given, rng).value
    alone = []
    for index, name in enumerate(given.samples):
        latents = Latents(given.latents.mean[index : index + 1], given.latents.std[index : index + 1])
        one = Batch((name,), latents=latents, cond=Cond(given.cond.context[index : index + 1]))
        alone.append(Denoising()(backbone, one, rng).value)
    torch.testing.assert_close(whole, torch.stack(alone).mean(), rtol=1e-4, atol=1e-5)


def test_class_pictures_count_with_their_weight(backbone: Backbone) -> None:
    given, rng = replace(batch(), prior=(False, True, True)), StepRNG(0)
    errors, _ = by_hand(backbone, given, rng)
    loss = Denoising(prior_weight=0.5)(backbone, given, rng)
    wanted = errors[0] + 0.5 * errors[1:].mean()
    torch.testing.assert_close(loss.value, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.parts["prior"], errors[1:].mean(), rtol=1e-4, atol=1e-5)


def test_a_mask_leaves_places_out(backbone: Backbone) -> None:
    given, rng = batch(1), StepRNG(0)
    assert given.latents is not None
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    right = 1 - left
    both = [
        Denoising()(backbone, replace(given, mask=mask), rng).value for mask in (left, right, torch.ones_like(left))
    ]
    torch.testing.assert_close((both[0] + both[1]) / 2, both[2])
    torch.testing.assert_close(both[2], Denoising()(backbone, given, rng).value)


def test_velocities_and_offsets(backbone: Backbone) -> None:
    given, rng = batch(), StepRNG(0)
    plain = Denoising()(backbone, given, rng).value
    assert Denoising(noise_offset=0.3)(backbone, given, rng).value != plain
    backbone.schedule = replace(backbone.schedule, prediction="v_prediction")
    assert Denoising()(backbone, given, rng).value != plain
