from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vlmo.evaluation import (
    AttentionMap,
    Attribution,
    Chart,
    Curve,
    Figure,
    PictureQuery,
    Ranking,
    Rankings,
    Report,
    RetrievalResult,
    Step,
    TextQuery,
    figures_of,
    picture_queries,
    text_queries,
    write_report,
)
from vlmo.evaluation.report import format_seconds

NASTY = 'a "quoted" <script>alert(1)</script> & <b>bold</b> $title'
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags close in order and collects what the tests look at."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def picture(number: int) -> Image.Image:
    image = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((8, 8, 64, 64), fill=(40 * number % 256, 90, 255 - 20 * number % 256, 255))
    return image


def full_report() -> Report:
    pictures = [picture(number) for number in range(6)]
    return Report(
        title=f"Title {NASTY}",
        summary=f"Summary {NASTY}",
        figures=[Figure("tr@1", 0.002, 0.118, 0.152, 0.074), Figure("ir@1", 0.002, 0.124, 0.161)],
        figures_note=f"Note {NASTY}",
        steps=[Step(f"Stage {NASTY}", 92.0, NASTY), Step("Stage 2", 8.04)],
        charts=[
            Chart(f"Losses {NASTY}", [Curve(NASTY, [(step, 4 / (step + 1)) for step in range(3000)])]),
            Chart("Broken", [Curve("nan", [(0, math.nan), (1, math.inf)])]),
        ],
        text_to_image=[
            PictureQuery(NASTY, pictures[:5], correct=2, rank=3),
            PictureQuery("missed", pictures[:5], correct=None, rank=17, answer=pictures[5]),
        ],
        image_to_text=[TextQuery(pictures[0], [NASTY, "b", "c"], correct=[0, 2], rank=1)],
        attention=[AttentionMap(pictures[0], [NASTY, "b"], torch.rand(2, 4, 4))],
        details={f"Key {NASTY}": f"Value {NASTY}"},
        attributions=[
            Attribution("Twemoji", "CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/", NASTY),
            Attribution("Bad", "none", "javascript:alert(1)"),
        ],
    )


def test_report_is_well_formed_and_shows_text_as_it_is(tmp_path: Path) -> None:
    path = write_report(tmp_path / "new" / "report.html", full_report())
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert "<script" not in html
    assert "<b>bold" not in html
    # Title (twice: the window's too), summary, notes, names, key, caption, words: everything arrives unharmed.
    assert page.text.count(NASTY) >= 14
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_report_loads_nothing(tmp_path: Path) -> None:
    html = write_report(tmp_path / "report.html", full_report()).read_text(encoding="utf-8")
    page = Page(html)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "video", "audio"} == set()
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    assert not re.search(r"@import|url\(|srcset|\son\w+=", html)
    assert [link["href"] for link in page.all("a")] == ["https://creativecommons.org/licenses/by/4.0/"]
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")


def test_report_has_figures_with_chance_beside_them(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "report.html", full_report()).read_text(encoding="utf-8"))
    for text in ("Text to image, R@1", "Reranked", "Without stages", "Chance", "16.1", "12.4", "0.2", "chance 0.2%"):
        assert text in page.text


def test_report_frames_the_right_picture_and_tells_its_rank(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "report.html", full_report()).read_text(encoding="utf-8"))
    tiles = [item["class"] for item in page.all("li") if "picture" in (item.get("class") or "")]
    assert tiles == ["picture", "picture", "picture right", "picture", "picture"] + ["picture"] * 5
    assert len([item for item in page.all("li") if item.get("class") == "answer"]) == 1
    assert "rank 3" in page.text
    assert "rank 17" in page.text


def test_report_can_be_read_without_seeing(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "report.html", full_report()).read_text(encoding="utf-8"))
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    charts = page.all("svg")
    assert len(charts) == 1  # the chart without a finite value is left out
    assert charts[0]["role"] == "img"
    assert re.search(r"from [\d.]+ to [\d.]+$", charts[0]["aria-label"] or "")


def test_report_adapts_to_dark_and_narrow_screens(tmp_path: Path) -> None:
    html = write_report(tmp_path / "report.html", full_report()).read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in html
    assert "max-width: 720px" in html
    assert 'name="viewport"' in html


def test_report_stays_small(tmp_path: Path) -> None:
    # Smooth in three colours and no two pixels alike, as photographs are.
    waves = np.linspace(0, 9, 900)[:, None, None] * np.linspace(1, 3, 700)[None, :, None] + np.arange(3)
    photo = Image.fromarray((127 + 90 * np.sin(waves) + np.random.normal(0, 8, waves.shape)).astype(np.uint8))
    report = Report(
        title="big",
        charts=[Chart("long", [Curve("loss", [(step, math.sin(step)) for step in range(100_000)])])],
        text_to_image=[PictureQuery("photographs", [photo] * 6, correct=0, rank=1)] * 10,
    )
    # Sixty photographs and a hundred thousand steps: pictures are shrunk, curves thinned out.
    assert write_report(tmp_path / "report.html", report).stat().st_size < 500_000


def test_empty_report_is_a_page_with_a_title(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "report.html", Report(title="Nothing yet")).read_text(encoding="utf-8"))
    assert "Nothing yet" in page.text
    assert page.all("section") == []


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (8.04, "8.0 s"), (9.7, "10 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_seconds_read_as_people_say_them(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


def ranking(indices: list[list[int]], ranks: list[int]) -> Ranking:
    table = torch.tensor(indices)
    return Ranking(indices=table, scores=torch.zeros(table.shape), ranks=torch.tensor(ranks))


def test_examples_are_taken_from_rankings() -> None:
    pictures, texts = [picture(number) for number in range(3)], ["a", "b", "c", "d"]
    text_to_image = torch.tensor([0, 1, 2, 2])
    found = ranking([[2, 0], [0, 1], [0, 1], [2, 1]], [2, 2, 3, 1])
    kept, lost = picture_queries(found, texts=texts, pictures=pictures, text_to_image=text_to_image, chosen=[0, 2])
    assert (kept.text, kept.correct, kept.rank, kept.answer) == ("a", 1, 2, pictures[0])
    assert list(kept.pictures) == [pictures[2], pictures[0]]
    assert (lost.text, lost.correct, lost.rank, lost.answer) == ("c", None, 3, pictures[2])

    found = ranking([[1, 0, 2], [0, 2, 3], [3, 0, 2]], [2, 4, 1])
    queries = text_queries(found, texts=texts, pictures=pictures, text_to_image=text_to_image, chosen=[2, 1])
    assert [(query.picture, list(query.texts), list(query.correct), query.rank) for query in queries] == [
        (pictures[2], ["d", "a", "c"], [0, 2], 1),
        (pictures[1], ["a", "c", "d"], [], 4),
    ]


def test_figures_of_a_result_keep_its_columns_apart() -> None:
    empty = ranking([[0]], [1])
    result = RetrievalResult(
        metrics={"tr@1": 0.1, "ir@1": 0.2, "rerank_tr@1": 0.3, "rerank_ir@1": 0.4},
        chance={"tr@1": 0.01, "ir@1": 0.02},
        dual=Rankings(empty, empty),
        reranked=None,
    )
    assert figures_of(result, stageless={"ir@1": 0.05}) == [
        Figure("tr@1", 0.01, 0.1, 0.3, None),
        Figure("ir@1", 0.02, 0.2, 0.4, 0.05),
    ]
