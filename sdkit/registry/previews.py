"""Pictures of models that came from hubs, kept in SDKIT_HOME/previews under the sha256 of the model's file.

They come from strangers, so they are decoded before they are kept: what is no picture, or an enormous one, is refused.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.core.errors import SdkitError
from sdkit.core.paths import data_folder
from sdkit.weights.atomic import write_file

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_BYTES = 20 << 20
_LARGEST_PIXELS = 64_000_000
_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}


def previews_folder() -> Path:
    """Where they lie."""
    return data_folder() / "previews"


def kept_previews(sha256: str | None) -> list[Path]:
    """The pictures of a model by the sha256 of its file."""
    return sorted(previews_folder().glob(f"{sha256}.*")) if sha256 else []


def keep_preview(sha256: str, data: bytes) -> Path:
    """Keep the bytes of a picture as they came.

    Raises:
        SdkitError: they are no picture, or too large a one.
    """
    if len(data) > LARGEST_BYTES:
        raise SdkitError(f"the picture has more than {LARGEST_BYTES >> 20} MiB")
    picture = _decoded(io.BytesIO(data))
    path = previews_folder() / f"{sha256}{_SUFFIXES[str(picture.format)]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data, overwrite=True)
    return path


def preview_png(path: Path) -> bytes:
    """A picture as a PNG file.

    Raises:
        SdkitError: it is no picture, or too large a one.
    """
    try:
        picture = _decoded(path)
    except SdkitError as error:
        raise SdkitError(f"{path}: {error.message}", "take it away; another picture may stand for the model") from None
    if picture.format == "PNG":
        return path.read_bytes()
    buffer = io.BytesIO()
    picture.convert("RGBA" if picture.has_transparency_data else "RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _decoded(source: Path | io.BytesIO) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(source, formats=list(_SUFFIXES))
        if picture.width * picture.height > _LARGEST_PIXELS:
            raise SdkitError(f"the picture has {picture.width:,} x {picture.height:,} pixels, which is too many")
        picture.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SdkitError(f"it is no sound picture: {type(error).__name__}") from None
    return picture
