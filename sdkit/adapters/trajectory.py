"""A picture's way out of noise: where it begins, and what stands for the empty text at every step of it."""

from __future__ import annotations

from dataclasses import dataclass

from sdkit.streaming.expression import Read


@dataclass(frozen=True, slots=True)
class Trajectory:
    """An inverted picture (null-text inversion, arXiv:2211.09794): what draws it again, and versions of it.

    Attributes:
        uncond: what is read in the place of the empty prompt, [steps, 1, tokens, width], the noisiest step first; a
            single row [1, 1, tokens, width] holds for all steps.
        latents: the noise it begins with, [1, c, h, w]; None in files that leave it out.
        pooled: of SDXL, the pooled text beside `uncond`, [rows, 1, width].
        about: how it was made; None in files that do not say.
    """

    uncond: Read
    latents: Read | None = None
    pooled: Read | None = None
    about: About | None = None


@dataclass(frozen=True, slots=True)
class About:
    """How a picture was inverted. Another base, prompt or number of steps would draw another picture.

    Attributes:
        base: content id of the base (`quick_id`).
        base_name: its file's or folder's name.
        prompt: what the picture shows.
        picture: first 32 digits of the sha256 of the picture's file.
        steps: of the sampler.
        guidance: w.
        prediction: what the base predicts: ``epsilon`` or ``v_prediction``.
        mode: how the empty text was found: ``null-text`` or ``npi``.
        psnr: of the picture drawn again, in decibels.
        psnr_limit: of the picture that has only been through the autoencoder: more cannot be reached.
    """

    base: str
    base_name: str
    prompt: str
    picture: str
    steps: int
    guidance: float
    prediction: str
    mode: str
    psnr: float
    psnr_limit: float
