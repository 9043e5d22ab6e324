from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from sdkit.core.human import human_bytes
from sdkit.report.scatter import LETTER, Scatter, Spot

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*spots: Spot) -> ElementTree.Element:
    return ElementTree.fromstring(Scatter("a <title>", "size", "fall", spots, human_bytes).svg(alone=True))


def at(root: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in root.iter(f"{SVG}circle")]


def test_equal_ratios_are_equal_steps_and_more_is_higher() -> None:
    places = at(
        drawn(*(Spot(str(size), size, fall, fall, fall) for size, fall in ((1e3, 0.1), (1e5, 0.2), (1e7, 0.3))))
    )
    (left, low), (middle, mid), (right, high) = places
    assert middle - left == pytest.approx(right - middle, abs=0.2)
    assert low - mid == pytest.approx(mid - high, abs=0.2) and high < low


def test_names_cover_nothing() -> None:
    spots = [Spot(f"method number {number}", 1000 + number, 0.3, 0.2, 0.4) for number in range(5)]
    root = drawn(*spots)
    names = [text for text in root.iter(f"{SVG}text") if (text.text or "").startswith("method")]
    boxes = [(float(name.get("x", "")), float(name.get("y", "")), LETTER * len(name.text or "")) for name in names]
    for number, (x, y, width) in enumerate(boxes):
        for other_x, other_y, other_width in boxes[:number]:
            assert abs(y - other_y) >= 14 or x + width <= other_x or other_x + other_width <= x


def test_names_from_anywhere_are_only_text() -> None:
    root = drawn(Spot("<script>x</script>", 10, 1, 0.5, 2), Spot("b", 20, -1, -2, 0))
    assert not list(root.iter(f"{SVG}script")) and root.get("aria-label") == "a <title>"


def test_few_and_many_orders_of_magnitude_have_ticks() -> None:
    for sizes in ((900, 1000), (10, 40), (1e3, 1e10)):
        root = drawn(*(Spot("x", size, 1, 1, 1) for size in sizes))
        said = [text.text or "" for text in root.iter(f"{SVG}text")]
        assert len([word for word in said if re.search(r"\d k?B|MB|GB", word)]) >= 2
