"""The map of an index: images that look alike lie close, in groups that words name."""

import numpy as np
import pytest
from tests.integrations.toy_gallery import COLORS, NUM_IMAGES, SHAPES, drawings
from tests.retrieval.toy_index import build, write_folder

from vlmo.retrieval import Index
from vlmo.retrieval.map import draw_map


@pytest.fixture(scope="module")
def drawn(gallery, encoder):
    return draw_map(encoder, Index(gallery[1]))


def test_images_lie_close_whose_vectors_are_similar(drawn, gallery):
    found = {hit.id: (x, y) for hit, x, y, _ in drawn.images}
    assert len(found) == NUM_IMAGES
    sampled = Index(gallery[1]).sample(NUM_IMAGES)
    vectors = np.array([row["vector"] for _, row in sampled])
    places = np.array([found[hit.id] for hit, _ in sampled])
    similar = vectors @ vectors.T - 2 * np.eye(NUM_IMAGES)
    far = np.linalg.norm(places[:, None] - places, axis=-1)
    assert far[np.arange(NUM_IMAGES), similar.argmax(1)].mean() < far.mean() / 2
    assert all(data.startswith("data:image/jpeg;base64,") for *_, data in drawn.images)


def test_groups_have_words_of_the_captions(drawn):
    words = [word for name, *_ in drawn.groups for word in name.split(", ")]
    assert len(drawn.groups) >= 2
    assert len({*words}) == len(words)
    assert {*words} <= {*COLORS, *SHAPES}


def test_index_without_words_takes_those_of_a_list(encoder, tmp_path):
    for number in (3, 1):
        images = write_folder(tmp_path / f"{number}", table=False, numbers=range(number))
        build(encoder, images, out=tmp_path / f"index{number}")
    drawn = draw_map(encoder, Index(tmp_path / "index3"), most=2)
    assert len(drawn.images) == 2
    assert all(name for name, *_ in drawn.groups)
    with pytest.raises(ValueError, match="the index has 1"):
        draw_map(encoder, Index(tmp_path / "index1"))


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
