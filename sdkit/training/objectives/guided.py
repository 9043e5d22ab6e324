"""Denoising by the guided prediction, so that a positive and a negative embedding learn together (DreamArtist)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sdkit.runtime.backbone import Backbone
from sdkit.runtime.guidance import Guidance
from sdkit.runtime.losses import masked_mean
from sdkit.runtime.rng import StepRNG
from sdkit.training.batch import Batch, Loss
from sdkit.training.objectives.denoising import Denoising, Problem

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Guided:
    """E‖guided prediction − target‖² + r · E|decoded − picture| (arXiv:2211.11337).

    Attributes:
        guidance: makes the prediction.
        denoising: makes the noise, and weighs the timesteps.
        reconstruction: r, the weight of the pixels' absolute error in −1 … 1, of the picture that the prediction
            amounts to, decoded; 0 decodes nothing.
    """

    guidance: Guidance
    denoising: Denoising = field(default_factory=Denoising)
    reconstruction: float = 0.0

    @property
    def inputs(self) -> frozenset[str]:
        """Latents and text; pixels to be reconstructed."""
        return self.denoising.inputs | ({"pixels"} if self.reconstruction else set())

    def __call__(self, backbone: Backbone, batch: Batch, rng: StepRNG) -> Loss:
        """The loss of a batch; each sample's timestep and noise depend on the step and the sample alone."""
        assert batch.cond is not None, "the feed gives what `inputs` asks for"
        problem = self.denoising.problem(backbone, batch, rng)
        prediction = self.guidance(backbone, problem.noised, problem.timesteps, batch.cond)
        error = self.denoising.losses(backbone, problem, prediction, batch).mean()
        if not self.reconstruction:
            return Loss(error)
        pixels = self._pixels(backbone, problem, prediction, batch)
        parts = {"denoising": error.detach(), "reconstruction": pixels.detach()}
        return Loss(error + self.reconstruction * pixels, parts)

    @staticmethod
    def _pixels(backbone: Backbone, problem: Problem, prediction: torch.Tensor, batch: Batch) -> torch.Tensor:
        import torch
        from torch.nn import functional as F

        assert batch.pixels is not None, "the feed gives what `inputs` asks for"
        clean = backbone.schedule.clean(problem.noised, prediction.float(), problem.timesteps)
        with torch.autocast(clean.device.type, enabled=False):  # the autoencoder stays in float32
            decoded = backbone.decoded(clean)
        mask = None
        if batch.mask is not None:
            mask = F.interpolate(batch.mask, decoded.shape[-2:])
        return masked_mean((decoded - batch.pixels).abs(), mask).mean()
