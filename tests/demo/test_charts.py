from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from vlmo.demo.report import line_chart

SVG = "{http://www.w3.org/2000/svg}"


def curves(chart: str, *, colour: str = "#4c86c6") -> list[list[tuple[float, ...]]]:
    """The points of a curve."""
    paths = [path for path in ElementTree.fromstring(chart).iter(f"{SVG}path") if colour in path.get("style", "")]
    points = [path.get("d", "").strip("M \n").split("L") for path in paths[:1]]  # the second is the legend's
    return [[tuple(map(float, point.split())) for point in path] for path in points]


@pytest.mark.parametrize("num_points", [1, 2, 24, 25, 5000])
def test_chart_is_xml_and_stays_inside(num_points):
    falling = [(step, 5 - 4 * step / num_points) for step in range(num_points)]
    chart = line_chart('A "title"', {"falling <&>": falling, "$1$": [(0, 2.0), (num_points, 2.0)]})
    root = ElementTree.fromstring(chart)
    assert "falling <&> from" in root.get("aria-label")
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert any(text.startswith("falling <&> ") for text in texts)
    assert "$1$ 2" in texts
    for points in curves(chart):
        assert len(points) <= 60
        assert all(0 <= x <= 375 and 0 <= y <= 195 for x, y in points)
    heights = [y for _, y in curves(chart)[0]]
    assert heights == sorted(heights)  # down the page, as the loss falls


def test_points_are_means_of_neighbours_at_their_middle():
    # A falling loss is not shown later than it fell.
    (points,) = curves(line_chart("line", {"loss": [(step, 600.0 - step) for step in range(600)]}))
    assert len(points) == 60
    steps = np.diff([x for x, _ in points])
    assert steps == pytest.approx(steps[0], abs=1e-3)
    slopes = np.diff([y for _, y in points]) / steps
    assert slopes == pytest.approx(slopes[0], abs=1e-3)


def test_values_that_are_not_finite_are_left_out():
    assert line_chart("none", {"loss": [(0, math.nan)]}) == line_chart("none", {}) == ""
    chart = line_chart("some", {"loss": [(0, 2.0), (1, math.nan), (2, 1.0)]})
    assert [len(points) for points in curves(chart)] == [2]
    assert "loss 1" in [text.text for text in ElementTree.fromstring(chart).iter(f"{SVG}text")]
