"""Visual Genome: the phrases about the regions of an image, as captions of the whole image."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from vlmo.data.prepare.karpathy import COCO_FILES, coco_image_id
from vlmo.data.prepare.parts import Row, SetOnDisk, chunked, find, first_of, image_at, read_records, text_of
from vlmo.data.schema import make_row

NAME = "visual_genome"
LICENCE = "CC-BY-4.0"

HELD_OUT_SPLIT = "coco_held_out"
"""Images that are also in the validation or test split of COCO: whoever trains on them cannot test on COCO."""

_FOLDERS = ("VG_100K", "VG_100K_2")
_LAYOUT = "VG_100K/, VG_100K_2/, region_descriptions.json and image_data.json (or images/ and annotations/ with these)"


def open_set(root: Path) -> SetOnDisk:
    """Find one row an image; images of COCO's validation and test split go to a split of their own, if known."""
    regions = find(root, "region_descriptions.json", "annotations/region_descriptions.json", layout=_LAYOUT)
    facts = find(root, "image_data.json", "annotations/image_data.json", layout=_LAYOUT)
    folders = {name: find(root, name, f"images/{name}", layout=_LAYOUT) for name in _FOLDERS}

    def place(record: dict[str, Any]) -> tuple[int, tuple[str, int | None]]:
        return int(record["image_id"]), (PurePosixPath(record["url"]).parent.name, record.get("coco_id"))

    # Folder of each image, and its number in COCO if it is from there.
    images = dict(read_records(facts, place, needs="image_id and url"))
    shared = {coco_id for _, coco_id in images.values() if coco_id is not None}
    file = first_of(root, *COCO_FILES)
    held_out: set[int] = set()
    notes = []
    if file is not None:
        splits = read_records(file, lambda of: (of["cocoid"], of["split"]), key="images", needs="cocoid and split")
        held_out = {coco_id for coco_id, split in splits if split in {"val", "test"} and coco_id in shared}
    elif shared:
        notes.append(
            f"{len(shared):,} images are from COCO, and some of them are in its validation and test splits; with "
            f"dataset_coco.json in {root} these go to the split {HELD_OUT_SPLIT!r}"
        )

    def row(record: dict[str, Any]) -> Row:
        image_id = int(record["id"])
        folder, coco_id = images.get(image_id, (_FOLDERS[0], None))
        # In the folder that its address names, or in the other one: people merge the two.
        usual = folders.get(folder, folders[_FOLDERS[0]])
        places = [place / f"{image_id}.jpg" for place in (usual, *folders.values())]
        values = make_row(
            # The same image has the same name in both sets: it is no negative of itself.
            f"{NAME}/{image_id}" if coco_id is None else coco_image_id(coco_id),
            image=image_at(next(filter(Path.is_file, places), places[0])),
            captions=[text_of(region["phrase"]) for region in record["regions"]],
            source=NAME,
            licence=LICENCE,
        )
        return Row(HELD_OUT_SPLIT if coco_id in held_out else "train", values)

    rows = read_records(regions, row, needs="id and regions[].phrase")
    return SetOnDisk(parts=chunked(rows), licence=LICENCE, notes=notes)
