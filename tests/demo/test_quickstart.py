from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmo.demo import quickstart
from vlmo.demo.quickstart import write_report

NASTY = 'a "quoted" <script>alert(1)</script> & <b>bold</b> $title'


def test_a_seed_is_that_of_every_stage(tmp_path):
    recipes = quickstart.quickstart_recipes(tmp_path, seed=7)
    assert {recipe.seed for recipe in recipes.values()} == {7}


def test_examples_come_from_predictions():
    images = {name: Image.new("RGB", (4, 4)) for name in "uvwxyz"}
    predictions = [
        {"caption": "a", "image_id": "x", "rank": 2, "rerank_rank": 1, "rerank_found": [*"xzyuvw"], "found": [*"zxy"]},
        {"caption": "b", "image_id": "y", "rank": 6, "rerank_rank": 6, "rerank_found": [*"xzuvwy"], "found": [*"xzu"]},
        {"caption": "c", "image_id": "y", "rank": 1, "rerank_rank": 2, "rerank_found": [*"xyzuvw"], "found": [*"yzx"]},
    ]
    predictions = [row | {"query": "caption"} for row in predictions] + [{"query": "image"}]
    gained, lost, queries = quickstart.examples(predictions, images=images)
    assert (gained, lost) == ([{"text": "a", "dual": images["z"], "fusion": images["x"]}], 1)
    shown = [(query["text"], query["correct"], query["rank"]) for query in queries]
    assert shown == [("a", 0, 1), ("b", None, 6), ("c", 1, 2)]
    assert queries[1]["images"] == [images[name] for name in "xzuvw"]
    assert queries[1]["answer"] is images["y"]


class Page(HTMLParser):
    """Checks that tags close in order and collects what the tests look at."""

    def __init__(self, file: Path):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.html = file.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str):
        assert self.open.pop() == tag

    def handle_data(self, data: str):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    images = [Image.new("RGBA", (72, 72), (40 * number, 90, 250 - 20 * number)) for number in range(6)]
    dual, fused, chance = {"Texts": 0.118}, {"Texts": 0.161, "Questions": 0.9}, {"Texts": 0.002, "Questions": 0.5}
    found = {"text": NASTY, "images": images[:5], "correct": 2, "rank": 3, "answer": images[2]}
    path = write_report(
        tmp_path_factory.mktemp("report") / "new" / "report.html",
        title=f"Title {NASTY}",
        summary=f"Summary {NASTY}",
        metrics={"Dual encoder": dual, f"Fusion encoder {NASTY}": fused, "Chance": chance},
        metrics_note=f"Note {NASTY}",
        decisions=[{"text": NASTY, "dual": images[0], "fusion": images[1]}],
        decisions_note=f"Decided {NASTY}",
        text_to_image=[found, found | {"text": "missed", "correct": None, "rank": 17, "answer": images[5]}],
        attention=[(images[0], [NASTY, "b"], np.random.rand(2, 4, 4).astype(np.float32))],
    )
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return Page(path)


def test_text_of_the_report_is_escaped_and_nothing_is_loaded(page):
    assert "<script" not in page.html
    assert "<b>bold" not in page.html
    # Title (twice: the window's too), summary, notes, names, captions, words: everything arrives unharmed.
    assert page.text.count(NASTY) == 9
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "video", "audio"} == set()
    assert all((shown["src"] or "").startswith("data:image/") and shown["alt"] for shown in page.all("img"))
    assert not re.search(r"@import|url\(|srcset|\son\w+=", page.html)
    assert page.all("a") == []
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")


def test_metrics_stand_beside_chance_and_ranks_beside_queries(page):
    for text in ("11.8", "16.1", "0.2", "90.0", "rank 3", "rank 17"):
        assert text in page.text
    tiles = [item["class"] for item in page.all("li") if "image" in (item.get("class") or "")]
    assert tiles == ["image", "image", "image right", "image", "image"] + ["image"] * 5
    assert len([item for item in page.all("li") if item.get("class") == "answer"]) == 1


def test_report_stays_small_and_may_be_empty(tmp_path):
    # Smooth in three colors and no two pixels alike, as photographs are.
    waves = np.linspace(0, 9, 900)[:, None, None] * np.linspace(1, 3, 700)[None, :, None] + np.arange(3)
    photo = Image.fromarray((127 + 90 * np.sin(waves) + np.random.normal(0, 8, waves.shape)).astype(np.uint8))
    query = {"text": "photographs", "images": [photo] * 5, "correct": 0, "rank": 1, "answer": photo}
    report = write_report(tmp_path / "report.html", title="big", text_to_image=[query] * 10)
    assert report.stat().st_size < 450_000
    empty = Page(write_report(tmp_path / "report.html", title="Nothing yet"))
    assert "Nothing yet" in empty.text
    assert empty.all("section") == []
