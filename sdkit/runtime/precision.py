"""Devices and number formats by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.weights.dtypes import parse_precision

if TYPE_CHECKING:
    import torch


def save_type(name: str) -> torch.dtype:
    """A floating-point type by its short name.

    Raises:
        UsageError: there is none of that name.
    """
    import torch

    dtype: torch.dtype = getattr(torch, parse_precision(name).torch_name)
    return dtype


def find_device(name: str = "auto") -> torch.device:
    """A device by name; ``auto`` takes the first accelerator there is, for this process of several.

    Raises:
        SdkitError: there is no such device here.
    """
    import torch

    if name == "auto":
        device: torch.device = process_state(name).device
        return device
    kind = name.partition(":")[0]
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise SdkitError(f"there is no device {kind} here", "leave device= out to use what there is") from None
    return device


def describe_device(device: torch.device, dtype: torch.dtype) -> str:
    """What is computed on, and in which type: ``cpu, float32``."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {str(dtype).removeprefix('torch.')}"


def peak_device_mib(device: torch.device) -> float | None:
    """Largest memory of this process on an accelerator, in MiB; None where the device does not tell."""
    import torch

    return torch.cuda.max_memory_allocated(device) / (1 << 20) if device.type == "cuda" else None


def process_state(device: str = "auto") -> Any:
    """accelerate's knowledge of this process among several, as ``accelerate launch`` or ``torchrun`` started it."""
    import torch
    from accelerate import PartialState

    # Several processes on CPUs find each other only when accelerate is told that there is nothing else.
    return PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """The type a run computes in; ``auto`` is bfloat16 on an accelerator and float32 on a CPU.

    Raises:
        UsageError: there is no such precision, or the device cannot compute in it.
    """
    if precision == "auto":
        return save_type("fp32" if device.type == "cpu" else "bf16")
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("precision=fp16 is not for CPUs, which compute in it slowly or not at all", "use bf16 or fp32")
    return save_type(precision)
