"""The noise schedule: how much of a picture is left at each timestep, and what a model is asked to predict there.

z_t = √ᾱ_t · z_0 + √(1 − ᾱ_t) · ε (DDPM, arXiv:2006.11239). The target is ε, or the velocity
v = √ᾱ_t · ε − √(1 − ᾱ_t) · z_0 (arXiv:2202.00512). With zero terminal SNR (arXiv:2305.08891) the last ᾱ is 0, which
only the velocity can be learnt from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError

if TYPE_CHECKING:
    import torch

PREDICTIONS = ("epsilon", "v_prediction")
LEAST_SIGNAL = 2.0**-24  # a smaller ᾱ is none: the noise level sqrt((1 − ᾱ) / ᾱ) of this one is 4096


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """A discrete schedule.

    Attributes:
        alphas: ᾱ by timestep, [T], float32.
        prediction: ``epsilon`` or ``v_prediction``.
    """

    alphas: torch.Tensor
    prediction: str

    @property
    def steps(self) -> int:
        """Number of timesteps T."""
        return self.alphas.shape[0]

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last timestep holds no signal (arXiv:2305.08891)."""
        return float(self.alphas[-1]) < LEAST_SIGNAL

    def to(self, device: torch.device) -> NoiseSchedule:
        """The same schedule on another device."""
        return NoiseSchedule(self.alphas.to(device), self.prediction)

    def noise(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`clean` [b, …] with `noise` of the same shape, at `timesteps` [b]."""
        signal, rest = self._factors(clean, timesteps)
        return signal * clean + rest * noise

    def target(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the model should predict from the noised picture."""
        if self.prediction == "epsilon":
            return noise
        signal, rest = self._factors(clean, timesteps)
        return signal * noise - rest * clean

    def clean(self, noised: torch.Tensor, prediction: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The clean picture that a prediction [b, …] amounts to."""
        signal, rest = self._factors(noised, timesteps)
        if self.prediction == "epsilon":
            return (noised - rest * prediction) / signal
        return signal * noised - rest * prediction

    def noise_in(self, noised: torch.Tensor, prediction: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The noise that a prediction [b, …] amounts to; with `clean`, all that is in the noised picture."""
        if self.prediction == "epsilon":
            return prediction
        signal, rest = self._factors(noised, timesteps)
        return signal * prediction + rest * noised

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Signal to noise ratio ᾱ / (1 − ᾱ) at `timesteps`."""
        alphas = self.alphas[timesteps]
        return alphas / (1 - alphas)

    def _factors(self, like: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alphas = self.alphas[timesteps].reshape(-1, *[1] * (like.ndim - 1))
        return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)


def noise_schedule(
    config: Mapping[str, Any], prediction: str | None, *, zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """The schedule a scheduler configuration describes.

    Args:
        config: as diffusers writes it.
        prediction: overrides the configuration's ``prediction_type``.
        zero_terminal_snr: rescale so that the last timestep holds no signal, even if the configuration does not say so.

    Raises:
        SdkitError: the model predicts something this version cannot train.
    """
    from diffusers import DDPMScheduler

    known = {key: value for key, value in config.items() if not key.startswith("_")}
    if zero_terminal_snr:
        known["rescale_betas_zero_snr"] = True
    scheduler = DDPMScheduler.from_config(known)
    kind = prediction or config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise SdkitError(f"the base predicts {str(kind)[:40]!r}", f"this version trains {' and '.join(PREDICTIONS)}")
    return NoiseSchedule(scheduler.alphas_cumprod.float(), kind)
