"""DDIM (arXiv:2010.02502): the deterministic sampler, and the same steps backwards, from a picture to its noise.

Between two noise levels of a schedule a prediction moves the latents along a straight line in (picture, noise):

    z(to) = √ᾱ(to) · z_0 + √(1 − ᾱ(to)) · ε        z_0 and ε as the prediction has them at the level it starts from

Downwards this draws a picture. Upwards, with the prediction at the level it goes to, it inverts one; what draws it
again must take the very same levels, so both are methods of one class. Timesteps stand as diffusers' ``leading``
spacing with an offset of one puts them, and the last step ends at ᾱ_0 (``set_alpha_to_one`` off), as Stable Diffusion
was published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.core.errors import UsageError
from sdkit.runtime.schedule import NoiseSchedule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Ddim:
    """The steps of a schedule.

    Attributes:
        schedule: the base's.
        steps: how many.
    """

    schedule: NoiseSchedule
    steps: int

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.schedule.steps:
            raise UsageError(f"steps {self.steps} is out of bounds", f"use 1 to {self.schedule.steps}")

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The timestep of each step as a picture is drawn: falling."""
        offset = min(1, self.schedule.steps - 1 - (self.steps - 1) * self._stride)
        return tuple(index * self._stride + offset for index in reversed(range(self.steps)))

    @property
    def _stride(self) -> int:
        return self.schedule.steps // self.steps

    def down(self, noised: torch.Tensor, prediction: torch.Tensor, step: int) -> torch.Tensor:
        """The latents below step number `step`, from those above it [b, c, h, w] and the prediction for them."""
        above, below = self._levels(step)
        return self._moved(noised, prediction, above, below)

    def up(self, noised: torch.Tensor, prediction: torch.Tensor, step: int) -> torch.Tensor:
        """The latents above step number `step`, from those below it [b, c, h, w].

        Args:
            prediction: for the latents below, taken at the step's timestep.
        """
        above, below = self._levels(step)
        return self._moved(noised, prediction, below, above)

    def _levels(self, step: int) -> tuple[int, int]:
        """The timesteps whose noise levels lie above and below a step."""
        timestep = self.timesteps[step]
        return timestep, max(timestep - self._stride, 0)

    def _moved(self, noised: torch.Tensor, prediction: torch.Tensor, start: int, end: int) -> torch.Tensor:
        import torch

        here, there = (torch.tensor([level], device=noised.device) for level in (start, end))
        prediction = prediction.to(noised.dtype)  # latents stay in float32 whatever the denoiser computes in
        clean = self.schedule.clean(noised, prediction, here)
        return self.schedule.noise(clean, self.schedule.noise_in(noised, prediction, here), there)
