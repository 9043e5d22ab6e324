"""Pictures as training sees them: upright, opaque, eight-bit sRGB, whatever the file is."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sdkit.core.errors import SdkitError, UsageError
from sdkit.runtime.backbone import Frame
from sdkit.training.buckets import Size

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

T = TypeVar("T")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_WIDE_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


class BrokenPictureError(SdkitError):
    """A file that should be a picture cannot be decoded."""


def open_picture(path: Path, background: str = "white") -> Image:
    """The first frame of a picture file, turned upright by its EXIF orientation, in RGB.

    What is transparent shows `background`; 16-bit grey is scaled to 8 bits; an ICC profile, also of a CMYK picture, is
    converted to sRGB.

    Raises:
        BrokenPictureError: it is damaged, truncated, or of a size no picture has.
    """
    return _decoded(path, lambda image: _opaque(_eight_bit(_srgb(image)), background))


def open_alpha(path: Path) -> Image | None:
    """How opaque a picture is, upright, in L; None when all of it is.

    Raises:
        BrokenPictureError: see `open_picture`.
    """
    alpha = _decoded(path, lambda image: image.convert("RGBA").getchannel("A") if _transparent(image) else None)
    return alpha if alpha is not None and alpha.getextrema() != (255, 255) else None


def open_grey(path: Path) -> Image:
    """A picture file in L, upright.

    Raises:
        BrokenPictureError: see `open_picture`.
    """
    return _decoded(path, lambda image: _eight_bit(image).convert("L"))


def _decoded(path: Path, convert: Callable[[Image], T]) -> T:
    """What `convert` makes of a file's first frame, turned upright."""
    import PIL.Image
    from PIL import ImageOps

    try:
        with PIL.Image.open(path) as image:
            if image.width * image.height > (PIL.Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(f"{image.width} by {image.height} pixels are too many")
            image.load()
            return convert(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise BrokenPictureError(f"{path}: cannot be decoded: {error}") from None


def check_background(background: str) -> None:
    """Raise UsageError unless PIL knows the colour."""
    from PIL import ImageColor

    try:
        ImageColor.getrgb(background)
    except ValueError:
        raise UsageError(f"unknown colour {background!r}", "use a name like white, or #rrggbb") from None


def fit(image: Image, size: Size) -> Image:
    """Scale so that `size` is just covered, and cut out the middle."""
    import PIL.Image
    from PIL import ImageOps

    return image if image.size == size else ImageOps.fit(image, size, method=PIL.Image.Resampling.LANCZOS)


def frame_of(original: Size, size: Size) -> Frame:
    """What `fit` cuts out of a picture."""
    scale = max(size[0] / original[0], size[1] / original[1])
    left, top = (round((side * scale - shown) / 2) for side, shown in zip(original, size, strict=True))
    return Frame(original, (left, top), size)


def pixels(image: Image) -> torch.Tensor:
    """[3, h, w] in −1 … 1, float32."""
    import torch

    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.reshape(image.height, image.width, 3).permute(2, 0, 1).float().div(127.5).sub(1.0)


def _srgb(image: Image) -> Image:
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK", "RGBA"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(
            image, source, target, outputMode="RGBA" if image.mode == "RGBA" else "RGB"
        )
    except (ImageCms.PyCMSError, OSError):  # a broken profile says nothing about the pixels
        return image
    return converted or image


def _eight_bit(image: Image) -> Image:
    """Wide greys to L by their range: 1, 255 or 65535."""
    if image.mode not in _WIDE_GREY:
        return image
    import numpy as np
    import PIL.Image

    values = np.asarray(image).astype(np.float64)
    highest = float(values.max(initial=0.0))
    if image.mode.startswith("I;16"):
        full = 65535.0
    else:
        full = next((limit for limit in (1.0, 255.0, 65535.0) if highest <= limit), highest)
    return PIL.Image.fromarray(np.clip(np.rint(values * 255.0 / full), 0, 255).astype(np.uint8), mode="L")


def _transparent(image: Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _opaque(image: Image, background: str) -> Image:
    import PIL.Image

    if not _transparent(image):
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    below = PIL.Image.new("RGBA", with_alpha.size, background)
    return PIL.Image.alpha_composite(below, with_alpha).convert("RGB")
