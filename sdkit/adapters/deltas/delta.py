"""What every kind of weight change can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Delta(Protocol):
    """A change of one weight, described by factors that still lie in their file.

    The weight is seen as a matrix: `rows` are the output features, and all further dimensions (input features and
    kernel) are flattened into columns.
    """

    @property
    def kind(self) -> str:
        """Short name as reports print it: ``lora``, ``locon``, ``full``, …"""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes, as the factors' shapes give it, in diffusers' convention."""
        ...

    @property
    def rank(self) -> int | None:
        """Rank of a low-rank change; None for other kinds."""
        ...

    @property
    def scale(self) -> float:
        """What the kind multiplies its factors by: alpha / rank as the format defines it, 1 where it has no scale."""
        ...

    def prepare(self, strength: float, dtype: torch.dtype) -> PreparedDelta:
        """Read the factors, fold `strength` and the kind's own scale in, and be ready for tiles of `dtype`.

        Raises:
            SdkitError: a factor holds NaN or infinity; the message names the tensor.
        """
        ...


class WithoutRank:
    """What kinds share that have neither rank nor scale: whole weights, factors of features, rotations."""

    __slots__ = ()

    @property
    def rank(self) -> int | None:
        """None."""
        return None

    @property
    def scale(self) -> float:
        """1."""
        return 1.0


class PreparedDelta(Protocol):
    """A delta with its factors in memory."""

    def add_rows(self, out: torch.Tensor, start: int) -> None:
        """Add rows ``start : start + out.shape[0]`` of the change to `out`, [rows, columns], in place."""
        ...

    def magnitude(self) -> float:
        """An upper bound of the absolute values of the change's elements."""
        ...

    def transpose(self) -> PreparedDelta:
        """The change of the transposed weight."""
        ...


def is_relative(delta: object) -> bool:
    """Whether a change depends on the base's own numbers (DoRA, GLoRA, rotations), so that it has no matrix of its own.

    Such a kind has the class attribute ``relative = True``. What its `prepare` returns finds base rows in `out` and
    changes them, and may ask to see all of them first (`streaming.add_delta.LooksFirst`).
    """
    return bool(getattr(delta, "relative", False))
