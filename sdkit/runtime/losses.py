"""The held-out loss: denoising at fixed noise and timesteps, so that two models are compared on the same pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.runtime.backbone import Backbone, Cond, Frame, Latents
from sdkit.runtime.guidance import Guidance
from sdkit.runtime.rng import StepRNG

if TYPE_CHECKING:
    import torch

PAIRS = 8


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One picture that is not trained on.

    Attributes:
        id: names its content.
        caption: what it shows.
        size: width and height.
        latents: [1, c, h, w]; None where only pixels are looked at.
        pixels: [1, 3, h, w] in −1 … 1; None where only latents are looked at.
        frame: how it was cut; None for a whole picture.
        mask: [1, 1, h, w] of the latents, how much each place counts; None when all count alike.
        reference: of another picture of the same subject, [1, c, h, w], for methods that look at one first.
    """

    id: str
    caption: str
    size: tuple[int, int]
    latents: Latents | None = None
    pixels: torch.Tensor | None = None
    frame: Frame | None = None
    mask: torch.Tensor | None = None
    reference: torch.Tensor | None = None


def held_out_losses(
    backbone: Backbone,
    pictures: Sequence[HeldOut],
    *,
    pairs: int = PAIRS,
    seed: int = 0,
    guidance: Guidance | None = None,
) -> torch.Tensor:
    """The loss of every pair, [pictures, pairs], float32 on the CPU.

    Timesteps are spread evenly over the schedule; noise is a function of the seed, the picture and the pair. Nothing is
    dropped out, so that a run can be looked at in its midst.

    Args:
        guidance: makes the prediction; None to take the denoiser's own.
    """
    import torch

    rng = StepRNG(seed)
    spread = [(2 * index + 1) * backbone.schedule.steps // (2 * pairs) for index in range(pairs)]
    timesteps = torch.tensor(spread, device=backbone.device)
    rows = []
    with torch.no_grad(), backbone.evaluating():
        for picture in pictures:
            assert picture.latents is not None, "the denoiser's loss is of latents"
            mean = picture.latents.mean.to(backbone.device)
            clean = mean.expand(pairs, *mean.shape[1:])
            noise = rng.normal((pairs, *mean.shape[1:]), "held-out", picture.id).to(backbone.device)
            text = backbone.encode_text(backbone.tokenize([picture.caption]), picture.size)
            cond = _repeated(backbone.framed(text, [picture.frame or Frame.whole(picture.size)]), pairs)
            noised = backbone.schedule.noise(clean, noise, timesteps)
            target = backbone.schedule.target(clean, noise, timesteps)
            predict = guidance or type(backbone).denoise
            error = predict(backbone, noised, timesteps, cond).float() - target
            mask = picture.mask.to(backbone.device) if picture.mask is not None else None
            rows.append(masked_mean(error.square(), mask).cpu())
    return torch.stack(rows)


def fall_interval(before: torch.Tensor, after: torch.Tensor, *, resamples: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of how far the mean loss fell (Efron 1979, percentile method).

    Pairs are drawn with replacement, each with its loss before and after, so what makes a pair hard cancels out.

    Args:
        before: the losses [pictures, pairs].
        after: those of the same pairs.
    """
    import torch

    falls = (before - after).double().flatten()
    places = StepRNG(0).uniform((resamples, falls.numel()), "bootstrap").mul(falls.numel()).long()
    means = falls[places.clamp(max=falls.numel() - 1)].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def masked_mean(error: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over all but the first dimension; places count as the mask says."""
    if mask is None:
        return error.flatten(1).mean(1)
    weights = mask.expand_as(error)
    return (error * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1e-6)


def reconstruction_losses(backbone: Backbone, pictures: Sequence[HeldOut]) -> torch.Tensor:
    """Mean squared error of decoded latents' means, [pictures, 1]; 4 / error is the peak signal to noise ratio."""
    import torch

    rows = []
    for picture in pictures:
        assert picture.pixels is not None, "the autoencoder's loss is of pixels"
        pixels = picture.pixels.to(backbone.device)
        decoded = backbone.decode(backbone.encode_image(pixels).mean)
        rows.append((decoded - pixels).square().mean().reshape(1).cpu())
    return torch.stack(rows)


def psnr(error: float) -> float:
    """Peak signal to noise ratio in decibels of a mean squared error between pictures in −1 … 1."""
    return 10 * math.log10(4 / max(error, 1e-12))


def _repeated(cond: Cond, count: int) -> Cond:
    return Cond.join([cond] * count)
