from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from sdkit.training.images import BrokenPictureError, fit, open_picture, pixels

CORNERS = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]]
# EXIF orientation → what must be done to the upright picture so that a viewer turns it upright again.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def corners() -> Image.Image:
    """Two by two pixels of four colours, enlarged unevenly."""
    array = np.array(CORNERS, dtype=np.uint8).repeat(4, 0).repeat(6, 1)
    return Image.fromarray(array)


@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    turn = STORED[orientation]
    stored = corners() if turn is None else corners().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png")), np.asarray(corners()))


def test_transparency_shows_the_background_not_what_is_hidden(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255, 255))
    image.save(tmp_path / "a.png")
    assert list(open_picture(tmp_path / "a.png", "white").get_flattened_data()) == [(255, 255, 255), (0, 0, 255)]
    assert open_picture(tmp_path / "a.png", "#102030").getpixel((0, 0)) == (16, 32, 48)


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    assert list(open_picture(tmp_path / "a.png").get_flattened_data()) == [(255, 255, 255), (0, 255, 0)]


def test_grey_with_alpha(tmp_path: Path) -> None:
    Image.new("LA", (1, 1), (0, 128)).save(tmp_path / "a.png")
    red, green, blue = open_picture(tmp_path / "a.png").getpixel((0, 0))
    assert red == green == blue and abs(red - 127) <= 1


def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path) -> None:
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert [pixel[0] for pixel in open_picture(tmp_path / "a.png").get_flattened_data()] == [0, 128, 255]
    Image.fromarray(values.astype(np.float32) / 65535).save(tmp_path / "a.tiff")
    assert [pixel[0] for pixel in open_picture(tmp_path / "a.tiff").get_flattened_data()] == [0, 128, 255]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = open_picture(tmp_path / "a.jpg").getpixel((4, 4))
    assert red > 240 and green < 15 and blue < 15


def test_a_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), (120, 130, 140))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "broken.png", icc_profile=b"no profile")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    image.save(tmp_path / "srgb.png", icc_profile=srgb.tobytes())
    for name in ("plain", "broken", "srgb"):
        pixel = open_picture(tmp_path / f"{name}.png").getpixel((0, 0))
        assert max(abs(a - b) for a, b in zip(pixel, (120, 130, 140), strict=True)) <= 1


def test_damage_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")
    with pytest.raises(BrokenPictureError, match=r"a\.png: cannot be decoded"):
        open_picture(tmp_path / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BrokenPictureError, match=r"bomb\.png"):
        open_picture(tmp_path / "bomb.png")


def test_fitting_keeps_the_middle_and_the_shape() -> None:
    image = Image.new("RGB", (30, 10), "white")
    image.paste("black", (10, 0, 20, 10))
    fitted = fit(image, (10, 10))
    assert fitted.size == (10, 10)
    assert fitted.getpixel((5, 5)) == (0, 0, 0)
    assert fit(image, (30, 10)) is image


def test_pixels_are_channels_rows_columns_in_minus_one_to_one() -> None:
    tensor = pixels(corners())
    assert tensor.shape == (3, 8, 12)
    assert tensor[:, 0, 0].tolist() == [1, -1, -1] and tensor[:, 7, 0].tolist() == [-1, -1, 1]
    assert tensor.dtype == torch.float32
