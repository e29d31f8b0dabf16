"""Image-caption pairs as img2dataset writes them: tar shards, or parquet files with the images inside."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from vlmo.data.decoding import ImageCell
from vlmo.data.listing import walk
from vlmo.data.prepare.parts import (
    Absent,
    BadRow,
    Part,
    Record,
    Row,
    SetOnDisk,
    file_key,
    read_table_schema,
    require_folder,
)
from vlmo.data.schema import make_row
from vlmo.data.stream.records import CAPTION_COLUMNS, IMAGE_COLUMNS, Bad, read_shard

_LAYOUT = "00000.tar, 00001.tar, ... (or .parquet) as img2dataset writes them"


def open_sbu(root: Path) -> SetOnDisk:
    """Find one row a pair of SBU Captions."""
    return _open(root, name="sbu", licence="captions for research; images under the Flickr terms of their owners")


def open_conceptual_captions(root: Path) -> SetOnDisk:
    """Find one row a pair of Conceptual Captions 3M or 12M; sets such as LAION have the same form."""
    licence = "captions free to use, naming Google LLC as their source; images belong to their owners"
    return _open(root, name="conceptual_captions", licence=licence)


def _open(root: Path, *, name: str, licence: str) -> SetOnDisk:
    """Find a row a pair, all of them for training; links die, so nobody knows how many.

    Images in tar shards stay there; those in parquet files are copied.
    """
    require_folder(root, layout=_LAYOUT)
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
        raise ValueError(f"{root}: no .tar and no .parquet in it; --root must be a folder with {_LAYOUT}")
    parts = [
        Part(file_key(file, name), functools.partial(_rows, file, root=root, name=name, licence=licence))
        for file in sorted(shards, key=lambda file: file.suffix != ".tar")
    ]
    notes = [f"{len(links)} parquet files without images are left out, such as {links[0]}"] if links else []
    return SetOnDisk(parts=parts, licence=licence, notes=notes)


def _rows(file: Path, *, root: Path, name: str, licence: str) -> Iterator[Record]:
    prefix = "/".join((name, *file.relative_to(root).parent.parts))
    # Files that img2dataset has not written name no keys.
    has_keys = file.suffix == ".tar" or "key" in read_table_schema(file).names
    for record, _ in read_shard(str(file.absolute()), images="places", absent=True):
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
