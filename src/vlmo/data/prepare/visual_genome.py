"""Visual Genome: the phrases about the regions of a picture, as captions of the whole picture."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vlmo.data.prepare.coco import KARPATHY_FILES, coco_image_id
from vlmo.data.prepare.json_stream import read_array
from vlmo.data.prepare.parts import Row, SetOnDisk, chunked, find, image_at, text_of

NAME = "visual_genome"
LICENCE = "CC-BY-4.0"
# Its versions differ by a few pictures, so there is no size that everyone knows.
KNOWN_SIZES: dict[str, int] = {}

HELD_OUT_SPLIT = "coco_held_out"
"""Pictures that are also in the validation or test split of COCO: whoever trains on them cannot test on COCO."""

_FOLDERS = ("VG_100K", "VG_100K_2")
_LAYOUT = "VG_100K/, VG_100K_2/, region_descriptions.json and image_data.json (or images/ and annotations/ with these)"


@dataclass(frozen=True)
class _Picture:
    """What image_data.json says of a picture: its folder, and its number in COCO if it is from there."""

    folder: str
    coco_id: int | None


def open_set(root: Path) -> SetOnDisk:
    """A row a picture; pictures of COCO's validation and test split go to a split of their own, if they are known."""
    regions = _found(root, "annotations", "region_descriptions.json")
    pictures = _pictures(_found(root, "annotations", "image_data.json"))
    folders = {name: _found(root, "images", name) for name in _FOLDERS}
    held_out, note = _coco_held_out(root, pictures)
    rows = functools.partial(_rows, regions, pictures=pictures, folders=folders, held_out=held_out)
    # Read once before any picture is, so that errors come at the start.
    return SetOnDisk(parts=chunked(rows()), num_rows=sum(1 for _ in rows()), notes=(note,) if note else ())


def _found(root: Path, folder: str, name: str) -> Path:
    return find(root, name, f"{folder}/{name}", layout=_LAYOUT)


def _pictures(file: Path) -> dict[int, _Picture]:
    pictures = {}
    for number, record in enumerate(read_array(file)):
        try:
            folder = PurePosixPath(record["url"]).parent.name
            pictures[int(record["image_id"])] = _Picture(folder=folder, coco_id=record.get("coco_id"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{file}: [{number}]: image_id and url are needed ({error!r})") from error
    return pictures


def _coco_held_out(root: Path, pictures: dict[int, _Picture]) -> tuple[frozenset[int], str | None]:
    shared = {picture.coco_id for picture in pictures.values() if picture.coco_id is not None}
    file = next((root / name for name in KARPATHY_FILES if (root / name).is_file()), None)
    if file is None and shared:
        note = f"{len(shared):,} pictures are from COCO, and some of them are in its validation and test splits; with "
        return frozenset(), note + f"dataset_coco.json in {root} these go to the split {HELD_OUT_SPLIT!r}"
    if file is None:
        return frozenset(), None
    try:
        records = read_array(file, key="images")
        held_out = frozenset(record["cocoid"] for record in records if record["split"] in ("val", "test"))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: images[] need cocoid and split ({error!r}); is it the file of another set?"
        ) from error
    return held_out & shared, None


def _rows(
    file: Path, *, pictures: dict[int, _Picture], folders: dict[str, Path], held_out: frozenset[int]
) -> Iterator[Row]:
    for number, record in enumerate(read_array(file)):
        try:
            image_id = int(record["id"])
            captions = [text_of(region["phrase"]) for region in record["regions"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: [{number}]: id and regions[].phrase are needed ({error!r})") from error
        picture = pictures.get(image_id, _Picture(folder=_FOLDERS[0], coco_id=None))
        coco_id = picture.coco_id
        yield Row(
            HELD_OUT_SPLIT if coco_id in held_out else "train",
            {
                "image": _cell(f"{image_id}.jpg", folder=picture.folder, folders=folders),
                "captions": captions,
                # The same picture has the same name in both sets: it is no negative of itself.
                "image_id": f"{NAME}/{image_id}" if coco_id is None else coco_image_id(coco_id),
                "source": NAME,
                "licence": LICENCE,
            },
        )


def _cell(name: str, *, folder: str, folders: dict[str, Path]) -> dict[str, Any]:
    """The picture where its address says, or in the other folder: people merge the two."""
    usual = folders.get(folder, folders[_FOLDERS[0]])
    return image_at(
        next((place / name for place in (usual, *folders.values()) if (place / name).is_file()), usual / name)
    )
