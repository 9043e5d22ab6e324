"""From the computing type to the stored type: once, checked, and the same on every run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import torch_dtype
from sdkit.weights import DType

if TYPE_CHECKING:
    import torch


class OverflowToInfinity(SdkitError):
    """A result does not fit the output's element type, or is no number."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How results are rounded.

    Attributes:
        seed: None rounds to the nearest (ties to even). A number rounds up or down at random, in proportion to the
            distance, so that small changes survive on average in coarse types; the draw depends on the seed, the
            tensor's name and the element alone.
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
        info = torch.finfo(torch_dtype(dtype))
        _, exponent = torch.frexp(values)
        # frexp's mantissa lies in [0.5, 1), so a value below 2**e has steps of eps * 2**(e - 1), and no finer than the
        # smallest subnormal.
        step = torch.ldexp(torch.full_like(values, info.eps), exponent - 1).clamp_(min=info.smallest_normal * info.eps)
        draw = torch.rand(values.shape, generator=generator, dtype=values.dtype)
        return values.div_(step).add_(draw).floor_().mul_(step).clamp_(info.min, info.max)


def check_range(values: torch.Tensor, dtype: DType, name: str) -> None:
    """Refuse values that would be stored as infinity or NaN.

    Raises:
        OverflowToInfinity: naming the tensor and the largest value.
    """
    import torch

    if values.dtype.itemsize == 1:
        values = values.float()  # torch finds no extremes of float8
    low, high = (float(bound) for bound in torch.aminmax(values))
    limit = float(torch.finfo(torch_dtype(dtype)).max)
    if -limit <= low and high <= limit:
        return
    if low != low or high != high:
        raise OverflowToInfinity(f"{name}: the result is not a number", "one of the inputs holds NaN: sdkit inspect it")
    # Slightly above the limit still rounds down to it; let the cast itself decide.
    rounded = values.to(torch_dtype(dtype)).float()
    if not bool(torch.isfinite(rounded).all()):
        largest = max(abs(low), abs(high))
        raise OverflowToInfinity(
            f"{name}: {largest:.6g} does not fit {dtype.name} (at most {limit:.6g})",
            "use a smaller strength, or --dtype bf16 or fp32",
        )
