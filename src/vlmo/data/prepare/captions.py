"""Sets of images with captions: COCO, Flickr30K, Visual Genome, and pairs of the web (SBU, Conceptual Captions)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmo.data.decoding import ImageCell, image_at
from vlmo.data.listing import walk
from vlmo.data.prepare.preparer import (
    BadRow,
    FileItem,
    Record,
    Row,
    SetOnDisk,
    find,
    read_records,
    read_table_schema,
    stamped,
    text_of,
)
from vlmo.data.schema import make_row
from vlmo.data.stream.records import Bad, read_shard
from vlmo.data.tables import CAPTION_COLUMNS, IMAGE_COLUMNS

_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
"""Karpathy's; COCO's `restval` is the part of val2014 that everyone trains on."""
_COCO_FILES = ("dataset_coco.json", "karpathy/dataset_coco.json")
_COCO_LAYOUT = "train2014/, val2014/ and dataset_coco.json (or karpathy/dataset_coco.json)"
_FLICKR_LAYOUT = "flickr30k-images/ and dataset_flickr30k.json (or karpathy/dataset_flickr30k.json)"
_VG_LAYOUT = "VG_100K/, VG_100K_2/, region_descriptions.json, image_data.json (or these in images/ and annotations/)"
_SHARD_LAYOUT = "00000.tar, 00001.tar, ... (or .parquet) as img2dataset writes them"


def coco_image_id(number: int) -> str:
    """Return the name of an image of COCO in every set that holds it."""
    return f"coco/{number}"


def open_coco(root: Path) -> SetOnDisk:
    """Find one row an image of COCO."""
    file = find(root, *_COCO_FILES, layout=_COCO_LAYOUT)
    for folder in ("train2014", "val2014"):
        find(root, folder, layout=_COCO_LAYOUT)
    licence = "captions CC-BY-4.0; images under the Flickr terms of their owners"
    # Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments": 82,783 + 30,504 for training.
    sizes = {"train": 113_287, "validation": 5_000, "test": 5_000}
    return SetOnDisk(
        _karpathy(file, images=root, source="coco", licence=licence), licence, known_sizes=sizes
    )


def open_flickr30k(root: Path) -> SetOnDisk:
    """Find one row an image of Flickr30K."""
    file = find(
        root, "dataset_flickr30k.json", "karpathy/dataset_flickr30k.json", layout=_FLICKR_LAYOUT
    )
    images = find(root, "flickr30k-images", "flickr30k_images", layout=_FLICKR_LAYOUT)
    licence = (
        "research and education, not commercial; images under the Flickr terms of their owners"
    )
    # Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments".
    sizes = {"train": 29_000, "validation": 1_014, "test": 1_000}
    return SetOnDisk(
        _karpathy(file, images=images, source="flickr30k", licence=licence),
        licence,
        known_sizes=sizes,
    )


def _karpathy(
    file: Path, *, images: Path, source: str, licence: str
) -> functools.partial[Iterator[Row]]:
    """A row an image, with all its sentences. A record's `filepath`, if it has one, is a folder below `images`."""

    def row(record: dict[str, Any]) -> Row:
        image = images / record.get("filepath", "") / record["filename"]
        image_id = coco_image_id(record["cocoid"]) if source == "coco" else f"{source}/{image.stem}"
        captions = [text_of(sentence["raw"]) for sentence in record["sentences"]]
        values = make_row(
            image_id, image=image_at(image), captions=captions, source=source, licence=licence
        )
        return Row(_SPLITS[record["split"]], values)

    return functools.partial(iter, read_records(file, row, key="images"))


