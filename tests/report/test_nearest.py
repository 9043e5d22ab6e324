from __future__ import annotations

import PIL.Image

from sdkit.report.nearest import background_of, by_distance


def disc(left: int, colour: tuple[int, int, int]) -> PIL.Image.Image:
    """A transparent picture with a square of a colour; what lies under the transparency is no matter."""
    picture = PIL.Image.new("RGBA", (64, 64), (255, 0, 255, 0))
    picture.paste((*colour, 255), (left, 16, left + 24, 40))
    return picture


def on(drawing: PIL.Image.Image, colour: tuple[int, int, int]) -> PIL.Image.Image:
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", drawing.size, (*colour, 255)), drawing).convert("RGB")


def test_the_background_does_not_matter() -> None:
    drawings = [disc(8, (200, 0, 0)), disc(32, (200, 0, 0)), disc(8, (0, 0, 200))]
    for colour in [(255, 255, 255), (20, 20, 20), (120, 160, 230)]:
        for place, drawing in enumerate(drawings):
            picture = on(drawing, colour)
            assert background_of(picture) == colour
            assert by_distance(picture, drawings)[0] == place


def test_the_order_is_that_of_the_distances() -> None:
    drawings = [disc(40, (255, 0, 0)), disc(20, (255, 0, 0)), disc(12, (255, 0, 0))]
    assert by_distance(on(disc(10, (255, 0, 0)), (0, 0, 0)), drawings) == [2, 1, 0]
