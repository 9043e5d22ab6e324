from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from sdkit.report.chart import BOTTOM, LEFT, RIGHT, TOP, Band, Chart, Line, number, smoothed, ticks


def paths(chart: Chart) -> dict[str, list[list[tuple[float, float]]]]:
    """Style → the strokes of its line, each a list of pixels, as an SVG reader sees them."""
    found = {}
    for element in ElementTree.fromstring(chart.svg()).iter("path"):
        strokes = [
            [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", stroke)]
            for stroke in element.attrib["d"].split("M")[1:]
        ]
        found[element.attrib["class"].split()[1]] = strokes
    return found


def test_values_lie_where_the_axes_say() -> None:
    chart = Chart("a <chart>", [Line([(0, 1.0), (50, 3.0), (100, 2.0)], "main")], width=600, height=300)
    root = ElementTree.fromstring(chart.svg())
    assert root.attrib["aria-label"] == "a <chart>"
    ((first, middle, last),) = paths(chart)["main"]
    assert (first[0], middle[0], last[0]) == (LEFT, (LEFT + 600 - RIGHT) / 2, 600 - RIGHT)
    labels = {
        text.text: float(text.attrib["y"]) - 4 for text in root.iter("text") if text.attrib["text-anchor"] == "end"
    }
    assert labels["1"] == pytest.approx(first[1], abs=0.1) and labels["3"] == pytest.approx(middle[1], abs=0.1)
    assert TOP < middle[1] < last[1] < first[1] < 300 - BOTTOM
    assert last[1] == pytest.approx((middle[1] + first[1]) / 2, abs=0.1)


def test_a_line_breaks_where_there_is_no_number() -> None:
    points = [(1, 1.0), (2, math.nan), (3, 2.0), (4, 1.5)]
    strokes = paths(Chart("", [Line(points, "main", dots=True)]))["main"]
    assert [len(stroke) for stroke in strokes] == [1, 2]
    assert "nan" not in Chart("", [Line(points, "main", dots=True)]).svg()


def test_a_wild_value_does_not_flatten_the_others() -> None:
    calm = [(float(step), 0.1 + 0.01 * (step % 7)) for step in range(300)]
    wild = [(x, 1000.0 if x == 150 else y) for x, y in calm]
    height = {
        name: paths(Chart("", [Line(points, "raw")]))["raw"][0][0][1] for name, points in (("c", calm), ("w", wild))
    }
    assert height["w"] == pytest.approx(height["c"], abs=3)


def test_a_long_line_keeps_its_peaks() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_000)
    chart = Chart("", [Line([(float(step), float(y)) for step, y in enumerate(values)], "main")])
    (stroke,) = paths(chart)["main"]
    assert len(stroke) <= 1200
    assert [x for x, _ in stroke] == sorted(x for x, _ in stroke)
    everything = paths(Chart("", [Line([(0.0, float(values.min())), (19_999.0, float(values.max()))], "main")]))[
        "main"
    ][0]
    assert min(y for _, y in stroke) == everything[1][1] and max(y for _, y in stroke) == everything[0][1]


def test_the_mean_around_a_point_is_numpy_s() -> None:
    values = np.random.default_rng(1).random(50)
    got = [y for _, y in smoothed([(float(index), float(y)) for index, y in enumerate(values)], 7)]
    assert np.allclose(got[3:-3], np.convolve(values, np.ones(7) / 7, "valid"))
    assert got[0] == pytest.approx(values[:4].mean())
    holes = smoothed([(0, 1.0), (1, math.nan), (2, 4.0)], 3)
    assert [y for _, y in holes] == [1.0, 2.5, 4.0]


@pytest.mark.parametrize("low, high", [(0, 1), (0.131, 0.2), (-3, 17), (0, 1e-5), (0, 12345)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 6 and low - 1e-9 <= found[0] and found[-1] <= high * (1 + 1e-9)
    step = found[1] - found[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9)) in (1, 2, 5)


def test_numbers_are_short() -> None:
    shown = {value: number(value) for value in (0.0, 0.125, 2000.0, 1e-5, 2.5e7, 1 / 3)}
    assert list(shown.values()) == ["0", "0.125", "2,000", "1e-5", "2.5e7", "0.3333"]


def test_a_flat_line_and_a_band_have_room() -> None:
    chart = Chart("", [Line([(0, 2.0), (5, 2.0)], "main", "flat")], [Band([(0, 1.0, 3.0), (5, 1.0, 3.0)], "area")])
    ((first, _),) = paths(chart)["main"]
    assert TOP < first[1] < chart.height - BOTTOM
    assert chart.legend == [("main", "flat"), ("band", "area")]
    (polygon,) = ElementTree.fromstring(chart.svg()).iter("polygon")
    assert len(polygon.attrib["points"].split()) == 4
