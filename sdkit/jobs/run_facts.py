"""What a run's log says of the run itself: what it is at its beginning, what it took at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sdkit
from sdkit.core.events import Begun, Ended
from sdkit.core.memory import peak_memory_mib
from sdkit.training.method import Method
from sdkit.training.options import TrainOptions, parse_options
from sdkit.training.plan import Plan

if TYPE_CHECKING:
    import torch

    from sdkit.runtime.backbone import Backbone

FILES = frozenset("validation init class_data mask sample".split())  # keys that may name files


def begun(step: int, plan: Plan, method: Method, options: TrainOptions, data: Path, backbone: Backbone) -> Begun:
    """What the run is, with files by their names alone, because a report is shown to others."""
    from sdkit.runtime.precision import describe_device

    usual = parse_options({}, method.accepts, method.defaults, plan.method).as_dict()
    accepted = without_places({key: value for key, value in options.as_dict().items() if key in method.accepts})
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


def without_places(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which files and folders have their names alone."""
    return {
        key: Path(value).name if key in FILES and value and Path(value).exists() else value
        for key, value in options.items()
    }


def written_bytes(result: Path) -> int:
    """Size of a file, or of all files of a folder."""
    files = result.rglob("*") if result.is_dir() else [result]
    return sum(file.stat().st_size for file in files if file.is_file())


def package_versions() -> dict[str, str]:
    """The versions that decide what a run computes."""
    import platform
    from importlib.metadata import version

    packages = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"sdkit": sdkit.__version__, **packages, "python": platform.python_version()}
