"""Handwritten digits, kinds of drawings, and drawings on photographs."""

import io
import math

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from sklearn.datasets import load_digits

from vlmo.data import builtin
from vlmo.data.builtin import photo_scenes as scenes
from vlmo.data.builtin.photo_scenes import KINDS, LABELS, SIZE, Cutout, kinds_by_codes, photographs, scene
from vlmo.data.decoding import decode_image, decode_mask
from vlmo.data.schema import FEATURES, SEGMENT_FEATURES
from vlmo.data.sources import open_source


def rows_of(name: str, cache_dir) -> tuple[Dataset, Dataset]:
    return tuple(open_source(name, split=split, cache_dir=cache_dir) for split in ("train", "test"))


def test_digits(cache_dir) -> None:
    train, test = rows_of("digits", cache_dir)
    assert (len(train), len(test)) == (1347, 450)
    assert train.features["label"].names[7] == "seven"
    assert set(FEATURES) < set(train.features)
    assert len({*train["image_id"], *test["image_id"]}) == 1797
    assert set(test["label"]) == set(range(10))
    found = load_digits()
    for rows, offset in ((train, 0), (test, 1347)):
        for row in (0, 100):
            assert rows[row]["label"] == found.target[offset + row]
            shown = np.asarray(decode_image(rows[row]["image"]))[:, :, 0]
            np.testing.assert_allclose(shown / 255 * 16, found.images[offset + row], atol=16 / 255)


def test_every_kind_has_subgroups_of_its_own() -> None:
    groups = [group for groups in KINDS.values() for group in groups.split()]
    assert len(groups) == len(set(groups))
    kinds = kinds_by_codes()
    assert set(kinds.values()) == set(KINDS)
    assert kinds["1f431"] == "animal"
    assert kinds["1f600"] == "face"
    assert "1f4a9" not in kinds  # a costumed face, of no kind here
    assert LABELS[0] == "background"
    assert builtin.labels("photo-scenes") == list(LABELS)


def test_photographs_for_testing_are_others() -> None:
    parts = {split: photographs(split) for split in ("train", "test")}
    pixels = {split: {image.tobytes() for image, _ in photos} for split, photos in parts.items()}
    assert not pixels["train"] & pixels["test"]
    for image, licence in (*parts["train"], *parts["test"]):
        assert image.mode == "RGB"
        assert min(image.size) >= 300
        assert licence


def drawing(kind: str, colour: tuple[int, int, int], *, side: int = 60) -> Cutout:
    """A disc on a transparent ground."""
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    inside = x**2 + y**2 < (side / 2) ** 2
    pixels = np.zeros((side, side, 4), dtype=np.uint8)
    pixels[inside] = (*colour, 255)
    return Cutout("toy", kind, Image.fromarray(pixels), "CC0-1.0")


def test_mask_is_where_the_drawing_is_opaque() -> None:
    grey = Image.new("RGB", (400, 300), (128, 128, 128))
    picture, mask = scene(grey, [drawing("heart", (255, 0, 0))], generator=np.random.default_rng(0))
    assert picture.size == SIZE
    assert mask.shape == (SIZE[1], SIZE[0])
    number = LABELS.index("heart")
    assert set(np.unique(mask)) == {0, number}
    pixels = np.asarray(picture).astype(int)
    inside = mask == number
    assert (pixels[inside][:, 0] > 180).all()
    assert (pixels[~inside][:, 0] < 200).all()
    side = math.sqrt(inside.sum() * 4 / math.pi)  # of the box around the disc
    assert 36 - 1 <= side <= 72 + 1


def test_later_drawings_lie_on_top() -> None:
    grey = Image.new("RGB", (400, 300), (128, 128, 128))
    cutouts = [drawing(kind, (10, 20, 30)) for kind in ("heart", "face")] * 12
    _, mask = scene(grey, cutouts, generator=np.random.default_rng(0))
    assert mask[mask > 0].size > 0.5 * mask.size
    assert set(np.unique(mask)) >= {LABELS.index("face"), LABELS.index("heart")}


@pytest.mark.slow
def test_kinds_and_scenes(cache_dir, tmp_path, monkeypatch) -> None:
    assert scenes.NUM_SCENES == {"train": 2000, "test": 300}
    monkeypatch.setitem(scenes.NUM_SCENES, "train", 200)  # made in the same way as the others
    held_out = set(open_source("emoji-pairs", split="test", cache_dir=cache_dir)["image_id"])
    (tmp_path / "builtin").mkdir()
    for drawings in (cache_dir / "builtin").glob("emoji-*"):  # are not made again
        (tmp_path / "builtin" / drawings.name).symlink_to(drawings)
    train, test = rows_of("emoji-kinds", tmp_path)
    assert (len(train), len(test)) == (1222, 214)
    assert train.features["label"].names == list(KINDS)
    assert set(test["label"]) == set(range(len(KINDS)))
    assert {image_id.split("/")[0] for image_id in test["image_id"]} == {"openmoji"}
    assert not set(train["image_id"]) & set(test["image_id"])
    assert set(test["image_id"]) <= held_out
    assert not set(train["image_id"]) & held_out

    train, test = rows_of("photo-scenes", tmp_path)
    assert (len(train), len(test)) == (200, 300)
    assert train.features == SEGMENT_FEATURES
    assert all(licence.startswith("photograph ") for licence in test["licence"])
    assert not any("CC-BY-4.0" in licence for licence in test["licence"])  # Twemoji's
    seen = np.zeros(len(LABELS), dtype=np.int64)
    for row in range(0, 300, 5):
        assert decode_image(test[row]["image"]).size == SIZE
        mask = decode_mask(test[row]["mask"])
        assert mask.shape == (SIZE[1], SIZE[0])
        seen += np.bincount(mask.ravel(), minlength=len(LABELS))
    assert (seen > 0).all()
    assert 0.8 < seen[0] / seen.sum() < 0.95


def test_scenes_are_the_same_each_time() -> None:
    cutouts = [drawing(kind, (200, 10, 10)) for kind in ("heart", "face", "bird")]
    rows = [next(scenes._scene_rows("test", cutouts)) for _ in range(2)]
    assert rows[0] == rows[1]
    assert rows[0]["image"]["bytes"] != next(scenes._scene_rows("train", cutouts))["image"]["bytes"]
    assert Image.open(io.BytesIO(rows[0]["mask"]["bytes"])).mode == "L"
