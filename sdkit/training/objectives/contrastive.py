"""Contrast: each picture is told from the batch's others by its caption, and each caption by its picture (CLIP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.runtime.backbone import Backbone
from sdkit.runtime.image_tower import ImageTower, fitted, unit
from sdkit.runtime.losses import HeldOut
from sdkit.runtime.rng import StepRNG
from sdkit.training.batch import Batch, Loss

if TYPE_CHECKING:
    import torch

TEXT_ENCODER = "text_encoder"  # whose tower is trained
MAX_SCALE = 100.0  # as CLIP's


@dataclass(frozen=True, slots=True)
class Contrastive:
    """Cross-entropy of the scaled cosines, both ways (arXiv:2103.00020). Pictures of one caption share it."""

    @property
    def inputs(self) -> frozenset[str]:
        """Pixels."""
        return frozenset({"pixels"})

    def __call__(self, backbone: Backbone, batch: Batch, rng: StepRNG) -> Loss:
        """The loss of a batch; nothing is drawn at random."""
        assert batch.pixels is not None, "the feed gives what `inputs` asks for"
        return Loss(contrast(backbone.towers[TEXT_ENCODER], batch.pixels, batch.captions).mean())


def contrast(tower: ImageTower, pixels: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
    """Each pair's loss [b] among pictures [b, 3, h, w] in −1 … 1 and their captions."""
    import torch

    with torch.no_grad():
        hidden, ids = tower.read(captions)
    images, texts = unit(tower.image_features(pixels)), unit(tower.project(hidden, ids))
    logits = tower.logit_scale.exp().clamp(max=MAX_SCALE) * images @ texts.T
    same = torch.tensor([[one == other for other in captions] for one in captions], device=logits.device).float()
    target = same / same.sum(1, keepdim=True)
    return -0.5 * (target * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1)


def contrastive_losses(backbone: Backbone, pictures: Sequence[HeldOut]) -> torch.Tensor:
    """The loss of each held-out picture among all of them, [pictures, 1]."""
    import torch

    tower = backbone.towers[TEXT_ENCODER]
    seen = [fitted(picture.pixels, tower.side) for picture in pictures if picture.pixels is not None]
    with torch.no_grad():
        return contrast(tower, torch.cat(seen), [picture.caption for picture in pictures])[:, None].cpu()
