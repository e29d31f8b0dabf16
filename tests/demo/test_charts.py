from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from vlmo.demo.charts import format_value, line_chart, nice_ticks


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0], [0, 0.25, 0.5, 0.75, 1]),
        ([2.1, 6.9], [0, 2, 4, 6, 8]),
        ([5.1, 6.9], [5, 5.5, 6, 6.5, 7]),
        ([-1.0, 1.0], [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values, expected):
    assert nice_ticks(values) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e-9, 1e9])
def test_ticks_of_a_constant_do_not_collapse(value):
    ticks = nice_ticks([value, value])
    assert ticks[0] <= value <= ticks[-1]
    assert len(ticks) >= 2


def test_values_are_short():
    assert [format_value(value) for value in (0.31949, 12.34, 12345.6, 0.0)] == ["0.319", "12.3", "12,346", "0"]


def drawn(figure, kind):
    """The points of each path of a kind."""
    paths = [path.get("d", "")[1:] for path in figure.iter("path") if path.get("class", "").startswith(kind)]
    return [[tuple(map(float, point.split())) for point in path.split("L")] for path in paths]


@pytest.mark.parametrize("num_points", [1, 2, 24, 25, 5000])
def test_chart_is_xml_and_stays_inside(num_points):
    falling = [(step, 5 - 4 * step / num_points) for step in range(num_points)]
    curves = {"falling <&>": falling, "constant": [(0, 2.0), (num_points, 2.0)]}
    figure = ElementTree.fromstring(line_chart('A "title"', curves))
    means = drawn(figure, "mean")
    assert len(means) == 2
    for points in means:
        assert len(points) <= 200
        assert all(0 <= x <= 520 and 0 <= y <= 250 for x, y in points)
    heights = [y for _, y in means[0]]
    assert heights == sorted(heights)  # down the page, as the loss falls
    assert "falling <&> from" in figure.find("svg").get("aria-label")


def test_running_mean_of_a_line_is_the_line_inside():
    # Centred: a falling loss is not shown later than it fell.
    figure = ElementTree.fromstring(line_chart("line", {"loss": [(step, 100.0 - step) for step in range(101)]}))
    (raw,), (mean,) = drawn(figure, "raw"), drawn(figure, "mean")
    assert raw[10:90] == mean[10:90]


def test_values_that_are_not_finite_are_left_out():
    assert line_chart("none", {"loss": [(0, math.nan)]}) == line_chart("none", {}) == ""
    figure = ElementTree.fromstring(line_chart("some", {"loss": [(0, 2.0), (1, math.nan), (2, 1.0)]}))
    assert len(drawn(figure, "raw")[0]) == 2
    assert figure.find("figcaption/div").text is None
    assert [key.find("b").text for key in figure.iter("span")] == ["1"]
