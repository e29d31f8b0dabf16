from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

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
    names = ("caption", "image_id", "rank", "rerank_rank", "rerank_found", "found")
    rows = (
        ("a", "x", 2, 1, [*"xzyuvw"], [*"zxy"]),
        ("b", "y", 6, 6, [*"xzuvwy"], [*"xzu"]),
        ("c", "y", 1, 2, [*"xyzuvw"], [*"yzx"]),
    )
    predictions = [{"query": "caption", **dict(zip(names, row, strict=True))} for row in rows]
    predictions.append({"query": "image"})
    gained, lost, queries = quickstart.examples(predictions, images=images)
    assert (gained, lost) == ([{"text": "a", "dual": images["z"], "fusion": images["x"]}], 1)
    shown = [(query["text"], query["correct"], query["rank"]) for query in queries]
    assert shown == [("a", 0, 1), ("b", None, 6), ("c", 1, 2)]
    assert queries[1]["images"] == [images[name] for name in "xzuvw"]
    assert queries[1]["answer"] is images["y"]


def parsed(file: Path) -> ElementTree.Element:
    """The page as XML, whose tags must close in order."""
    text = file.read_text(encoding="utf-8").removeprefix("<!doctype html>\n")
    return ElementTree.fromstring(re.sub(r"<(meta|img)\b([^>]*)>", r"<\1\2/>", text))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> ElementTree.Element:
    images = [Image.new("RGBA", (72, 72), (40 * n, 90, 250 - 20 * n)) for n in range(6)]
    metrics = {"Dual encoder": {"Texts": 0.118}}
    metrics[f"Fusion encoder {NASTY}"] = {"Texts": 0.161, "Questions": 0.9}
    metrics["Chance"] = {"Texts": 0.002, "Questions": 0.5}
    missed = {"text": "missed", "correct": None, "rank": 17, "answer": images[5]}
    found = {"text": NASTY, "images": images[:5], "correct": 2, "rank": 3, "answer": images[2]}
    path = write_report(
        tmp_path_factory.mktemp("report") / "new" / "report.html",
        title=f"Title {NASTY}",
        summary=f"Summary {NASTY}",
        metrics=metrics,
        metrics_note=f"Note {NASTY}",
        decisions=[{"text": NASTY, "dual": images[0], "fusion": images[1]}],
        decisions_note=f"Decided {NASTY}",
        text_to_image=[found, found | missed],
        attention=[(images[0], [NASTY, "b"], np.random.rand(2, 4, 4).astype(np.float32))],
    )
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return parsed(path)


def test_text_of_the_report_is_escaped_and_nothing_is_loaded(page):
    # Title (twice: the window's too), summary, notes, names, captions, words: everything arrives unharmed.
    assert "".join(page.itertext()).count(NASTY) == 9
    loading = {"a", "b", "script", "link", "iframe", "object", "embed", "video", "audio"}
    assert not {element.tag for element in page.iter()} & loading
    for shown in page.iter("img"):
        assert shown.get("src").startswith("data:image/")
        assert shown.get("alt")
    html = ElementTree.tostring(page, encoding="unicode")
    assert not re.search(r"@import|url\(|srcset|\son\w+=", html)
    policies = {meta.get("http-equiv"): meta.get("content") for meta in page.iter("meta")}
    assert "default-src 'none'" in policies["Content-Security-Policy"]


def test_metrics_stand_beside_chance_and_ranks_beside_queries(page):
    shown = "".join(page.itertext())
    for text in ("11.8", "16.1", "0.2", "90.0", "rank 3", "rank 17"):
        assert text in shown
    kinds = [item.get("class", "") for item in page.iter("li")]
    tiles = ["image", "image", "image right", "image", "image"] + ["image"] * 5
    assert [kind for kind in kinds if "image" in kind] == tiles
    assert kinds.count("answer") == 1


def test_report_stays_small_and_may_be_empty(tmp_path):
    # Smooth in three colors and no two pixels alike, as photographs are.
    waves = np.outer(np.linspace(0, 9, 900), np.linspace(1, 3, 700))[..., None] + np.arange(3)
    pixels = 127 + 90 * np.sin(waves) + np.random.normal(0, 8, waves.shape)
    photo = Image.fromarray(pixels.astype(np.uint8))
    query = {"text": "photographs", "images": [photo] * 5, "correct": 0, "rank": 1, "answer": photo}
    report = write_report(tmp_path / "report.html", title="big", text_to_image=[query] * 10)
    assert report.stat().st_size < 450_000
    empty = parsed(write_report(tmp_path / "report.html", title="Nothing yet"))
    assert "Nothing yet" in "".join(empty.itertext())
    assert list(empty.iter("section")) == []
