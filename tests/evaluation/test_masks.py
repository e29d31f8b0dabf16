"""The picture of a segmentation."""

import numpy as np
import pytest
from PIL import Image

from vlmo.evaluation.masks import overlay, palette


def test_colours_differ_and_stay() -> None:
    colors = palette(150)
    assert len({tuple(color) for color in colors.tolist()}) > 140
    assert np.array_equal(palette(13), colors[:13])
    assert colors[0].tolist() == [128, 128, 128]


def test_overlay_tints_each_class_and_names_it_once() -> None:
    picture = Image.new("RGB", (40, 20), (200, 200, 200))
    classes = np.zeros((20, 40), dtype=np.uint8)
    classes[:, 30:] = 2
    drawn = np.asarray(overlay(picture, classes, names=["background", "cat", "dog"]))
    assert drawn.shape[1] == 40
    assert drawn.shape[0] == 20 + 6 + 2 * 18  # two names below the picture
    colors = palette(3)
    for column, number in ((0, 0), (39, 2)):
        expected = np.rint(0.45 * 200 + 0.55 * colors[number])
        assert np.abs(drawn[10, column] - expected).max() <= 1
    assert (drawn[20 + 6 + 4, 6 + 4] == colors[0]).all()  # the larger share comes first
    assert (drawn[20 + 6 + 18 + 4, 6 + 4] == colors[2]).all()


@pytest.mark.parametrize(("shape", "names"), [((20, 41), ["a", "b"]), ((20, 40), ["a"])])
def test_overlay_refuses_other_sizes_and_unknown_classes(shape, names) -> None:
    classes = np.ones(shape, dtype=np.uint8)
    with pytest.raises(ValueError, match="expected equal sizes and a name"):
        overlay(Image.new("RGB", (40, 20)), classes, names=names)
