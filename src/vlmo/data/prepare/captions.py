"""Sets of images with captions: COCO, Flickr30K, Visual Genome, and pairs of the web (SBU, Conceptual Captions)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from vlmo.data.decoding import ImageCell, image_at
from vlmo.data.listing import walk
from vlmo.data.prepare.parts import (
    Absent,
    BadRow,
    Part,
    Record,
    Row,
    SetOnDisk,
    chunked,
    file_key,
    find,
    first_of,
    read_records,
    read_table_schema,
    require_folder,
    text_of,
)
from vlmo.data.schema import make_row
from vlmo.data.stream.records import CAPTION_COLUMNS, IMAGE_COLUMNS, Bad, read_shard

COCO_FILES = ("dataset_coco.json", "karpathy/dataset_coco.json")

_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
"""COCO's `restval` is the part of val2014 that everyone trains on."""

HELD_OUT_SPLIT = "coco_held_out"
"""Images that are also in the validation or test split of COCO: whoever trains on them cannot test on COCO."""

_VG_FOLDERS = ("VG_100K", "VG_100K_2")
_VG_LAYOUT = (
    "VG_100K/, VG_100K_2/, region_descriptions.json and image_data.json (or images/ and annotations/ with these)"
)

_SHARD_LAYOUT = "00000.tar, 00001.tar, ... (or .parquet) as img2dataset writes them"


def open_coco(root: Path) -> SetOnDisk:
    """Find one row an image of COCO."""
    layout = "train2014/, val2014/ and dataset_coco.json (or karpathy/dataset_coco.json)"
    file = find(root, *COCO_FILES, layout=layout)
    for folder in ("train2014", "val2014"):
        find(root, folder, layout=layout)
    licence = "captions CC-BY-4.0; images under the Flickr terms of their owners"
    sizes = {"train": 113_287, "validation": 5_000, "test": 5_000}
    return _open_karpathy(
        "coco", file, root, licence=licence, sizes=sizes, image_id=lambda of: coco_image_id(of["cocoid"])
    )


def open_flickr30k(root: Path) -> SetOnDisk:
    """Find one row an image of Flickr30K."""
    layout = "flickr30k-images/ and dataset_flickr30k.json (or karpathy/dataset_flickr30k.json)"
    file = find(root, "dataset_flickr30k.json", "karpathy/dataset_flickr30k.json", layout=layout)
    folder = find(root, "flickr30k-images", "flickr30k_images", layout=layout)
    licence = "research and education, not commercial; images under the Flickr terms of their owners"
    sizes = {"train": 29_000, "validation": 1_014, "test": 1_000}
    name = "flickr30k"
    return _open_karpathy(
        name, file, folder, licence=licence, sizes=sizes, image_id=lambda of: f"{name}/{Path(of['filename']).stem}"
    )


def coco_image_id(number: int) -> str:
    """Return the name of an image of COCO in every set that holds it."""
    return f"coco/{number}"


def _open_karpathy(
    name: str, file: Path, folder: Path, *, licence: str, sizes: dict[str, int], image_id: Callable[[Any], str]
) -> SetOnDisk:
    """A row an image, with all its sentences. A record's `filepath`, if it has one, is a folder below `folder`."""

    def row(record: dict[str, Any]) -> Row:
        split, image = _SPLITS[record["split"]], Path(record.get("filepath", "")) / record["filename"]
        captions = [text_of(sentence["raw"]) for sentence in record["sentences"]]
        cell = image_at(folder / image)
        return Row(split, make_row(image_id(record), image=cell, captions=captions, source=name, licence=licence))

    needs = f"filename, split ({', '.join(_SPLITS)}), sentences[].raw and in COCO cocoid"
    rows = read_records(file, row, key="images", needs=needs)
    return SetOnDisk(parts=chunked(rows), licence=licence, known_sizes=sizes)


