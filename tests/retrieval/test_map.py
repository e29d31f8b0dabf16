"""A map of an index is one file, on which images that look alike lie close, for pointers and keys."""

import re
import shutil

import numpy as np
import pytest
from playwright.sync_api import sync_playwright
from tests.integrations.toy_gallery import COLORS, NUM_IMAGES, SHAPES, drawings
from tests.retrieval.toy_index import build, write_folder
from tests.test_cli_tasks import refused

from vlmo.cli import main
from vlmo.retrieval import Index
from vlmo.retrieval.map import draw_map

IMAGE = (
    r'<button data-x="([\d.e-]+)" data-y="([\d.e-]+)" title="([^"]+)">'
    r'<img alt="([^"]+)" src="data:image/jpeg;base64,[^"]+">'
)


@pytest.fixture(scope="module")
def drawn(gallery, tmp_path_factory):
    file = tmp_path_factory.mktemp("map") / "map.html"
    main(["map", str(gallery[1]), "--out", str(file)])
    return file


def test_images_lie_close_whose_vectors_are_similar(drawn, gallery):
    html = drawn.read_text()
    found = {name: (float(x), float(y)) for x, y, name, _ in re.findall(IMAGE, html)}
    assert len(found) == NUM_IMAGES
    sampled = Index(gallery[1]).sample(NUM_IMAGES)
    vectors = np.array([row["vector"] for _, row in sampled])
    places = np.array([found[hit.path.rpartition("/")[2]] for hit, _ in sampled])
    similar = vectors @ vectors.T - 2 * np.eye(NUM_IMAGES)
    far = np.linalg.norm(places[:, None] - places, axis=-1)
    assert far[np.arange(NUM_IMAGES), similar.argmax(1)].mean() < far.mean() / 2
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\(|https?:", html)


def test_groups_have_words_of_the_captions(drawn):
    names = re.findall(r'<button data-x="[^"]+" data-y="[^"]+">([^<]+)</button>', drawn.read_text())
    words = [word for name in names for word in name.split(", ")]
    assert len(names) >= 2
    assert len({*words}) == len(words)
    assert {*words} <= {*COLORS, *SHAPES}


def test_index_without_words_takes_those_of_a_list(encoder, tmp_path, capsys):
    for number in (3, 1):
        images = write_folder(tmp_path / f"{number}", table=False, numbers=range(number))
        build(encoder, images, out=tmp_path / f"index{number}")
    main(["map", str(tmp_path / "index3"), "--out", str(tmp_path / "map.html"), "--images", "2"])
    assert len(re.findall(IMAGE, (tmp_path / "map.html").read_text())) == 2
    line = ["map", str(tmp_path / "index1"), "--out", str(tmp_path / "1.html")]
    assert "the index has 1" in refused(line, capsys)


def test_words_of_file_and_album_names_name_no_groups(encoder, tmp_path):
    # Each word in some of the names, as of two cameras and a journey.
    for number, image in enumerate(drawings()):
        album = tmp_path / "images" / ("Rome" if number % 2 else "Backup")
        album.mkdir(parents=True, exist_ok=True)
        image.save(album / f"{('dsc', 'pxl', 'anna')[number % 3]} {number}.png")
    build(encoder, tmp_path / "images", out=tmp_path / "index")
    groups = draw_map(encoder, Index(tmp_path / "index")).groups
    names = [word for name, *_ in groups for word in name.split(", ")]
    assert len(names) >= 4
    assert {*names}.isdisjoint({"rome", "backup", "dsc", "pxl", "anna"})


@pytest.mark.browser
def test_keys_move_zoom_and_open_images(drawn):
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, faults = browser.new_page(viewport={"width": 390, "height": 700}), []
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.goto(f"file://{drawn}")

        def state() -> list[float]:
            transform = page.eval_on_selector(".world", "e => e.style.transform")
            return [*map(float, re.findall(r"-?[\d.]+", transform))]

        start = state()
        page.keyboard.press("ArrowRight")
        assert state() == [start[0] - 80, start[1], start[2]]
        page.keyboard.press("+")
        assert state()[2] == pytest.approx(1.4 * start[2], rel=1e-4)
        page.keyboard.press("0")
        assert state() == start
        page.keyboard.press("Tab")  # the first group
        page.keyboard.press("Enter")
        assert state()[2] > 3 * start[2]
        page.locator(".world button").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("dialog[open] img").get_attribute("src").startswith("data:image/jpeg")
        page.keyboard.press("Enter")
        assert page.locator("dialog[open]").count() == 0
        assert not faults
        browser.close()
