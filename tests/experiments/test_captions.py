"""True descriptions of a scene are those that training gives, and no false one."""

import itertools

from captions import true_captions
from vlmo.data.builtin.shapes import make_scene, pair_rows, pools


def test_true_captions_are_those_of_training_and_no_false_ones():
    pool = pools()["train"]
    for row in itertools.islice(pair_rows("train", pool), 50):
        scene, _ = make_scene("train", int(row["image_id"].rpartition("/")[2]), pool)
        known = true_captions(scene)
        assert set(row["captions"]) <= known
        assert not known & set(row["false_captions"])
