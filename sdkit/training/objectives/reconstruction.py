"""Reconstruction: an autoencoder gives back the picture, from latents near a normal distribution (arXiv:1312.6114)."""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.runtime.backbone import Backbone
from sdkit.runtime.rng import StepRNG
from sdkit.training.batch import Batch, Loss


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Mean squared error of the decoded pictures plus a little Kullback–Leibler divergence of the latents.

    Attributes:
        kl_weight: of the divergence, per element of the latents.
    """

    kl_weight: float = 1e-6

    @property
    def inputs(self) -> frozenset[str]:
        """Pixels."""
        return frozenset({"pixels"})

    def __call__(self, backbone: Backbone, batch: Batch, rng: StepRNG) -> Loss:
        """The loss of a batch; each picture's draw from its posterior depends on the step and the sample alone."""
        import torch

        assert batch.pixels is not None, "the feed gives what `inputs` asks for"
        posterior = backbone.vae.encode(batch.pixels).latent_dist
        shape = tuple(posterior.mean.shape[1:])
        noise = torch.stack([rng.normal(shape, "posterior", sample) for sample in batch.samples])
        latents = posterior.mean + posterior.std * noise.to(posterior.mean.device)
        error = (backbone.vae.decode(latents).sample.float() - batch.pixels).square().mean()
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        parts = {"error": error.detach(), "divergence": divergence.detach()}
        return Loss(error + self.kl_weight * divergence, parts)
