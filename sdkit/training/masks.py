"""Which parts of a picture count in the loss: white counts, black does not.

``mask=alpha`` takes the picture's own transparency (as ``alpha_mask`` of kohya's scripts), ``mask=files`` a picture
beside it called ``NAME-masklabel.png`` (as OneTrainer) or ``NAME-mask.png``, and anything else names a folder with
pictures of the same names (as kohya's ``conditioning_data_dir``), in the data folder or anywhere.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.core.errors import SdkitError
from sdkit.training.buckets import Size
from sdkit.training.images import SUFFIXES, fit, open_alpha, open_grey

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

MARKS = ("-masklabel", "-mask")


def is_mask(path: Path, pictures: Collection[Path]) -> bool:
    """Whether a picture file is the mask of another of `pictures` in its folder."""
    stem = next((path.stem.removesuffix(mark) for mark in MARKS if path.stem.endswith(mark)), None)
    return stem is not None and any(path.with_name(f"{stem}{suffix}") in pictures for suffix in SUFFIXES)


def mask_folder(data: Path, choice: str) -> Path | None:
    """The folder of masks that ``mask=`` names; None where it names none.

    Raises:
        SdkitError: there is no such folder.
    """
    if choice in ("", "alpha", "files"):
        return None
    folder = next((place for place in (data / choice, Path(choice)) if place.is_dir()), None)
    if folder is None:
        raise SdkitError(f"mask={choice}: no such folder", "use alpha, files, or a folder with a mask for each picture")
    return folder


def find_mask(picture: Path, choice: str, folder: Path | None) -> Path | None:
    """The file a picture's mask is in: for ``alpha`` the picture itself; None where it has none."""
    if choice == "alpha":
        return picture if open_alpha(picture) is not None else None
    if choice == "files":
        names = [f"{picture.stem}{mark}{suffix}" for mark in MARKS for suffix in SUFFIXES]
        return next((path for name in names if (path := picture.with_name(name)).is_file()), None)
    if folder is None:
        return None
    return next((path for suffix in SUFFIXES if (path := folder / f"{picture.stem}{suffix}").is_file()), None)


def open_mask(picture: Path, mask: Path) -> Image:
    """The mask, upright and grey.

    Raises:
        BrokenPictureError: it cannot be decoded.
    """
    if mask == picture:
        alpha = open_alpha(picture)
        assert alpha is not None, "`find_mask` has seen it"
        return alpha
    return open_grey(mask)


def check_mask(picture: Path, mask: Path, size: Size) -> None:
    """Refuse a mask that leaves nothing of its picture, or is of another shape than the picture's `size`.

    Raises:
        SdkitError: it is such a mask, or cannot be decoded.
    """
    image = open_mask(picture, mask)
    if abs(image.width * size[1] - image.height * size[0]) > max(*size, *image.size):
        raise SdkitError(
            f"{mask}: is {image.width} by {image.height} pixels, its picture {size[0]} by {size[1]}",
            "a mask has the shape of its picture",
        )
    if image.getextrema() == (0, 0):
        raise SdkitError(f"{mask}: leaves nothing of {picture.name}", "white counts, black does not")


def latent_mask(picture: Path, mask: Path, size: Size, pixels_per_latent: int) -> torch.Tensor:
    """How much each place of the latents counts, [1, h, w] in 0 … 1: the mean of its pixels.

    Args:
        size: what the picture is brought to; the mask is scaled and cut like it.
    """
    import torch

    image = fit(open_mask(picture, mask), size)
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float().div(255)
    return torch.nn.functional.avg_pool2d(flat.reshape(1, image.height, image.width), pixels_per_latent)
