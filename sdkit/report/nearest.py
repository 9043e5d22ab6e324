"""Which of some known drawings a picture is nearest to: what a model draws, counted without a judge that was trained.

Pictures are compared by the means of a grid of 16×16 fields. A drawing with transparent parts is laid on the picture's
own background first, so that only what it shows counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image

FIELDS = 16
BORDER = 3  # pixels that show the background


def by_distance(picture: Image, drawings: Sequence[Image]) -> list[int]:
    """Places of the drawings, the nearest first.

    Args:
        picture: of any size.
        drawings: with an alpha channel, or without.
    """
    background = background_of(picture)
    looked_at = _fields(_pixels(picture))
    distances = [float(((_fields(_laid_on(drawing, background)) - looked_at) ** 2).sum()) for drawing in drawings]
    return sorted(range(len(drawings)), key=distances.__getitem__)


def background_of(picture: Image) -> tuple[float, float, float]:
    """The median colour of the picture's border, each channel in 0 … 255."""
    import numpy as np

    pixels = _pixels(picture)
    sides = (pixels[:BORDER], pixels[-BORDER:], pixels[:, :BORDER], pixels[:, -BORDER:])
    red, green, blue = np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), 0).tolist()
    return red, green, blue


def _pixels(picture: Image) -> numpy.ndarray:
    import numpy as np

    return np.asarray(picture.convert("RGB"), dtype=np.float32)


def _laid_on(drawing: Image, background: tuple[float, float, float]) -> numpy.ndarray:
    import numpy as np

    pixels = np.asarray(drawing.convert("RGBA"), dtype=np.float32)
    alpha = pixels[..., 3:] / 255
    laid: numpy.ndarray = pixels[..., :3] * alpha + np.asarray(background, dtype=np.float32) * (1 - alpha)
    return laid


def _fields(pixels: numpy.ndarray) -> numpy.ndarray:
    """Means of 16×16 fields, [16, 16, 3]; pictures whose sides are no multiples lose the rest."""
    height, width = (side // FIELDS * FIELDS for side in pixels.shape[:2])
    fields = pixels[:height, :width].reshape(FIELDS, height // FIELDS, FIELDS, width // FIELDS, 3)
    means: numpy.ndarray = fields.mean((1, 3))
    return means
