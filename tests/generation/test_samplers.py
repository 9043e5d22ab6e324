from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdkit.core.errors import UsageError
from sdkit.generation.pictures import draw
from sdkit.generation.request import DEFAULT_SAMPLER, Request
from sdkit.generation.samplers import SAMPLERS, make_scheduler, sampler_name
from sdkit.runtime.load import load_backbone
from sdkit.runtime.schedule import noise_schedule

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers|numpy")  # theirs, of one another
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_every_sampler_finds_the_picture_a_perfect_model_predicts(name: str, prediction: str, zero_snr: bool) -> None:
    """A model that always predicts the noise between what it sees and one picture leads to that picture."""
    if prediction == "epsilon" and zero_snr:
        pytest.skip("noise cannot be predicted where there is nothing else")
    pytest.importorskip("scipy")
    schedule = noise_schedule(CONFIG, prediction, zero_terminal_snr=zero_snr)
    scheduler = make_scheduler(name, schedule)
    scheduler.set_timesteps(12)
    clean = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(clean.shape, generator=generator) * scheduler.init_noise_sigma
    random = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, timestep)
        # Second-order samplers also ask between the timesteps of training.
        place = float(timestep)
        low, high = (float(schedule.alphas[round(min(max(at, 0), 999))]) for at in (place // 1, place // 1 + 1))
        alpha = max(low + (high - low) * (place % 1), 2.0**-24)
        noise = (seen - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
        predicted = noise if prediction == "epsilon" else velocity
        latents = scheduler.step(predicted, timestep, latents, **random).prev_sample
    assert float((latents - clean).abs().max()) < 0.1


def test_names_are_found_in_any_spelling() -> None:
    assert sampler_name("dpm++_2m_karras") == sampler_name("DPM++ 2M Karras") == DEFAULT_SAMPLER
    assert sampler_name("euler-a") == "Euler a" and sampler_name("pndm") == "PLMS"
    with pytest.raises(UsageError, match="unknown sampler") as caught:
        sampler_name("Eular a")
    assert caught.value.hint == "did you mean Euler a?"
    with pytest.raises(UsageError) as caught:
        sampler_name("qqq")
    assert "DPM++ 2M" in caught.value.hint


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws(tiny_base: Path, name: str) -> None:
    pytest.importorskip("scipy")
    assert draw(load_backbone(tiny_base), [Request("a cat", steps=3, sampler=name)])[0].size == (16, 16)
