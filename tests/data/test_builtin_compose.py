import numpy as np
import pytest
from PIL import Image

from vlmo.data.builtin.compose import DRAWINGS, _kept_cutout, compose
from vlmo.data.decoding import EncodedImage, decode_image


def pixels(text: str) -> np.ndarray:
    return np.asarray(decode_image({"bytes": text.encode(), "path": "0"})).astype(int)


def test_a_square_lies_where_the_text_says_in_its_color():
    image = pixels("scene:96|ffffff|square,10,40,20,dc1c24")
    assert image.shape == (96, 96, 3)
    rows, columns = np.nonzero((image == (0xDC, 0x1C, 0x24)).all(axis=2))
    corners = (columns.min(), columns.max(), rows.min(), rows.max())
    assert corners == pytest.approx((11, 28, 41, 58), abs=1)
    assert (image[:39] == 255).all()


def test_sides_and_places_grow_with_the_image():
    small = pixels("scene:48|ffffff|circle,48,0,48,000000")
    large = pixels("scene:192|ffffff|circle,48,0,48,000000")
    assert (small.shape[0], large.shape[0]) == (48, 192)
    shrunk = large.reshape(48, 4, 48, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - shrunk).mean() < 3


def test_later_objects_lie_over_earlier_ones_and_drawings_keep_their_transparency(monkeypatch):
    def half(name: str, side: int) -> Image.Image:
        square = Image.new("RGBA", (side, side))
        square.paste((0, 0, 255, 255), (0, side // 4, side // 2, 3 * side // 4))
        return square

    monkeypatch.setitem(DRAWINGS, "toy", half)
    image = pixels("scene:96|00ff00|square,0,0,96,ff0000|toy/half,24,24,48")
    assert tuple(image[0, 0]) == (0, 255, 0)  # a margin of the square
    assert tuple(image[48, 30]) == (0, 0, 255)
    assert tuple(image[48, 65]) == tuple(image[26, 26]) == (255, 0, 0)


@pytest.mark.parametrize(("text", "axis"), [("000000>ffffff", 1), ("000000/ffffff", 0)])
def test_a_background_of_two_colors_runs_from_one_to_the_other(text, axis):
    line = pixels(f"scene:96|{text}")[:, :, 0]
    line = line if axis else line.T
    assert (line == line[0]).all()
    assert (np.diff(line[0]) >= 0).all()
    assert (line[0, 0], line[0, -1]) == (0, 255)


@pytest.mark.parametrize("text", ["", "|ffffff|blob,1,2,3", "|ffffff|star,1,2", "|nocolor"])
def test_a_damaged_text_is_named(text):
    with pytest.raises(ValueError, match=r"broken\.png"):
        EncodedImage({"bytes": f"scene:96{text}".encode(), "path": "broken.png"})


LARGE = {
    "size": ("scene:1025|ffffff", "a scene of 1025 pixels.*expected"),
    "side": ("scene:96|ffffff|star,0,0,1100,d81e28", "star of 1100 pixels.*expected"),
    "objects": ("scene:96|ffffff" + "|star,0,0,24,d81e28" * 64, "expected"),
    "bytes": (f"scene:96|ffffff|{'x' * 70_000},0,0,24", "expected"),
    "path": ("scene:96|ffffff|twemoji/../../1f436,0,0,9", "no (shape or )?drawing"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_text_that_would_cause_large_work_or_names_a_path_is_refused(name):
    text, reason = LARGE[name]
    with pytest.raises(ValueError, match=rf"large\.png.*{reason}"):
        decode_image({"bytes": text.encode(), "path": "large.png"})


def test_large_objects_are_not_kept():
    compose(b"scene:97|ffffff|ring,0,0,95,d81e28")
    before = _kept_cutout.cache_info().currsize
    compose(b"scene:97|ffffff|ring,0,0,96,d81e28")
    assert _kept_cutout.cache_info().currsize == before
