"""A step that is more than one pass through the model and one step of an optimizer: a method that brings its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from sdkit.runtime.backbone import Backbone
from sdkit.training.batch import Batch, Loss
from sdkit.training.trainable import Trainable
from sdkit.training.updates import Update


@dataclass(frozen=True, slots=True)
class Solved:
    """What a step has found, and what people are told of the way there."""

    loss: Loss
    update: Update


@runtime_checkable
class Solver(Protocol):
    """What stands in an objective's place where each step is a small problem of its own, solved before the next begins.

    The loop gives it batches, and saves what it remembers beside the parameters; the optimizer of the run has nothing
    to do.

    Attributes:
        inputs: the fields of `Batch` it reads.
    """

    @property
    def inputs(self) -> frozenset[str]:
        """See the class."""
        ...

    def solve(self, backbone: Backbone, trained: Sequence[Trainable], batch: Batch, step: int) -> Solved:
        """Solve the problem of a step, counted from 0, and put what was found into the trainables' parameters.

        Raises:
            SdkitError: it has no solution.
        """
        ...

    def state(self) -> Mapping[str, Any]:
        """What the next step needs of those before it, beside the parameters."""
        ...

    def load(self, state: Mapping[str, Any], backbone: Backbone) -> None:
        """Take up a saved state."""
        ...
