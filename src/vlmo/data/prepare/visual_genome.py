"""Visual Genome: the phrases about the regions of an image, as captions of the whole image."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vlmo.data.prepare.coco import KARPATHY_FILES, coco_image_id
from vlmo.data.prepare.json_stream import read_array
from vlmo.data.prepare.parts import Row, SetOnDisk, chunked, find, first_of, image_at, text_of
from vlmo.data.schema import make_row

NAME = "visual_genome"
LICENCE = "CC-BY-4.0"
KNOWN_SIZES: dict[str, int] = {}  # its versions differ by a few images

HELD_OUT_SPLIT = "coco_held_out"
"""Images that are also in the validation or test split of COCO: whoever trains on them cannot test on COCO."""

_FOLDERS = ("VG_100K", "VG_100K_2")
_LAYOUT = "VG_100K/, VG_100K_2/, region_descriptions.json and image_data.json (or images/ and annotations/ with these)"


def open_set(root: Path) -> SetOnDisk:
    """Find one row an image; images of COCO's validation and test split go to a split of their own, if known.

    Raises:
        ValueError: A file or folder is missing, or holds something else.
    """
    regions = find(root, "region_descriptions.json", "annotations/region_descriptions.json", layout=_LAYOUT)
    facts = find(root, "image_data.json", "annotations/image_data.json", layout=_LAYOUT)
    folders = {name: find(root, name, f"images/{name}", layout=_LAYOUT) for name in _FOLDERS}
    images: dict[int, tuple[str, int | None]] = {}  # folder, and number in COCO if it is from there
    for number, record in enumerate(read_array(facts)):
        try:
            folder = PurePosixPath(record["url"]).parent.name
            images[int(record["image_id"])] = folder, record.get("coco_id")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{facts}: [{number}]: image_id and url are needed ({error!r})") from error
    shared = {coco_id for _, coco_id in images.values() if coco_id is not None}
    file = first_of(root, *KARPATHY_FILES)
    held_out: frozenset[int] = frozenset()
    notes = []
    if file is not None:
        held_out = _held_out(file) & shared
    elif shared:
        notes.append(
            f"{len(shared):,} images are from COCO, and some of them are in its validation and test splits; with "
            f"dataset_coco.json in {root} these go to the split {HELD_OUT_SPLIT!r}"
        )
    rows = functools.partial(_rows, regions, images=images, folders=folders, held_out=held_out)
    # Read once before any image is, so that errors come at the start.
    return SetOnDisk(parts=chunked(rows()), num_rows=sum(1 for _ in rows()), notes=tuple(notes))


def _held_out(file: Path) -> frozenset[int]:
    try:
        records = read_array(file, key="images")
        return frozenset(record["cocoid"] for record in records if record["split"] in ("val", "test"))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: images[] need cocoid and split ({error!r}); is it the file of another set?"
        ) from error


def _rows(
    file: Path, *, images: dict[int, tuple[str, int | None]], folders: dict[str, Path], held_out: frozenset[int]
) -> Iterator[Row]:
    for number, record in enumerate(read_array(file)):
        try:
            image_id = int(record["id"])
            captions = [text_of(region["phrase"]) for region in record["regions"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: [{number}]: id and regions[].phrase are needed ({error!r})") from error
        folder, coco_id = images.get(image_id, (_FOLDERS[0], None))
        # In the folder that its address names, or in the other one: people merge the two.
        usual = folders.get(folder, folders[_FOLDERS[0]])
        places = [place / f"{image_id}.jpg" for place in (usual, *folders.values())]
        row = make_row(
            # The same image has the same name in both sets: it is no negative of itself.
            f"{NAME}/{image_id}" if coco_id is None else coco_image_id(coco_id),
            image=image_at(next(filter(Path.is_file, places), places[0])),
            captions=captions,
            source=NAME,
            licence=LICENCE,
        )
        yield Row(HELD_OUT_SPLIT if coco_id in held_out else "train", row)
