"""What one picture should be."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_SAMPLER = "DPM++ 2M Karras"


@dataclass(frozen=True, slots=True)
class Request:
    """One picture.

    Attributes:
        prompt: what it should show, in the syntax of `sdkit.generation.prompt`.
        negative: what it should not show.
        seed: its noise follows from this number alone.
        steps: steps of the sampler.
        cfg: guidance: how far the prediction is moved from the negative prompt's towards the prompt's; 1 turns it off.
        width: in pixels; None is what the base was made for.
        height: in pixels.
        sampler: as `sdkit.generation.samplers` names them.
        clip_skip: which of the text encoder's layers is read, counted from the end: 1 is the last, 2 the one before.
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 25
    cfg: float = 7.0
    width: int | None = None
    height: int | None = None
    sampler: str = DEFAULT_SAMPLER
    clip_skip: int = 1