def open_visual_genome(root: Path) -> SetOnDisk:
    """Find one row an image; images of COCO's validation and test split go to a split of their own, if known."""
    regions = find(root, "region_descriptions.json", "annotations/region_descriptions.json", layout=_VG_LAYOUT)
    facts = find(root, "image_data.json", "annotations/image_data.json", layout=_VG_LAYOUT)
    folders = {name: find(root, name, f"images/{name}", layout=_VG_LAYOUT) for name in _VG_FOLDERS}

    def facts_of(record: dict[str, Any]) -> tuple[int, tuple[str, int | None]]:
        return int(record["image_id"]), (PurePosixPath(record["url"]).parent.name, record.get("coco_id"))

    # Folder of each image, and its number in COCO if it is from there.
    images = dict(read_records(facts, facts_of, needs="image_id and url"))
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
        folder, coco_id = images.get(image_id, (_VG_FOLDERS[0], None))
        # In the folder that its address names, or in the other one: people merge the two.
        usual = folders.get(folder, folders[_VG_FOLDERS[0]])
        files = [folder / f"{image_id}.jpg" for folder in (usual, *folders.values())]
        values = make_row(
            # The same image has the same name in both sets: it is no negative of itself.
            f"visual_genome/{image_id}" if coco_id is None else coco_image_id(coco_id),
            image=image_at(next(filter(Path.is_file, files), files[0])),
            captions=[text_of(region["phrase"]) for region in record["regions"]],
            source="visual_genome",
            licence="CC-BY-4.0",
        )
        return Row(HELD_OUT_SPLIT if coco_id in held_out else "train", values)

    rows = read_records(regions, row, needs="id and regions[].phrase")
    return SetOnDisk(parts=chunked(rows), licence="CC-BY-4.0", notes=notes)


def open_sbu(root: Path) -> SetOnDisk:
    """Find one row a pair of SBU Captions."""
    return _open_shards(
        root, name="sbu", licence="captions for research; images under the Flickr terms of their owners"
    )


def open_conceptual_captions(root: Path) -> SetOnDisk:
    """Find one row a pair of Conceptual Captions 3M or 12M; sets such as LAION have the same form."""
    licence = "captions free to use, naming Google LLC as their source; images belong to their owners"
    return _open_shards(root, name="conceptual_captions", licence=licence)


def _open_shards(root: Path, *, name: str, licence: str) -> SetOnDisk:
    """Find a row a pair, all of them for training; links die, so nobody knows how many.

    Images in tar shards stay there; those in parquet files are copied.
    """
    require_folder(root, layout=_SHARD_LAYOUT)
    shards, links = [], []
    for file in walk(root):
        # Beside a tar, img2dataset leaves a parquet file of the same name with what it knows but the images.
        if file.suffix == ".parquet" and not file.with_suffix(".tar").is_file():
            columns = read_table_schema(file).names
            has_images = not set(IMAGE_COLUMNS).isdisjoint(columns)
            if has_images and set(CAPTION_COLUMNS).isdisjoint(columns):
                raise ValueError(f"{file}: none of the columns {', '.join(CAPTION_COLUMNS)}, so there are no captions")
            (shards if has_images else links).append(file)
        elif file.suffix == ".tar":
            shards.append(file)
    if not shards and links:
        raise ValueError(
            f"{links[0]}: a file without images, as it has none of the columns {', '.join(IMAGE_COLUMNS)}. Download "
            "them with img2dataset first, and give its output folder as --root."
        )
    if not shards:
        raise ValueError(f"{root}: no .tar and no .parquet in it; --root must be a folder with {_SHARD_LAYOUT}")
    parts = [
        Part(file_key(file, name), functools.partial(_shard_rows, file, root=root, name=name, licence=licence))
        for file in sorted(shards, key=lambda file: file.suffix != ".tar")
    ]
    notes = [f"{len(links)} parquet files without images are left out, such as {links[0]}"] if links else []
    return SetOnDisk(parts=parts, licence=licence, notes=notes)


def _shard_rows(file: Path, *, root: Path, name: str, licence: str) -> Iterator[Record]:
    prefix = "/".join((name, *file.relative_to(root).parent.parts))
    # Files that img2dataset has not written name no keys.
    has_keys = file.suffix == ".tar" or "key" in read_table_schema(file).names
    for record, _ in read_shard(str(file.absolute()), images="ranges", absent=True):
        key = record.key if has_keys else f"{file.stem}/{record.index + 1}"
        if isinstance(record, Bad) and record.kind == "absent":
            yield Absent("train", record.reason)
        elif isinstance(record, Bad):
            image_id = f"{prefix}/{file.name if record.kind == 'shard' else key}"
            yield BadRow("train", image_id, f"{file}: {record.reason}", path=str(file))
        else:
            image: ImageCell | None = None
            if record.image is not None:
                image = {"bytes": record.image, "path": f"{file.name}/{key}"}
            elif file.suffix == ".tar":
                image = {"bytes": None, "path": record.path}
            captions = record.captions
            row = make_row(f"{prefix}/{key}", image=image, captions=captions, source=name, licence=licence)
            yield Row("train", row)
