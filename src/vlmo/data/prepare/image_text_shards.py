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

_SPLIT = "train"
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
    files = list(walk(root))
    tars = [file for file in files if file.suffix == ".tar"]
    # Beside a tar, img2dataset leaves a parquet file of the same name with what it knows but the images.
    tables = [file for file in files if file.suffix == ".parquet" and not file.with_suffix(".tar").is_file()]
    if not tars and not tables:
        raise ValueError(f"{root}: no .tar and no .parquet in it; --root must be a folder with {_LAYOUT}")
    columns = {file: read_table_schema(file).names for file in tables}
    links = [file for file in tables if set(IMAGE_COLUMNS).isdisjoint(columns[file])]
    if not tars and links:
        raise ValueError(
            f"{links[0]}: a file without images, as it has none of the columns {', '.join(IMAGE_COLUMNS)} (found "
            f"{', '.join(columns[links[0]])}). Download them with img2dataset first, and give its output "
            "folder as --root."
        )
    for file in tables:
        if file not in links and set(CAPTION_COLUMNS).isdisjoint(columns[file]):
            raise ValueError(f"{file}: none of the columns {', '.join(CAPTION_COLUMNS)}, so there are no captions")
    notes = [f"{len(links)} parquet files without images are left out, such as {links[0]}"] if links else []
    parts = [
        Part(key=file_key(file, name), rows=functools.partial(_rows, file, root=root, name=name, licence=licence))
        for file in [*tars, *tables]
        if file not in links
    ]
    return SetOnDisk(parts=parts, licence=licence, notes=tuple(notes))


def _rows(file: Path, *, root: Path, name: str, licence: str) -> Iterator[Record]:
    prefix = "/".join((name, *file.relative_to(root).parent.parts))
    # Files that img2dataset has not written name no keys.
    has_keys = file.suffix == ".tar" or "key" in read_table_schema(file).names
    for record, _ in read_shard(str(file.absolute()), images="places", absent=True):
        key = record.key if has_keys else f"{file.stem}/{record.index + 1}"
        if isinstance(record, Bad):
            if record.kind == "absent":
                yield Absent(_SPLIT, record.reason)
            else:
                image_id = f"{prefix}/{file.name if record.kind == 'shard' else key}"
                yield BadRow(_SPLIT, image_id, f"{file}: {record.reason}", path=str(file))
            continue
        image: ImageCell | None = None
        if record.image is not None:
            image = {"bytes": record.image, "path": f"{file.name}/{key}"}
        elif file.suffix == ".tar":
            image = {"bytes": None, "path": record.path}
        row = make_row(f"{prefix}/{key}", image=image, captions=record.captions, source=name, licence=licence)
        yield Row(_SPLIT, row)
