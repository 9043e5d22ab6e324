"""What a run's log says of the run itself: what it is at its beginning, what it took at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sdkit
from sdkit.core.events import Begun, Ended
from sdkit.core.memory import peak_memory_mib
from sdkit.training.options import TrainOptions
from sdkit.training.plan import Plan

if TYPE_CHECKING:
    import torch

    from sdkit.runtime.backbone import Backbone


def begun(step: int, plan: Plan, options: TrainOptions, data: Path, backbone: Backbone) -> Begun:
    """What the run is, with files by their names alone, because a report is shown to others."""
    from sdkit.runtime.precision import describe_device

    usual, accepted = options.defaults(), options.without_places()
    return Begun(
        step,
        plan={**plan.as_dict(), "output": Path(plan.output).name},
        options=accepted,
        changed={key: value for key, value in accepted.items() if value != usual[key]},
        data=data.absolute().name,
        device=describe_device(backbone.device, backbone.dtype),
        versions=package_versions(),
    )


def ended(step: int, seconds: float, device: torch.device, output_bytes: int | None) -> Ended:
    """What this process has taken."""
    from sdkit.runtime.precision import peak_device_mib

    return Ended(step, seconds, peak_memory_mib(), peak_device_mib(device), output_bytes)


def package_versions() -> dict[str, str]:
    """The versions that decide what a run computes."""
    import platform
    from importlib.metadata import version

    packages = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"sdkit": sdkit.__version__, **packages, "python": platform.python_version()}
