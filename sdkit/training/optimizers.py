"""Optimisers by name: torch's own, and others' when their packages are there."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import canonical, nearest_hint
from sdkit.training.trainable import Group

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Where an optimiser is found and how it is called."""

    module: str
    name: str
    package: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    looks_at_all: bool = False  # its step is one number for all parameters


OPTIMIZERS = {
    "adamw": _Recipe("torch.optim", "AdamW", settings={"fused": True}),
    "adam": _Recipe("torch.optim", "Adam", settings={"fused": True}),
    "sgd": _Recipe("torch.optim", "SGD", settings={"momentum": 0.9}),
    "adafactor": _Recipe("torch.optim", "Adafactor"),
    "adamw8bit": _Recipe("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "lion": _Recipe("lion_pytorch", "Lion", "lion-pytorch"),
    "prodigy": _Recipe(
        "prodigyopt", "Prodigy", "prodigyopt", {"use_bias_correction": True, "safeguard_warmup": True}, True
    ),
    "adamw-schedulefree": _Recipe("schedulefree", "AdamWScheduleFree", "schedulefree"),
}


def make_optimizer(name: str, groups: Sequence[Group], weight_decay: float) -> torch.optim.Optimizer:
    """An optimiser over `groups`.

    Raises:
        UsageError: there is no optimiser of that name.
        SdkitError: its package is not installed.
    """
    recipe = find_optimizer(name)
    kind = getattr(importlib.import_module(recipe.module), recipe.name)
    table = [{"params": group.parameters, "lr": group.lr, "initial_lr": group.lr} for group in groups]
    optimizer: torch.optim.Optimizer = kind(table, lr=groups[0].lr, weight_decay=weight_decay, **recipe.settings)
    return optimizer


def find_optimizer(name: str) -> _Recipe:
    """What `make_optimizer` would use, checked; imports nothing but the package asked for."""
    recipe = OPTIMIZERS.get(canonical(name.lower()))
    if recipe is None:
        raise UsageError(f"unknown optimizer {name!r}", nearest_hint(canonical(name.lower()), OPTIMIZERS))
    if recipe.package:
        try:
            importlib.import_module(recipe.module)
        except ImportError:
            raise SdkitError(
                f"the optimizer {name} needs a package that is not installed", f"pip install {recipe.package}"
            ) from None
    return recipe


def optimizer_bytes(name: str, parameters: int) -> int:
    """About how many bytes an optimiser keeps for `parameters` float32 parameters."""
    per_parameter = {"sgd": 4, "adafactor": 1, "adamw8bit": 2, "lion": 4, "prodigy": 16}
    return parameters * per_parameter.get(canonical(name.lower()), 8)


def lr_factor(schedule: str, warmup: int, steps: int) -> Any:
    """Step → what the learning rate is multiplied with: a pure function, so that no resume can lose its place.

    Raises:
        UsageError: diffusers knows no such schedule.
    """
    import torch
    from diffusers.optimization import SchedulerType, get_scheduler

    names = [kind.value for kind in SchedulerType if kind.value != "piecewise_constant"]
    if schedule not in names:
        raise UsageError(f"unknown schedule {schedule!r}", nearest_hint(schedule, names))
    unit = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    return get_scheduler(schedule, unit, num_warmup_steps=warmup, num_training_steps=steps).lr_lambdas[0]
