"""This process among several that train together, each on its part of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.runtime.precision import process_state

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Processes:
    """Who this process is.

    Attributes:
        rank: its number.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls, device: str = "auto") -> Processes:
        """As ``accelerate launch`` or ``torchrun`` started it, to compute on `device`."""
        state = process_state(device)
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that saves and reports."""
        return self.rank == 0

    def has(self, number: int) -> bool:
        """Whether the work of this number is this process's, when all share it."""
        return number % self.count == self.rank

    def wait(self) -> None:
        """Until all have come as far."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.barrier()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` is set in one of the processes."""
        if self.count == 1:
            return flag
        import torch

        count = torch.tensor(float(flag), device=device)
        self.add_up([count])
        return bool(count > 0)

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the sum over all processes into each tensor."""
        if self.count > 1:
            import torch.distributed

            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
