"""A run for TensorBoard: the events of a run as its scalars and pictures.

Its files hold the time and the computer's name, as that program's format has them; no other output does.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sdkit.core.errors import SdkitError
from sdkit.core.events import Event, Sampled, Step, Validation

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PACKAGE = "tensorboard"
PROMPT_LENGTH = 60


class Board(Protocol):
    """Somebody who is told events."""

    def __call__(self, event: Event) -> None:
        """Take one event."""
        ...


def check_tensorboard() -> None:
    """Raise SdkitError unless TensorBoard is installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise SdkitError(
            f"tensorboard=yes needs the package {PACKAGE}, which is not installed", f"pip install {PACKAGE}"
        )


@contextmanager
def tensorboard(folder: Path, samples: Path, step: int) -> Iterator[Board]:
    """What a run's events should be given to, while the context lasts.

    Args:
        folder: where TensorBoard's files go.
        samples: where the run's sample pictures lie.
        step: where the run goes on; what an earlier process wrote of later steps is hidden.
    """
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
    try:
        yield lambda event: _write(writer, samples, event)
    finally:
        writer.close()


def _write(writer: SummaryWriter, samples: Path, event: Event) -> None:
    if isinstance(event, Sampled):
        for number, (prompt, name) in enumerate(zip(event.prompts, event.files, strict=True), 1):
            _write_picture(writer, f"samples/{number} {prompt[:PROMPT_LENGTH]}", samples / name, event.step)
    for name, value in _scalars(event).items():
        if math.isfinite(value):
            writer.add_scalar(name, value, event.step)


def _scalars(event: Event) -> dict[str, float]:
    if isinstance(event, Step):
        parts = {f"loss/{name}": value for name, value in event.parts.items()}
        rates = {"train/lr": event.lr, "train/grad_norm": event.grad_norm, "train/seconds": event.seconds}
        return {"loss/train": event.loss, **parts, **rates}
    return {"loss/held-out": event.loss} if isinstance(event, Validation) else {}


def _write_picture(writer: SummaryWriter, name: str, path: Path, step: int) -> None:
    import numpy as np
    import PIL.Image

    with PIL.Image.open(path) as image:
        writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
