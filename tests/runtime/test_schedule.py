from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from tiny import SCHEDULER

from sdkit.core.errors import SdkitError
from sdkit.runtime.load import load_backbone
from sdkit.runtime.losses import HeldOut, held_out_losses
from sdkit.runtime.schedule import noise_schedule


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_target_and_snr_are_diffusers(prediction: str) -> None:
    ours = noise_schedule(SCHEDULER, prediction)
    theirs = DDPMScheduler.from_config(SCHEDULER)
    clean, noise, steps = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5), torch.tensor([0, 400, 999])
    torch.testing.assert_close(ours.noise(clean, noise, steps), theirs.add_noise(clean, noise, steps))
    wanted = noise if prediction == "epsilon" else theirs.get_velocity(clean, noise, steps)
    torch.testing.assert_close(ours.target(clean, noise, steps), wanted)
    torch.testing.assert_close(ours.snr(steps), compute_snr(theirs, steps))


def test_zero_terminal_snr_leaves_no_signal_at_the_end() -> None:
    schedule = noise_schedule(SCHEDULER, "v_prediction", zero_terminal_snr=True)
    assert schedule.alphas[-1] == 0 and schedule.steps == 1000
    clean, noise = torch.randn(1, 2), torch.randn(1, 2)
    assert torch.equal(schedule.noise(clean, noise, torch.tensor([999])), noise)


def test_other_predictions_are_refused() -> None:
    with pytest.raises(SdkitError, match="flow"):
        noise_schedule(SCHEDULER, "flow")


def test_the_held_out_loss_looks_at_the_same_pairs_every_time(tiny_base: Path) -> None:
    backbone = load_backbone(tiny_base)
    latents = backbone.encode_image(torch.zeros(1, 3, 16, 16))
    pictures = [HeldOut("a", "a cat", (16, 16), latents), HeldOut("b", "a cat", (16, 16), latents)]
    losses = held_out_losses(backbone, pictures, pairs=4)
    assert losses.shape == (2, 4)
    assert torch.equal(losses, held_out_losses(backbone, pictures, pairs=4))
    assert torch.equal(losses[1:], held_out_losses(backbone, pictures[1:], pairs=4))
    assert not torch.equal(losses[0], losses[1])
