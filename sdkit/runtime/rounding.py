"""Rounding to bfloat16 at random, so that changes smaller than its steps are kept on average.

bfloat16 has 8 significant bits: a weight of 1 that is to change by 0.001 stays 1 when it is rounded to the nearest,
however often it is to change. Rounded up with the probability of its distance from below, it moves as it should on
average (Gupta et al. 2015, arXiv:1502.02551).

The draws are a function of a key and of a number's place: an integer hash on the device itself, because the counter
generators of `sdkit.runtime.rng` run on the CPU, and a U-Net would wait for its billion draws a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 22  # numbers that are rounded at once, so that no scratch memory is as large as the weights
_LOST = 16  # bits of a float32 that bfloat16 does not have


def round_at_random(values: torch.Tensor, out: torch.Tensor, key: int) -> None:
    """Round `values` into `out`, up or down in proportion to the distance; the expectation is the value.

    What is infinite or no number stays so.

    Args:
        values: float32, contiguous.
        out: bfloat16, contiguous, as many.
        key: below 2 ** 62; another key gives other draws.
    """
    import torch

    flat, target = values.view(-1), out.view(-1)
    for start in range(0, flat.numel(), CHUNK):
        part = flat[start : start + CHUNK]
        places = torch.arange(start, start + part.numel(), device=part.device, dtype=torch.int32)
        draws = _hashed(places, key) & ((1 << _LOST) - 1)
        lifted = part.view(torch.int32) + draws
        # The draw has been carried into the bits that stay; what is left of the others is cut off, not rounded again.
        cut = (lifted >> _LOST << _LOST).view(torch.float32)
        target[start : start + part.numel()].copy_(torch.where(torch.isfinite(part), cut, part))


def _hashed(places: torch.Tensor, key: int) -> torch.Tensor:
    """Well mixed 32 bits for each place: two rounds of multiplication and shift, the key's halves between them."""
    low, high = _signed(key), _signed(key >> 32)
    return _mixed(_mixed(places ^ low) + high)


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    """C. Wellons' lowbias32, a bijection of 32 bits found by search for the least bias (nullprogram.com, 2018)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    return bits ^ _shifted(bits, 16)


def _shifted(bits: torch.Tensor, count: int) -> torch.Tensor:
    """Shifted right with zeros moving in; torch's own shift of signed integers repeats the sign."""
    return (bits >> count) & ((1 << (32 - count)) - 1)


def _signed(number: int) -> int:
    """The lower 32 bits as the signed integer with those bits."""
    low = number & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low
