"""HyperDreamBooth's two objectives, one after the other: identities of their own, then what predicts them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sdkit.runtime.backbone import Backbone
from sdkit.runtime.rng import StepRNG
from sdkit.training.batch import Batch, Loss
from sdkit.training.objectives.denoising import Denoising

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class OfIdentities:
    """Denoising, first with each identity's own vector θ, then with the predicted θ̂ and ``beta`` times its distance.

    The distance is ‖θ̂ − θ‖² / ‖θ − θ₀‖², with θ₀ what all identities have in common, so that it is 1 for a network that
    cannot tell them apart, whatever the size of θ (after arXiv:2307.06949, eq. 4).

    Attributes:
        denoising: the loss of a picture.
        first: batches in which the identities learn.
        beta: weight of the distance.
        reference: what the network looks at: ``latents`` or ``pixels``.
    """

    denoising: Denoising
    first: int
    beta: float
    reference: str

    @property
    def inputs(self) -> frozenset[str]:
        """Latents, text that is encoded late, and another picture of the same identity."""
        return frozenset({"latents", "text", f"reference {self.reference}"})

    def __call__(self, backbone: Backbone, batch: Batch, rng: StepRNG) -> Loss:
        """The loss of a batch; which of the two it is follows from its number."""
        from sdkit.training.trainables.population import population_in

        population = population_in(backbone)
        if rng.step < self.first:
            population.chosen.set(population.vectors(batch.subjects))
            return self._denoise(backbone, batch, rng)
        assert batch.reference is not None, "the feed gives what `inputs` asks for"
        predicted = population.predict(batch.reference)
        population.chosen.set(predicted)
        loss = self._denoise(backbone, batch, rng)
        common, own = population.common.detach(), population.differences(batch.subjects).detach()
        apart = distance(predicted - common, own)
        return Loss(loss.value + self.beta * apart, {"denoising": loss.value.detach(), "distance": apart.detach()})

    def _denoise(self, backbone: Backbone, batch: Batch, rng: StepRNG) -> Loss:
        assert batch.text is not None, "the feed gives what `inputs` asks for"
        return self.denoising(backbone, replace(batch, cond=batch.text()), rng)


def distance(predicted: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Mean of ‖predicted − own‖² / ‖own‖², of differences [n, size] from what all have in common."""
    size = own.square().sum(1).clamp(min=1e-12)
    return ((predicted - own).square().sum(1) / size).mean()
