"""Making a base with random weights out of configurations."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sdkit.core.report import Report
from sdkit.jobs.record import recorded

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class NewBase(Report):
    """What was made: the folder, and how many parameters it holds."""

    output: str
    parameters: int


def new_base(
    configs: PathLike, output: PathLike, *, seed: int = 0, dtype: str = "fp32", force: bool = False
) -> NewBase:
    """Make a diffusers folder with random weights, to train a model from nothing.

    Args:
        configs: a folder of configurations and a tokenizer, as diffusers lays them out.
        output: the folder to write.
        seed: the weights follow from it.
        dtype: ``fp32``, ``fp16`` or ``bf16``.
        force: replace a folder that is there.

    Raises:
        SdkitError: `configs` is no such folder, or `output` cannot be written.
    """
    from sdkit.runtime.create import create_base

    count = create_base(Path(configs), Path(output), seed=seed, dtype=dtype, overwrite=force)
    return recorded(NewBase(str(output), count))
