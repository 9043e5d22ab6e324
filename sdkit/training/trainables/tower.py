"""An image encoder beside a base's text encoder, which stays as it is (as in LiT, arXiv:2111.07991, turned around)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sdkit.runtime.backbone import Backbone
from sdkit.training.trainable import Group

if TYPE_CHECKING:
    from torch import nn

    from sdkit.runtime.image_tower import ImageTower


class Tower:
    """The image encoder of a tower, the text's projection, and the scale of the cosines.

    Args:
        tower: whose own parameters are trained.
        component: the text encoder it stands beside.
        lr: learning rate.
    """

    def __init__(self, tower: ImageTower, component: str, *, lr: float) -> None:
        self.tower = tower
        self._component = component
        self._lr = lr
        self.parameters: dict[str, nn.Parameter] = {
            **{f"vision.{name}": parameter for name, parameter in tower.vision.named_parameters()},
            "text_projection": tower.projection,
            "logit_scale": tower.logit_scale,
        }

    @property
    def trains_text(self) -> bool:
        """Never: the base's text encoder is not touched."""
        return False

    def groups(self) -> list[Group]:
        """All of it, with one rate."""
        return [Group("image encoder", list(self.parameters.values()), self._lr)]

    @contextmanager
    def install(self, backbone: Backbone) -> Iterator[None]:
        """Let the base have the tower."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.tower.to(backbone.device)
        backbone.towers[self._component] = self.tower
        try:
            yield
        finally:
            del backbone.towers[self._component]
            for parameter in self.parameters.values():
                parameter.requires_grad_(False)