def open_visual_genome(root: Path) -> SetOnDisk:
    """Find one row an image; an image of COCO has its name there, so that joined sets leave out what COCO tests."""
    regions, facts = (
        find(root, name, f"annotations/{name}", layout=_VG_LAYOUT)
        for name in ("region_descriptions.json", "image_data.json")
    )
    folders = [
        find(root, name, f"images/{name}", layout=_VG_LAYOUT) for name in ("VG_100K", "VG_100K_2")
    ]
    coco_ids = dict(
        read_records(facts, lambda image: (int(image["image_id"]), image.get("coco_id")))
    )

    def row(record: dict[str, Any]) -> Row:
        image_id = int(record["id"])
        coco_id = coco_ids.get(image_id)
        files = [folder / f"{image_id}.jpg" for folder in folders]
        values = make_row(
            # The same image has the same name in both sets: it is no negative of itself.
            f"visual_genome/{image_id}" if coco_id is None else coco_image_id(coco_id),
            image=image_at(next(filter(Path.is_file, files), files[0])),
            # All descriptions of regions are captions of the whole image, as in the published code.
            captions=[text_of(region["phrase"]) for region in record["regions"]],
            source="visual_genome",
            licence="CC-BY-4.0",
        )
        return Row("train", values)

    rows = read_records(regions, row)
    shared = sum(coco_id is not None for coco_id in coco_ids.values())
    notes = [
        f"{shared:,} images are from COCO; train on them together with coco, which keeps its test images out"
    ]
    return SetOnDisk(lambda: rows, "CC-BY-4.0", notes=notes if shared else [])


def open_sbu(root: Path) -> SetOnDisk:
    """Find one row a pair of SBU Captions."""
    licence = "captions for research; images under the Flickr terms of their owners"
    return _open_shards(root, source="sbu", licence=licence)


def open_conceptual_captions(root: Path) -> SetOnDisk:
    """Find one row a pair of Conceptual Captions 3M or 12M; sets such as LAION have the same form."""
    licence = (
        "captions free to use, naming Google LLC as their source; images belong to their owners"
    )
    return _open_shards(root, source="conceptual_captions", licence=licence)


def _open_shards(root: Path, *, source: str, licence: str) -> SetOnDisk:
    """Find a row a pair, all of them for training; links die, so nobody knows how many.

    Images in tar shards stay there; those in parquet files are copied. Parquet files without images are lists of links,
    or what img2dataset leaves beside a tar.
    """
    find(root, ".", layout=_SHARD_LAYOUT)
    shards = []
    for file in walk(root):
        if file.suffix == ".tar":
            shards.append(file)
        elif file.suffix == ".parquet":
            names = read_table_schema(file).names
            if set(IMAGE_COLUMNS).isdisjoint(names):
                continue
            if set(CAPTION_COLUMNS).isdisjoint(names):
                raise ValueError(
                    f"{file}: none of the columns {', '.join(CAPTION_COLUMNS)}, so there are no captions"
                )
            shards.append(file)
    if not shards:
        raise ValueError(
            f"{root}: no .tar and no .parquet file with images in it; --root must be a folder with {_SHARD_LAYOUT}. "
            "Images of lists of links are downloaded with img2dataset."
        )
    read = functools.partial(_read_shards, root=root, source=source, licence=licence)
    return SetOnDisk(lambda: map(stamped, shards), licence, read=read, chunk=1)


def _read_shards(
    shards: list[FileItem], *, root: Path, source: str, licence: str
) -> Iterator[Record]:
    for file, *_ in shards:
        prefix = "/".join((source, *file.relative_to(root).parent.parts))
        # Files that img2dataset has not written name no keys.
        has_keys = file.suffix == ".tar" or "key" in read_table_schema(file).names
        for record, _ in read_shard(str(file.absolute()), images="ranges"):
            key = record.key if has_keys else f"{file.stem}/{record.index + 1}"
            if isinstance(record, Bad):
                image_id = f"{prefix}/{file.name if record.kind == 'shard' else key}"
                yield BadRow("train", image_id, f"{file}: {record.reason}", path=str(file))
                continue
            image: ImageCell | None = None
            if record.image is not None:
                image = {"bytes": record.image, "path": f"{file.name}/{key}"}
            elif file.suffix == ".tar":
                image = {"bytes": None, "path": record.path}
            row = make_row(
                f"{prefix}/{key}",
                image=image,
                captions=record.captions,
                source=source,
                licence=licence,
            )
            yield Row("train", row)
