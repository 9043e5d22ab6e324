"""From the computing type to the stored type: once, checked, and the same on every run."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import torch_dtype
from sdkit.weights import DType

if TYPE_CHECKING:
    import torch


# From the types' definitions: torch.finfo says 3 for F8_E5M2FNUZ.
MANTISSA_BITS = {
    "F64": 52,
    "F32": 23,
    "F16": 10,
    "BF16": 7,
    "F8_E4M3": 3,
    "F8_E4M3FNUZ": 3,
    "F8_E5M2": 2,
    "F8_E5M2FNUZ": 2,
}


class OverflowToInfinity(SdkitError):
    """A result does not fit the output's element type, or is no number."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How results are rounded.

    Attributes:
        seed: None rounds to the nearest (ties to even). A number rounds up or down at random, in proportion to the
            distance, so that small changes survive on average in types shorter than float32; the draw depends on the
            seed, the tensor's name and the place of the tile within it, never on threads.
    """

    seed: int | None = None

    def store(self, values: torch.Tensor, out: torch.Tensor, dtype: DType, name: str, start: int) -> None:
        """Round `values` into `out`.

        Args:
            values: flat, float32 or float64; may be overwritten.
            out: flat, of the stored type.
            dtype: the stored type.
            name: the tensor's name, for messages and the random draw.
            start: index of the first element within the tensor.

        Raises:
            OverflowToInfinity: a value is NaN or would become infinite.
        """
        if not values.numel():
            return
        if dtype.is_float:
            check_range(values, dtype, name)
            if self.seed is not None and dtype.name not in {"F32", "F64"}:
                values = self._jitter(values, dtype, name, start)
        out.copy_(values)

    def _jitter(self, values: torch.Tensor, dtype: DType, name: str, start: int) -> torch.Tensor:
        """Move each value to its upper or lower neighbour in the stored type, at random."""
        import torch

        key = hashlib.sha256(f"{self.seed}/{name}/{start}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        info, eps = torch.finfo(torch_dtype(dtype)), 2.0 ** -MANTISSA_BITS[dtype.name]
        # Between two powers of two the step is the lower one times eps, and no finer than the smallest subnormal.
        step = _power_below(values).mul_(eps).clamp_(min=info.smallest_normal * eps)
        steps = values.div_(step)
        lower = steps.floor()
        draw = torch.rand(values.shape, generator=generator, dtype=values.dtype)
        # Adding the draw before taking the floor would itself round, and now and then lift an exact value.
        return lower.add_(draw < steps.sub_(lower)).mul_(step).clamp_(info.min, info.max)


def _power_below(values: torch.Tensor) -> torch.Tensor:
    """The largest power of two not above each absolute value: its exponent bits. Zero for zero and subnormal values."""
    import torch

    if values.dtype == torch.float64:
        return values.view(torch.int64).bitwise_and(0x7FF0000000000000).view(torch.float64)
    return values.view(torch.int32).bitwise_and(0x7F800000).view(torch.float32)


def check_range(values: torch.Tensor, dtype: DType, name: str) -> None:
    """Refuse values that would be stored as infinity or NaN.

    Raises:
        OverflowToInfinity: naming the tensor and the largest value.
    """
    import torch

    if values.dtype.itemsize == 1:
        values = values.float()  # torch finds no extremes of float8
    extremes = torch.stack(torch.aminmax(values)).abs()
    if dtype.name != "F64":
        extremes = extremes.float()  # as the cast to any shorter type begins
    largest = float(extremes.max())
    if math.isnan(largest):
        raise OverflowToInfinity(f"{name}: the result is not a number", "one of the inputs holds NaN: sdkit inspect it")
    limit = float(torch.finfo(torch_dtype(dtype)).max)
    # Not left to the cast, which makes the largest number of what is too large for fp8.
    half_step = 2.0 ** (math.frexp(limit)[1] - 2 - MANTISSA_BITS[dtype.name])
    if largest >= limit + half_step:  # what lies closer above the limit rounds down to it
        raise OverflowToInfinity(
            f"{name}: {largest:.6g} does not fit {dtype.name} (at most {limit:.6g})",
            "use a smaller strength, or --dtype bf16 or fp32",
        )
