import numpy as np

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
    assert "heart" not in names  # looks like an icon that was trained on
    castle = np.asarray(decode_image(rows[names.index("castle")]["image"]))
    assert castle.shape == (64, 64, 3)
    assert 0.05 < (castle.mean(axis=2) < 128).mean() < 0.4  # black lines on white
