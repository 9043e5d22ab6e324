"""What one training step looks at, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sdkit.runtime.backbone import Backbone, Cond, Latents
from sdkit.runtime.rng import StepRNG

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples of one size.

    Attributes:
        samples: their ids, no two alike.
        share: of the whole batch, when several processes divide it.
        prior: for each sample, whether it shows the class and not the subject.
        captions: what each is shown with.
        pixels: [b, 3, h, w] in −1 … 1, for objectives that look at pictures.
        latents: for objectives that look at latents.
        cond: for objectives that look at text.
        subjects: for each sample, which of several subjects it shows; empty texts where there is one.
        text: encodes the captions when it is called, for objectives that first choose what the text encoder does.
        reference: of each sample another picture of the same subject, where there is one, all in one square: the means
            of its latents [b, c, h, w], or pixels [b, 3, h, w].
        mask: [b, 1, h, w] of the latents, how much each place counts; None when all count alike.
    """

    samples: tuple[str, ...]
    share: float = 1.0
    prior: tuple[bool, ...] = ()
    captions: tuple[str, ...] = ()
    pixels: torch.Tensor | None = None
    latents: Latents | None = None
    cond: Cond | None = None
    mask: torch.Tensor | None = None
    subjects: tuple[str, ...] = ()
    text: Callable[[], Cond] | None = None
    reference: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss to minimise, a scalar, and the named scalars it is made of (detached; for people)."""

    value: torch.Tensor
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """Something to minimise: a pure function of the model, the batch and the step's randomness.

    Attributes:
        inputs: the fields of `Batch` it reads, of ``pixels``, ``latents``, ``cond`` and ``text``; ``reference latents``
            or ``reference pixels`` for that field.
    """

    @property
    def inputs(self) -> frozenset[str]:
        """See the class."""
        ...

    def __call__(self, backbone: Backbone, batch: Batch, rng: StepRNG) -> Loss:
        """The loss of a batch."""
        ...
