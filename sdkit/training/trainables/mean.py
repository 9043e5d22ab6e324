"""A vector nothing trains: it is computed at the end, as the mean of what an image encoder sees in the pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact, Steering
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.tensors import in_memory
from sdkit.streaming.expression import Read
from sdkit.training.trainable import Group

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sdkit.training.feed import Feed


class MeanFeatures:
    """The mean of CLIP's image features, a vector for each text encoder that has a tower.

    Args:
        backbone: with its towers.
    """

    def __init__(self, backbone: Backbone) -> None:
        import torch
        from torch import nn

        self.parameters: dict[str, nn.Parameter] = {
            component: nn.Parameter(torch.zeros(tower.width)) for component, tower in backbone.towers.items()
        }

    @property
    def trains_text(self) -> bool:
        """Never."""
        return False

    def groups(self) -> list[Group]:
        """The vectors."""
        return [Group("mean", list(self.parameters.values()), 0.0)]

    @contextmanager
    def install(self, backbone: Backbone) -> Iterator[None]:
        """Nothing of the base changes."""
        yield

    def artifact(self, backbone: Backbone, feed: Feed, dtype: torch.dtype) -> Artifact:
        """The aesthetic embedding of a feed's pictures, rounded to `dtype`, with the texts' projections.

        The features are averaged as they are, not at length one: so the published embeddings were made.
        """
        tensors = {}
        for component, tower in backbone.towers.items():
            mean = mean_features(tower.image_features, feed)
            tensors[f"{component}.aesthetic"] = mean[None].to(dtype)
            tensors[f"{component}.text_projection"] = tower.projection.detach().to(dtype)
        held = in_memory("the aesthetic embedding", tensors)
        reads = {name: Read(held, info) for name, info in held.tensors.items()}
        steering = tuple(
            Steering(name, reads[f"{name}.aesthetic"], reads[f"{name}.text_projection"]) for name in backbone.towers
        )
        return Artifact(held, "trained", kind="aesthetic", steering=steering)


def mean_features(features: Callable[[torch.Tensor], torch.Tensor], feed: Feed) -> torch.Tensor:
    """The mean [d] of the features of a feed's pictures, each once, one picture at a time."""
    import torch

    with torch.no_grad():
        rows = [features(pixels)[0].double() for pixels in feed.all_pixels()]
    return torch.stack(rows).mean(0).float()
