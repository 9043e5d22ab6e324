from __future__ import annotations

import pytest
import torch

from sdkit.core.errors import UsageError
from sdkit.runtime.ddim import Ddim
from sdkit.runtime.schedule import NoiseSchedule, noise_schedule

CONFIG = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def schedule(prediction: str) -> NoiseSchedule:
    return noise_schedule(CONFIG, prediction)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [50, 7])
def test_the_steps_are_those_of_diffusers_schedulers(prediction: str, steps: int) -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler.from_config({**CONFIG, "prediction_type": prediction})
    theirs.set_timesteps(steps)
    ddim = Ddim(schedule(prediction), steps)
    assert list(ddim.timesteps) == theirs.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 4, 4, generator=generator)
    for step, timestep in enumerate(theirs.timesteps):
        predicted = torch.randn(1, 4, 4, 4, generator=generator)
        wanted = theirs.step(predicted, timestep, latents, eta=0.0).prev_sample
        torch.testing.assert_close(ddim.down(latents, predicted, step), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_backwards_is_diffusers_inverse_scheduler(prediction: str) -> None:
    from diffusers import DDIMInverseScheduler

    steps = 20
    theirs = DDIMInverseScheduler.from_config({**CONFIG, "prediction_type": prediction})
    theirs.set_timesteps(steps)
    ddim = Ddim(schedule(prediction), steps)
    assert list(ddim.timesteps[::-1]) == theirs.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 4, 4, generator=generator)
    for step, timestep in zip(reversed(range(steps)), theirs.timesteps, strict=True):
        predicted = torch.randn(1, 4, 4, 4, generator=generator)
        if timestep > 50:  # below its first timestep their scheduler takes another level
            wanted = theirs.step(predicted, timestep, latents).prev_sample
            torch.testing.assert_close(ddim.up(latents, predicted, step), wanted, rtol=1e-5, atol=1e-5)


def test_up_and_down_between_the_same_levels_are_inverse() -> None:
    ddim = Ddim(schedule("epsilon"), 10)
    latents, noise = torch.linspace(-2, 2, 64).reshape(1, 4, 4, 4), torch.ones(1, 4, 4, 4)
    for step in range(10):
        torch.testing.assert_close(ddim.down(ddim.up(latents, noise, step), noise, step), latents)


def test_every_timestep_lies_in_the_schedule() -> None:
    for steps in (1, 3, 999, 1000):
        timesteps = Ddim(schedule("epsilon"), steps).timesteps
        assert len(set(timesteps)) == steps and timesteps[0] <= 999 and timesteps[-1] >= 0
    with pytest.raises(UsageError, match="steps 1001 is out of bounds"):
        Ddim(schedule("epsilon"), 1001)
