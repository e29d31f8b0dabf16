"""Icons and glosses for experiments/findings.py: many images and texts of which few are pairs, and unseen families."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features
from PIL import Image

from shape_world import SMALLEST
from vlmo.data.decoding import decode_image, encode_image
from vlmo.data.schema import COMPOSITION_FEATURES, FEATURES, hash_share
from vlmo.data.sources import open_source

PIXELS = 48
_LINES = (
    "carbon",
    "clarity",
    "iconoir",
    "mingcute",
    "octicon",
    "pixelarticons",
    "tdesign",
    "teenyicons",
)
UNSEEN = frozenset((*_LINES, "healthicons", "marketeq"))
"""Sets that no training sees, for choices and for the probe to learn from; the split "test" has sets of its own."""
SIZES = {"pairs": 20_000, "few": 10_000, "fewest": 2000}
"""Icons with their names; those of a smaller part are among those of a larger one."""
KNOWN_FROM, GALLERY = 20, 1000
"""Trained icons that must have a name for it to be that of pairs and galleries; most icons of a gallery."""

Rows = list[dict[str, Any]]


def small(row: Any) -> dict[str, Any]:
    """Return a row with its image in the size that models read."""
    image = decode_image(row["image"]).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    return row | {"image": encode_image(image, row["image"]["path"])}


def ordered(rows: Iterable[dict[str, Any]], *, names: Collection[str], once: bool = False) -> Rows:
    """Return the rows whose name, the first caption, is among `names`, with it alone, by a hash; each name `once`."""
    found = {
        row["captions"][0] if once else row["image_id"]: row | {"captions": row["captions"][:1]}
        for row in sorted(rows, key=lambda row: hash_share(row["image_id"]))
        if row["captions"][0] in names
    }
    return list(found.values())


def binding(rows: Sequence[dict[str, Any]]) -> Rows:
    """Return rows in twos, each with the other's name as its false caption, so that no caption alone tells."""
    return [
        row | {"false_caption": other["captions"][0], "kind": "name"}
        for two in zip(rows[::2], rows[1::2], strict=False)
        for row, other in (two, two[::-1])
    ]


def write(folder: Path, *, data: Path, scale: float = 1.0) -> None:
    """Write the sets of shape_world.write into a folder, with a share of the pairs; `data` has the prepared sets."""
    for path in (data / name for name in ("icons", "glosses") if not (data / name).is_dir()):
        raise ValueError(
            f"no {path}; run vlmo data prepare {path.name} --import worlds (worlds/README.md)"
        )
    train, test = (
        list(map(small, open_source(str(data / "icons"), split=split)))
        for split in ("train", "test")
    )
    seen, unseen = (
        [row for row in train if (row["source"] in UNSEEN) == each] for each in (False, True)
    )
    uses = Counter(row["captions"][0] for row in seen)
    names = {name for name, number in uses.items() if number >= KNOWN_FROM}
    number, size = (
        round(GALLERY * scale),
        {part: max(SMALLEST, round(most * scale)) for part, most in SIZES.items()},
    )
    named, test = ordered(seen, names=names), ordered(test, names=names, once=True)[:number]
    unseen = ordered(unseen, names=names, once=True)
    number = min(number, len(unseen) // 2)
    asked = {"train": unseen[:number], "validation": unseen[number : 2 * number], "test": test}
    texts = [row | {"image": None} for row in (*seen, *open_source(str(data / "glosses")))]
    sets: dict[str, tuple[Features, dict[str, Rows]]] = {
        "pairs": (FEATURES, asked | {"train": named[: size["pairs"]]}),
        "few": (FEATURES, {"train": named[: size["few"]]}),
        "fewest": (FEATURES, {"train": named[: size["fewest"]]}),
        "images": (FEATURES, {"train": [row | {"captions": []} for row in seen]}),
        "texts": (FEATURES, {"train": texts}),
        "binding": (COMPOSITION_FEATURES, {split: binding(rows) for split, rows in asked.items()}),
    }
    for name, (columns, splits) in sets.items():
        saved = {split: Dataset.from_list(rows, features=columns) for split, rows in splits.items()}
        DatasetDict(saved).save_to_disk(str(folder / name))
