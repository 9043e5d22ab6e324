"""How many singular values are worth keeping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.core.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class RankRule:
    """A rank, or a rule that finds one for each module; then `rank` is the most it may find.

    Unlike kohya's `resize_lora`, which keeps one or two more, the smallest rank that fulfils the rule is kept.

    Attributes:
        rank: the rank, or the largest one allowed.
        sv_ratio: keep singular values larger than the largest divided by this.
        sv_fro: keep this share of the Frobenius norm.
        sv_cumulative: keep this share of the sum of all singular values.
        error: leave at most this relative error, ‖ΔW − kept‖ / ‖ΔW‖.

    Raises:
        UsageError: nothing is asked for, more than one rule is, or a number is out of range.
    """

    rank: int | None = None
    sv_ratio: float | None = None
    sv_fro: float | None = None
    sv_cumulative: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        rules = [name for name in ("sv_ratio", "sv_fro", "sv_cumulative", "error") if getattr(self, name) is not None]
        if len(rules) > 1:
            raise UsageError(f"{' and '.join(rules)} are different rules for one rank", "give one of them")
        if not rules and self.rank is None:
            raise UsageError("no rank was given", "give a rank, or a rule that finds one")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"a rank of {self.rank} keeps nothing", "give 1 or more")
        if self.sv_ratio is not None and not self.sv_ratio > 1:
            raise UsageError(f"the ratio {self.sv_ratio} is not above 1", "2 keeps what is above half the largest")
        for name in ("sv_fro", "sv_cumulative", "error"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UsageError(f"{name} must lie between 0 and 1, not {value:g}")

    @property
    def fixed(self) -> bool:
        """Whether every module gets the same rank."""
        return self.sv_ratio is self.sv_fro is self.sv_cumulative is self.error is None

    def choose(self, values: torch.Tensor, energy: float) -> int:
        """The rank for a change with these singular values.

        Args:
            values: the largest singular values, falling; all of them for `sv_cumulative`.
            energy: the sum of the squares of all.

        Returns:
            At least 1, at most as many as there are, and at most `rank`.
        """
        most = min(len(values), self.rank or len(values))
        return max(1, min(most, self._wanted(values, energy)))

    def _wanted(self, values: torch.Tensor, energy: float) -> int:
        """The smallest rank that fulfils the rule; one more than there are values where these do not."""
        if self.sv_ratio is not None:
            return int((values > values[0] / self.sv_ratio).sum())
        if self.sv_cumulative is not None:
            return 1 + int((values.cumsum(0) < self.sv_cumulative * values.sum()).sum())
        share = self.sv_fro**2 if self.sv_fro is not None else 1 - self.error**2 if self.error is not None else None
        return len(values) if share is None else 1 + int((values.square().cumsum(0) < share * energy).sum())

    def satisfied(self, values: torch.Tensor, energy: float) -> bool:
        """Whether the values seen are enough to find the rank."""
        return self._wanted(values, energy) <= len(values) - (self.sv_ratio is not None)


def relative_error(values: torch.Tensor, rank: int, energy: float) -> float:
    """‖ΔW − kept‖ / ‖ΔW‖ when `rank` of the singular `values` are kept; 0 for a change of nothing."""
    if energy <= 0:
        return 0.0
    # Of all values known the small ones are added up: subtracting large squares would lose them.
    rest = float(values[rank:].square().sum()) + max(0.0, energy - float(values.square().sum()))
    return math.sqrt(rest / energy)
