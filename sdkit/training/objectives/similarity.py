"""Similarity: captions come near their pictures in CLIP's common space. No denoiser is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sdkit.runtime.backbone import Backbone
from sdkit.runtime.image_tower import text_features, unit
from sdkit.runtime.losses import HeldOut
from sdkit.runtime.rng import StepRNG
from sdkit.runtime.tokens import token_table
from sdkit.training.batch import Batch, Loss

if TYPE_CHECKING:
    import torch

Seen = Mapping[str, "torch.Tensor"]  # unit vectors [b, d] of pictures by the text encoder whose tower saw them


@dataclass(frozen=True, slots=True)
class Similarity:
    """1 − the mean cosine between captions and pictures, over all text encoders with a tower.

    What is seen in a picture is kept: the image encoder does not train.
    """

    _kept: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def inputs(self) -> frozenset[str]:
        """Pixels."""
        return frozenset({"pixels"})

    def __call__(self, backbone: Backbone, batch: Batch, rng: StepRNG) -> Loss:
        """The loss of a batch; nothing is drawn at random."""
        assert batch.pixels is not None, "the feed gives what `inputs` asks for"
        rows = [
            self._look(backbone, sample.partition("#")[0], batch.pixels[at : at + 1])
            for at, sample in enumerate(batch.samples)
        ]
        return Loss(1 - cosines(backbone, batch.captions, _joined(rows)).mean())

    def _look(self, backbone: Backbone, sample: str, pixels: torch.Tensor) -> Seen:
        if sample not in self._kept:
            self._kept[sample] = {name: tower.images(pixels) for name, tower in backbone.towers.items()}
        return self._kept[sample]


@dataclass(frozen=True, slots=True)
class PromptSimilarity:
    """As `Similarity`, of the prompt that stands nearest to trained rows, which is remembered with its cosine."""

    similarity: Similarity = field(default_factory=Similarity)

    @property
    def inputs(self) -> frozenset[str]:
        """Pixels."""
        return self.similarity.inputs

    def __call__(self, backbone: Backbone, batch: Batch, rng: StepRNG) -> Loss:
        """The loss of a batch."""
        loss = self.similarity(backbone, batch, rng)
        token_table(backbone, next(iter(backbone.towers))).remember(1 - loss.value.detach())
        return loss


def cosines(backbone: Backbone, captions: Sequence[str], seen: Seen) -> torch.Tensor:
    """The cosine [b] of each caption and its picture, averaged over the text encoders with a tower."""
    import torch

    features = text_features(backbone, captions)
    return torch.stack([(unit(features[name]) * seen[name]).sum(-1) for name in seen]).mean(0)


def similarity_losses(backbone: Backbone, pictures: Sequence[HeldOut]) -> torch.Tensor:
    """1 − the cosine of each held-out picture and its caption, [pictures, 1]."""
    import torch

    rows = []
    with torch.no_grad():
        for picture in pictures:
            assert picture.pixels is not None, "the similarity is of pixels"
            seen = {name: tower.images(picture.pixels) for name, tower in backbone.towers.items()}
            rows.append(1 - cosines(backbone, [picture.caption], seen).cpu())
    return torch.stack(rows)


def _joined(rows: Sequence[Seen]) -> Seen:
    import torch

    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
