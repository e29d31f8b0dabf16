from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlmo.demo.examples import Decision, ImageQuery, TextQuery
from vlmo.demo.report import AttentionMap, Report, write_report

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


def full_report():
    images = [image(number) for number in range(6)]
    dual, fused, chance = {"Texts": 0.118}, {"Texts": 0.161, "Questions": 0.9}, {"Texts": 0.002, "Questions": 0.5}
    return Report(
        title=f"Title {NASTY}",
        summary=f"Summary {NASTY}",
        metrics={"Dual encoder": dual, f"Fusion encoder {NASTY}": fused, "Chance": chance},
        headline=("Texts", "Questions"),
        metrics_note=f"Note {NASTY}",
        decisions=[Decision(NASTY, dual=images[0], fusion=images[1])],
        decisions_note=f"Decided {NASTY}",
        seconds={f"Stage {NASTY}": 92.0, "Stage 2": 8.04},
        charts={
            f"Losses {NASTY}": {NASTY: [(step, 4 / (step + 1)) for step in range(3000)]},
            "Broken": {"nan": [(0, math.nan), (1, math.inf)]},
        },
        text_to_image=[
            ImageQuery(NASTY, images[:5], correct=2, rank=3),
            ImageQuery("missed", images[:5], correct=None, rank=17, answer=images[5]),
        ],
        image_to_text=[TextQuery(images[0], [NASTY, "b", "c"], correct=[0, 2], rank=1)],
        attention=[AttentionMap(images[0], [NASTY, "b"], np.random.rand(2, 4, 4).astype(np.float32))],
        details={f"Key {NASTY}": f"Value {NASTY}"},
    )


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    path = write_report(tmp_path_factory.mktemp("report") / "new" / "report.html", full_report())
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_text_is_escaped(html, page):
    assert "<script" not in html
    assert "<b>bold" not in html
    # Title (twice: the window's too), summary, notes, names, key, caption, words: everything arrives unharmed.
    assert page.text.count(NASTY) >= 15


def test_report_loads_nothing(html, page):
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "video", "audio"} == set()
    assert all((shown["src"] or "").startswith("data:image/") for shown in page.all("img"))
    assert not re.search(r"@import|url\(|srcset|\son\w+=", html)
    assert page.all("a") == []
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")


def test_metrics_stand_beside_chance_and_ranks_beside_queries(page):
    for text in ("16.1", "dual encoder 11.8%, chance 0.2%", "90.0", "rank 3", "rank 17"):
        assert text in page.text
    assert page.text.count("11.8") == page.text.count("16.1") == 2  # in a tile and in the table
    tiles = [item["class"] for item in page.all("li") if "image" in (item.get("class") or "")]
    assert tiles == ["image", "image", "image right", "image", "image"] + ["image"] * 5
    assert len([item for item in page.all("li") if item.get("class") == "answer"]) == 1


def test_the_right_one_of_two_images_is_framed(page):
    tiles = [item["class"] for item in page.all("div") if (item.get("class") or "").startswith("image")]
    assert tiles[:2] == ["image", "image right"]
    assert any((shown["alt"] or "").startswith("What the fusion encoder finds first") for shown in page.all("img"))


def test_report_can_be_read_without_seeing(html, page):
    assert page.all("html")[0]["lang"] == "en"
    assert all(shown["alt"] for shown in page.all("img"))
    assert len(page.all("svg")) == 1  # the chart without a finite value is left out
    (chart,) = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert re.search(r"from [\d.]+ to [\d.]+$", chart["aria-label"] or "")
    for words in ("prefers-color-scheme: dark", "max-width: 720px", 'name="viewport"'):
        assert words in html


def test_report_stays_small(tmp_path):
    # Smooth in three colours and no two pixels alike, as photographs are.
    waves = np.linspace(0, 9, 900)[:, None, None] * np.linspace(1, 3, 700)[None, :, None] + np.arange(3)
    photo = Image.fromarray((127 + 90 * np.sin(waves) + np.random.normal(0, 8, waves.shape)).astype(np.uint8))
    report = Report(
        title="big",
        charts={"long": {"loss": [(step, math.sin(step)) for step in range(100_000)]}},
        text_to_image=[ImageQuery("photographs", [photo] * 5, correct=0, rank=1)] * 10,
    )
    # Fifty photographs and a hundred thousand steps: images are shrunk, curves thinned out.
    assert write_report(tmp_path / "report.html", report).stat().st_size < 450_000


def test_empty_report_is_a_page_with_a_title(tmp_path):
    page = Page(write_report(tmp_path / "report.html", Report(title="Nothing yet")).read_text(encoding="utf-8"))
    assert "Nothing yet" in page.text
    assert page.all("section") == []
