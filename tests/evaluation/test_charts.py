from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from vlmo.evaluation import Chart, Curve
from vlmo.evaluation.charts import format_value, last_value, line_chart, nice_ticks


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0], [0, 0.25, 0.5, 0.75, 1]),
        ([2.1, 6.9], [0, 2, 4, 6, 8]),
        ([5.1, 6.9], [5, 5.5, 6, 6.5, 7]),
        ([0.0, 750.0], [0, 200, 400, 600, 800]),
        ([-1.0, 1.0], [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values: list[float], expected: list[float]) -> None:
    assert nice_ticks(values) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e-9, 1e9])
def test_ticks_of_a_constant_do_not_collapse(value: float) -> None:
    ticks = nice_ticks([value, value])
    assert ticks[0] <= value <= ticks[-1]
    assert len(ticks) >= 2


def test_values_are_short() -> None:
    assert [format_value(value) for value in (0.31949, 12.34, 12345.6, 0.0)] == ["0.319", "12.3", "12,346", "0"]


@pytest.mark.parametrize("num_points", [1, 2, 24, 25, 5000])
def test_chart_is_xml_and_stays_inside(num_points: int) -> None:
    falling = Curve("falling <&>", [(step, 5 - 4 * step / num_points) for step in range(num_points)])
    svg = line_chart(Chart('A "title"', [falling, Curve("constant", [(0, 2.0), (num_points, 2.0)])]))
    root = ElementTree.fromstring(svg)
    means = [path for path in root.iter("path") if path.get("class", "").startswith("mean")]
    assert len(means) == 2
    for path in means:
        points = [point.split() for point in path.get("d", "")[1:].split("L")]
        assert len(points) <= 200
        assert all(0 <= float(x) <= 520 and 0 <= float(y) <= 250 for x, y in points)
    heights = [float(point.split()[1]) for point in means[0].get("d", "")[1:].split("L")]
    assert heights == sorted(heights)  # down the page, as the loss falls
    assert "falling <&> from" in (root.get("aria-label") or "")


def test_running_mean_of_a_line_is_the_line_inside() -> None:
    # Centred: a falling loss is not shown later than it fell.
    points = [(step, 100.0 - step) for step in range(101)]
    svg = ElementTree.fromstring(line_chart(Chart("line", [Curve("loss", points)])))
    raw, mean = (path.get("d", "").split("L") for path in svg.iter("path") if "series-1" in path.get("class", ""))
    assert raw[10:90] == mean[10:90]


def test_values_that_are_not_finite_are_left_out() -> None:
    assert line_chart(Chart("none", [Curve("loss", [(0, math.nan)])])) == ""
    assert line_chart(Chart("none", [])) == ""
    assert last_value(Curve("loss", [])) is None
    assert last_value(Curve("loss", [(0, 2.0), (1, math.inf)])) == 2.0
    assert "nan" not in line_chart(Chart("some", [Curve("loss", [(0, 2.0), (1, math.nan), (2, 1.0)])]))
