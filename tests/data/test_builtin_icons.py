"""Icons of Lucide, a set that is kept out of training, and of icon fonts: black, named."""

from collections import Counter

import numpy as np

from vlmo.data.builtin import icons
from vlmo.data.schema import FEATURES
from vlmo.data.sources import decode_image, open_source


def test_lucide_icons(shared_folder) -> None:
    rows = open_source("lucide-icons", split="test", cache_dir=shared_folder)
    assert rows.features == FEATURES
    assert len(rows) > 1_800
    assert set(rows["source"][:]) == {"lucide"}
    names = [name for captions in rows["captions"][:] for name in captions]
    assert len(set(names)) == len(rows)
    assert {"bell", "castle"} <= set(names)
    castle = np.asarray(decode_image(rows[names.index("castle")]["image"]))
    assert castle.shape == (64, 64, 3)
    share = (castle.mean(axis=2) < 128).mean()
    assert 0.05 < share < 0.4  # black lines on white
    assert (np.abs(castle - castle[:, ::-1].astype(int)) > 64).mean() < 0.02  # a castle is the same in a mirror


def test_icon_fonts(shared_folder) -> None:
    rows = open_source("icon-fonts", split="test", cache_dir=shared_folder)
    assert rows.features == FEATURES
    assert len(rows) > 13_000
    assert len(set(rows["image_id"][:])) == len(rows)
    licences = dict(zip(rows["source"][:], rows["licence"][:], strict=True))
    assert licences == icons.LICENCES
    captions = rows["captions"][:]
    # Styles are no part of a caption, and a font gives few icons of one name.
    places = [place for place, texts in enumerate(captions) if "plus" in texts]
    counts = Counter(rows[place]["source"] for place in places)
    assert len(counts) >= 4
    assert max(counts.values()) <= 3
    assert not any("plus outline" in texts or "plus bold" in texts for texts in captions)
    assert not any("github" in text for texts in captions for text in texts)
    for place in places:
        plus = np.asarray(decode_image(rows[place]["image"])).mean(axis=2)
        assert plus.shape == (64, 64)
        longer = max(np.ptp((plus < 250).any(axis=axis).nonzero()[0]) + 1 for axis in (0, 1))
        assert 54 <= longer <= 58  # 56, and a margin of 4
        ink = plus < 128
        assert 0.02 < ink.mean() < 0.6
        assert (ink != ink[:, ::-1]).mean() < 0.05  # the same in a mirror
