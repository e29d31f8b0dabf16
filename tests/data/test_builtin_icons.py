"""Lucide's icons: each once, black, named, and of a set that no training sees."""

import numpy as np

from vlmo.data.prepare.icons import HELD_OUT
from vlmo.data.schema import FEATURES
from vlmo.data.sources import decode_image, open_source


def test_lucide_icons(cache_dir) -> None:
    rows = open_source("lucide-icons", split="test", cache_dir=cache_dir)
    assert rows.features == FEATURES
    assert len(rows) > 1_800
    assert set(rows["source"][:]) == {"lucide"} < HELD_OUT
    names = [name for captions in rows["captions"][:] for name in captions]
    assert len(set(names)) == len(rows)
    assert {"heart", "bell", "arrow down"} <= set(names)
    heart = np.asarray(decode_image(rows[names.index("heart")]["image"]))
    assert heart.shape == (64, 64, 3)
    share = (heart.mean(axis=2) < 128).mean()
    assert 0.05 < share < 0.3  # a black line on white
    assert (np.abs(heart - heart[:, ::-1].astype(int)) > 64).mean() < 0.02  # a heart is the same in a mirror
