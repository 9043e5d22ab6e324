"""Reading the factors of a delta out of their file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sdkit.core.errors import SdkitError
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch


def factor_error(read: Read, reason: str, hint: str = "") -> SdkitError:
    """An error that names the file and the tensor."""
    return SdkitError(f"{read.weights.path}: {read.info.name}: {reason}", hint or "the file is damaged: fetch it again")


def check_float(*reads: Read | None) -> None:
    """Raise SdkitError unless every factor holds floating-point numbers, at least one of them."""
    for read in reads:
        if read is None:
            continue
        if not read.dtype.is_float:
            raise factor_error(read, f"a weight change cannot be stored as {read.dtype.name}")
        if read.info.numel == 0:
            raise factor_error(read, f"is empty, shape {list(read.shape)}")


def check_scale(read: Read, scale: float) -> None:
    """Raise SdkitError when the scale belonging to a factor (its alpha divided by its rank) is no number."""
    if not math.isfinite(scale):
        raise factor_error(read, f"its alpha makes the scale {scale}", "repair or drop the .alpha of this module")


def read_factor(read: Read, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in its own shape, row-major, converted to `dtype`.

    Raises:
        SdkitError: it holds NaN or infinity (as stored, or in `dtype`).
        DamagedFileError: the file has become shorter since its header was read.
    """
    import torch

    tensor = read.load().to(dtype)
    if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor)):
        raise factor_error(
            read, "holds NaN or infinity", "the adapter is damaged: download it again, or train it again"
        )
    return tensor


def same_bytes(first: Read, second: Read) -> bool:
    """Whether two tensors are equal in type, shape and every byte."""
    one, two = first.info, second.info
    if (one.dtype, one.shape, one.strides) != (two.dtype, two.shape, two.strides):
        return False
    return first.weights.read(one) == second.weights.read(two)
