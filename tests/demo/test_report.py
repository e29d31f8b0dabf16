from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlmo.demo.report import line_chart, write_report

SVG = "{http://www.w3.org/2000/svg}"
NASTY = 'a "quoted" <script>alert(1)</script> & <b>bold</b> $title'
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags close in order and collects what the tests look at."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str):
        assert self.open.pop() == tag

    def handle_data(self, data: str):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def image(number):
    image = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((8, 8, 64, 64), fill=(40 * number % 256, 90, 255 - 20 * number % 256, 255))
    return image


def full_report() -> dict[str, Any]:
    images = [image(number) for number in range(6)]
    dual, fused, chance = {"Texts": 0.118}, {"Texts": 0.161, "Questions": 0.9}, {"Texts": 0.002, "Questions": 0.5}
    found = {"text": NASTY, "images": images[:5], "correct": 2, "rank": 3, "answer": images[2]}
    return {
        "title": f"Title {NASTY}",
        "summary": f"Summary {NASTY}",
        "metrics": {"Dual encoder": dual, f"Fusion encoder {NASTY}": fused, "Chance": chance},
        "metrics_note": f"Note {NASTY}",
        "decisions": [{"text": NASTY, "dual": images[0], "fusion": images[1]}],
        "decisions_note": f"Decided {NASTY}",
        "charts": {
            f"Losses {NASTY}": {NASTY: [(step, 4 / (step + 1)) for step in range(3000)]},
            "Broken": {"nan": [(0, math.nan), (1, math.inf)]},
        },
        "text_to_image": [found, found | {"text": "missed", "correct": None, "rank": 17, "answer": images[5]}],
        "attention": [(images[0], [NASTY, "b"], np.random.rand(2, 4, 4).astype(np.float32))],
    }


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    path = write_report(tmp_path_factory.mktemp("report") / "new" / "report.html", **full_report())
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_text_is_escaped(html, page):
    assert "<script" not in html
    assert "<b>bold" not in html
    # Title (twice: the window's too), summary, notes, names, key, caption, words: everything arrives unharmed.
    assert page.text.count(NASTY) >= 10


def test_report_loads_nothing(html, page):
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "video", "audio"} == set()
    assert all((shown["src"] or "").startswith("data:image/") for shown in page.all("img"))
    assert not re.search(r"@import|url\(|srcset|\son\w+=", html)
    assert page.all("a") == []
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")


def test_metrics_stand_beside_chance_and_ranks_beside_queries(page):
    for text in ("11.8", "16.1", "0.2", "90.0", "rank 3", "rank 17"):
        assert text in page.text
    tiles = [item["class"] for item in page.all("li") if "image" in (item.get("class") or "")]
    assert tiles == ["image", "image", "image right", "image", "image"] + ["image"] * 5
    assert len([item for item in page.all("li") if item.get("class") == "answer"]) == 1


def test_report_can_be_read_without_seeing(html, page):
    assert page.all("html")[0]["lang"] == "en"
    assert all(shown["alt"] for shown in page.all("img"))
    assert len(page.all("svg")) == 1  # the chart without a finite value is left out
    (chart,) = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert re.search(r"from [\d.]+ to [\d.]+$", chart["aria-label"] or "")
    assert "prefers-color-scheme: dark" in html


def test_report_stays_small(tmp_path):
    path = tmp_path / "report.html"
    # Smooth in three colors and no two pixels alike, as photographs are.
    waves = np.linspace(0, 9, 900)[:, None, None] * np.linspace(1, 3, 700)[None, :, None] + np.arange(3)
    photo = Image.fromarray((127 + 90 * np.sin(waves) + np.random.normal(0, 8, waves.shape)).astype(np.uint8))
    query = {"text": "photographs", "images": [photo] * 5, "correct": 0, "rank": 1, "answer": photo}
    charts = {"long": {"loss": [(step, math.sin(step)) for step in range(100_000)]}}
    # Fifty photographs and a hundred thousand steps: images are shrunk, curves thinned out.
    assert write_report(path, title="big", charts=charts, text_to_image=[query] * 10).stat().st_size < 450_000


def test_empty_report_is_a_page_with_a_title(tmp_path):
    page = Page(write_report(tmp_path / "report.html", title="Nothing yet").read_text(encoding="utf-8"))
    assert "Nothing yet" in page.text
    assert page.all("section") == []


def curves(chart: str, *, color: str = "#4c86c6") -> list[list[tuple[float, ...]]]:
    """The points of a curve."""
    paths = [path for path in ElementTree.fromstring(chart).iter(f"{SVG}path") if color in path.get("style", "")]
    points = [path.get("d", "").strip("M \n").split("L") for path in paths[:1]]  # the second is the legend's
    return [[tuple(map(float, point.split())) for point in path] for path in points]


@pytest.mark.parametrize("num_points", [1, 25, 5000])
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


def test_points_are_means_of_finite_neighbors_at_their_middle():
    # A falling loss is not shown later than it fell.
    (points,) = curves(line_chart("line", {"loss": [(step, 600.0 - step) for step in range(600)] + [(600, math.nan)]}))
    assert len(points) == 60
    steps = np.diff([x for x, _ in points])
    assert steps == pytest.approx(steps[0], abs=1e-3)
    slopes = np.diff([y for _, y in points]) / steps
    assert slopes == pytest.approx(slopes[0], abs=1e-3)
    assert line_chart("none", {"loss": [(0, math.nan)]}) == line_chart("none", {}) == ""
