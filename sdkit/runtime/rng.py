"""Randomness as a function of (seed, step, sample, purpose): nothing is drawn from a stream that a resume could lose.

Every draw comes from its own Philox counter generator (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
SC 2011), keyed by a hash of those four, so it depends on neither the batch, nor the number of processes, nor on what
was drawn before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch


@dataclass(frozen=True, slots=True)
class StepRNG:
    """The randomness of one step.

    Attributes:
        seed: of the run.
        step: the step, counted from 0.
        attempt: how often the run has been rolled back, so that a repeated step is not repeated exactly.
    """

    seed: int
    step: int = 0
    attempt: int = 0

    def at(self, step: int) -> StepRNG:
        """The randomness of another step."""
        return replace(self, step=step)

    def normal(self, shape: tuple[int, ...], purpose: str, sample: str = "") -> torch.Tensor:
        """Standard normal numbers, float32, on the CPU."""
        import torch

        return torch.from_numpy(self._generator(purpose, sample).standard_normal(shape, dtype="float32"))

    def uniform(self, shape: tuple[int, ...], purpose: str, sample: str = "") -> torch.Tensor:
        """Numbers uniform in 0 … 1 (1 excluded), float32, on the CPU."""
        import torch

        return torch.from_numpy(self._generator(purpose, sample).random(shape, dtype="float32"))

    def integer(self, stop: int, purpose: str, sample: str = "") -> int:
        """An integer in 0 … `stop` (excluded)."""
        return int(self._generator(purpose, sample).integers(stop))

    def chance(self, probability: float, purpose: str, sample: str = "") -> bool:
        """True with the given probability."""
        return probability > 0 and float(self._generator(purpose, sample).random()) < probability

    def permutation(self, count: int, purpose: str, sample: str = "") -> list[int]:
        """The numbers 0 … `count` − 1 in random order."""
        return [int(index) for index in self._generator(purpose, sample).permutation(count)]

    def _generator(self, purpose: str, sample: str) -> numpy.random.Generator:
        import numpy as np

        name = "\0".join([str(self.seed), str(self.step), str(self.attempt), sample, purpose])
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
        return np.random.Generator(np.random.Philox(key=key))
