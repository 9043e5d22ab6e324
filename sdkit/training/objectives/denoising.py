"""Denoising: the squared error of the denoiser's prediction at random timesteps (DDPM, arXiv:2006.11239)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.runtime.backbone import Backbone
from sdkit.runtime.losses import masked_mean
from sdkit.runtime.rng import StepRNG
from sdkit.training.batch import Batch, Loss

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Problem:
    """What a denoiser is asked.

    Attributes:
        noised: latents, [b, c, h, w].
        timesteps: of their noise, [b].
        target: what it should predict, [b, c, h, w].
    """

    noised: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True, slots=True)
class Denoising:
    """E‖prediction − target‖², with the usual refinements.

    Attributes:
        prior_weight: how much samples of the class count beside those of the subject (DreamBooth, arXiv:2208.12242).
        snr_gamma: weight each timestep with min(SNR, γ) / SNR, for velocities / (SNR + 1) (arXiv:2303.09556).
        noise_offset: a noise constant over the picture, so that its mean brightness can be learnt.
    """

    prior_weight: float = 1.0
    snr_gamma: float | None = None
    noise_offset: float = 0.0

    @property
    def inputs(self) -> frozenset[str]:
        """Latents and text."""
        return frozenset({"latents", "cond"})

    def __call__(self, backbone: Backbone, batch: Batch, rng: StepRNG) -> Loss:
        """The loss of a batch; each sample's timestep and noise depend on the step and the sample alone."""
        assert batch.cond is not None, "the feed gives what `inputs` asks for"
        problem = self.problem(backbone, batch, rng)
        prediction = backbone.denoise(problem.noised, problem.timesteps, batch.cond)
        return self._combine(self.losses(backbone, problem, prediction, batch), batch)

    def problem(self, backbone: Backbone, batch: Batch, rng: StepRNG) -> Problem:
        """What is to be predicted for a batch."""
        import torch

        assert batch.latents is not None, "the feed gives what `inputs` asks for"
        clean = batch.latents.sample(self._draw(rng, batch, "posterior"))
        noise = self._noise(rng, batch)
        steps = [rng.integer(backbone.schedule.steps, "timestep", sample) for sample in batch.samples]
        timesteps = torch.tensor(steps, device=clean.device)
        noised = backbone.schedule.noise(clean, noise, timesteps)
        return Problem(noised, timesteps, backbone.schedule.target(clean, noise, timesteps))

    def losses(self, backbone: Backbone, problem: Problem, prediction: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Each sample's weighted error, [b]."""
        error = (prediction.float() - problem.target.float()).square()
        return masked_mean(error, batch.mask) * self._weights(backbone, problem.timesteps)

    def _combine(self, losses: torch.Tensor, batch: Batch) -> Loss:
        if not any(batch.prior):
            return Loss(losses.mean())
        import torch

        prior = torch.tensor(batch.prior, device=losses.device)
        instance, of_class = losses[~prior].mean(), losses[prior].mean()
        parts = {"instance": instance.detach(), "prior": of_class.detach()}
        return Loss(instance + self.prior_weight * of_class, parts)

    def _noise(self, rng: StepRNG, batch: Batch) -> torch.Tensor:
        noise = self._draw(rng, batch, "noise")
        if not self.noise_offset:
            return noise
        return noise + self.noise_offset * self._draw(rng, batch, "offset", flat=True)

    @staticmethod
    def _draw(rng: StepRNG, batch: Batch, purpose: str, *, flat: bool = False) -> torch.Tensor:
        import torch

        assert batch.latents is not None
        mean = batch.latents.mean
        shape = (mean.shape[1], 1, 1) if flat else tuple(mean.shape[1:])
        return torch.stack([rng.normal(shape, purpose, sample) for sample in batch.samples]).to(mean.device)

    def _weights(self, backbone: Backbone, timesteps: torch.Tensor) -> torch.Tensor:
        import torch

        if self.snr_gamma is None:
            return torch.ones_like(timesteps, dtype=torch.float32)
        snr = backbone.schedule.snr(timesteps)
        divisor = snr if backbone.schedule.prediction == "epsilon" else snr + 1
        return snr.clamp(max=self.snr_gamma) / divisor
