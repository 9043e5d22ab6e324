"""What trains: a set of parameters of its own, and a way to put them into a model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sdkit.runtime.backbone import Backbone

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters with a learning rate of their own.

    Attributes:
        name: for people.
        parameters: see `Trainable.parameters`.
        lr: learning rate.
        ema: decay of their moving average; None for the run's.
    """

    name: str
    parameters: list[nn.Parameter]
    lr: float
    ema: float | None = None


class Trainable(Protocol):
    """Owns its parameters alone. The model's own weights never change, except those a trainable owns."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Name → parameter, in a fixed order."""
        ...

    @property
    def trains_text(self) -> bool:
        """Whether conditioning depends on it, so that encoded captions cannot be kept."""
        ...

    def groups(self) -> list[Group]:
        """The parameters by learning rate."""
        ...

    def install(self, backbone: Backbone) -> AbstractContextManager[None]:
        """Put the parameters into the model while the context lasts."""
        ...
