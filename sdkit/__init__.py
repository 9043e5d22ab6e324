"""Train Stable Diffusion adapters, merge and blend models, and convert between their formats.

The verbs are functions of this module; each is imported when first used, so that ``import sdkit`` costs nothing:

    >>> import sdkit
    >>> sdkit.merge("base.safetensors", {"lora.safetensors": 0.8}, "out.safetensors")
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "SdkitError": "sdkit.core.errors",
    "blend": "sdkit.jobs.blend",
    "combine": "sdkit.jobs.combine",
    "compare": "sdkit.jobs.compare",
    "convert": "sdkit.jobs.convert",
    "diff": "sdkit.jobs.diff",
    "extract": "sdkit.jobs.extract",
    "generate": "sdkit.jobs.generate",
    "hash": "sdkit.jobs.hash",
    "identify": "sdkit.jobs.identify",
    "inspect": "sdkit.jobs.inspect",
    "merge": "sdkit.jobs.merge",
    "open": "sdkit.jobs.lazy_model",
    "open_registry": "sdkit.registry",
    "pull": "sdkit.jobs.pull",
    "push": "sdkit.jobs.push",
    "reproduce": "sdkit.jobs.reproduce",
    "resize": "sdkit.jobs.combine",
    "run": "sdkit.jobs.run",
    "scale": "sdkit.jobs.combine",
    "search": "sdkit.jobs.search",
    "subtract": "sdkit.jobs.combine",
    "train": "sdkit.jobs.train",
    "unmerge": "sdkit.jobs.unmerge",
    "verify": "sdkit.jobs.verify",
    "xy": "sdkit.jobs.xy",
}

__all__ = [  # noqa: F822  (lazy: PEP 562)
    "SdkitError",
    "__version__",
    "blend",
    "combine",
    "compare",
    "convert",
    "diff",
    "extract",
    "generate",
    "hash",
    "identify",
    "inspect",
    "merge",
    "open",
    "open_registry",
    "pull",
    "push",
    "reproduce",
    "resize",
    "run",
    "scale",
    "search",
    "subtract",
    "train",
    "unmerge",
    "verify",
    "xy",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sdkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
