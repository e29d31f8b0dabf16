"""The page that searches in the browser: its vectors are Python's, and it finds what Python finds."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from tests.integrations.toy_gallery import drawings
from tests.serving.conftest import browser, open_page  # noqa: F401
from tokenizers import Tokenizer

from browser_page import graph_of, image_vectors, write_page
from vlmo.released import SMALL
from vlmo.retrieval import Encoder

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LIMIT = 40
IMAGES = 5277
MOST_BYTES = 15e6
TOLERANCE = 1e-3
LEAST_COSINE = 0.999
TEXTS = ["red heart", "A Café, à la carte!", "日本", "", "shopping cart " * 30]
EMBED_TEXT = "async (text) => [...await (await import('./model.js')).embedText(text)]"
EMBED_IMAGE = """async ([width, height, levels]) => {
  const image = new ImageData(Uint8ClampedArray.from(levels), width, height);
  const [{ embedImage }, { pixelValues }] = [await import("./model.js"), await import("./pixels.js")];
  const settings = await (await fetch("onnx.json")).json();
  return [[...pixelValues(image, settings.image)], [...await embedImage(image)]];
}"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "browser"
    write_page(folder, limit=LIMIT)
    return folder


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(SMALL, engine="onnx", precision="int8")


@pytest.fixture(scope="module")
def text_vectors(folder):
    """Embeds texts by the page's graph in Python."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    graph = graph_of(folder, "text_encoder")

    def embed(texts: list[str]) -> np.ndarray:
        tokens = tokenizer.encode_batch(texts)
        ids = np.array([token.ids for token in tokens])
        mask = np.array([token.attention_mask for token in tokens])
        return graph.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    return embed


@pytest.fixture
def page(open_page, address) -> Page:  # noqa: F811
    page = open_page(address)
    expect(page.get_by_role("status")).to_contain_text("Nearest to")
    return page


def test_whole_page_stays_below_its_size(folder):
    num_images = 3 * LIMIT
    of_images = sum((folder / name).stat().st_size for name in ("vectors.bin", "thumbnails.webp"))
    rest = sum(file.stat().st_size for file in folder.iterdir()) - of_images
    assert rest + of_images / num_images * IMAGES < MOST_BYTES


def test_vectors_of_texts_and_images_are_pythons(page, encoder, folder, text_vectors):
    for text, expected in zip(TEXTS, text_vectors(TEXTS), strict=True):
        np.testing.assert_allclose(page.evaluate(EMBED_TEXT, text), expected, atol=TOLERANCE)
    graph = graph_of(folder, "image_encoder")
    generator = np.random.default_rng(0)
    for width, height in ((288, 288), (150, 113), (40, 61)):
        # Patches of one color, whose edges show a shifted or a wrong filter.
        small = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(small.repeat(8, 0).repeat(8, 1)[:height, :width])
        levels = np.asarray(image.convert("RGBA")).ravel().tolist()
        values, vector = page.evaluate(EMBED_IMAGE, [width, height, levels])
        pixels = encoder.pixels(image).ravel() / 127.5 - 1
        np.testing.assert_allclose(values, pixels, atol=1e-6)
        (expected,) = image_vectors(graph, encoder, [image])
        np.testing.assert_allclose(vector, expected, atol=TOLERANCE)


def test_weights_in_int8_stay_close_to_pytorch(encoder, folder, text_vectors):
    exact = Encoder(SMALL)
    images = drawings()
    vectors = image_vectors(graph_of(folder, "image_encoder"), encoder, images)
    assert (vectors * exact.embed_images(images)).sum(axis=1).min() > LEAST_COSINE
    assert (text_vectors(TEXTS) * exact.embed_texts(TEXTS)).sum(axis=1).min() > LEAST_COSINE


def test_words_and_drawings_find_images(page, encoder, folder, text_vectors):
    page.get_by_label("Words that describe the image").fill("arrow down")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("“arrow down”")
    expect(page.get_by_role("listitem")).to_have_count(24)
    shown = page.get_by_role("listitem").first.get_attribute("title")
    vectors = np.fromfile(folder / "vectors.bin", "<i2").reshape(-1, encoder.dim) / 32767
    best = float((vectors @ text_vectors(["arrow down"])[0]).max())
    assert shown == f"similarity {best:.2f}"
    assert page.url.endswith("?q=arrow%20down")
    page.get_by_text("Search by a drawing").click()
    box = page.locator("canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 200, steps=5)
    page.mouse.up()
    expect(page.get_by_role("status")).to_contain_text("Nearest to your drawing")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_empty_words_and_a_missing_model_are_told(page, open_page, address):  # noqa: F811
    page.get_by_label("Words that describe the image").fill(" ")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Give words, such as: red heart")
    context = page.context.browser.new_context()
    other = context.new_page()
    other.route("**/text_encoder.onnx.gz", lambda route: route.fulfill(status=404))
    other.goto(address)
    expect(other.get_by_role("status")).to_contain_text(
        "text_encoder.onnx.gz: the server answers 404"
    )
    context.close()
