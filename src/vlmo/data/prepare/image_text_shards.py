"""Picture-caption pairs as img2dataset writes them: tar shards, or parquet files with the pictures inside."""

from __future__ import annotations

import functools
import itertools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlmo.data.decoding import range_path
from vlmo.data.files import PICTURE_SUFFIXES
from vlmo.data.prepare.parts import Absent, BadRow, Part, Record, Row, SetOnDisk, file_key, text_of
from vlmo.data.stream.records import CAPTION_COLUMNS, IMAGE_COLUMNS, split_name

_SPLIT = "train"
_LAYOUT = "00000.tar, 00001.tar, ... (or .parquet) as img2dataset writes them"
_BATCH_ROWS = 64
_BLOCK = 512
"""Bytes of a block of a tar file; two of zeros end it."""


@dataclass(frozen=True)
class _Shard:
    """One file of a set, and how its rows are named."""

    file: Path
    name: str
    licence: str
    prefix: str

    def row(self, key: str, *, image: dict[str, Any] | None, caption: str | None) -> Row:
        values = {"image": image, "captions": [] if caption is None else [caption], "image_id": self.image_id(key)}
        return Row(_SPLIT, values | {"source": self.name, "licence": self.licence})

    def image_id(self, key: str) -> str:
        return f"{self.prefix}/{key}"


def open_shards(root: Path, *, name: str, licence: str) -> SetOnDisk:
    """A row a pair, all of them for training. Pictures in tar shards stay there; those in parquet files are copied.

    Raises:
        ValueError: No shard below `root`, or files with links alone.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; --root must be a folder with {_LAYOUT}")
    tars = sorted(root.rglob("*.tar"))
    # Beside a tar, img2dataset leaves a parquet file of the same name with what it knows but the pictures.
    tables = [file for file in sorted(root.rglob("*.parquet")) if not file.with_suffix(".tar").is_file()]
    if not tars and not tables:
        raise ValueError(f"{root}: no .tar and no .parquet in it; --root must be a folder with {_LAYOUT}")
    links = [file for file in tables if not _has_column(file, IMAGE_COLUMNS)]
    if not tars and links:
        raise ValueError(
            f"{links[0]}: a file without pictures, as it has none of the columns {', '.join(IMAGE_COLUMNS)} (found "
            f"{', '.join(pq.read_schema(links[0]).names)}). Download them with img2dataset first, and give its output "
            "folder as --root."
        )
    for file in tables:
        if file not in links and not _has_column(file, CAPTION_COLUMNS):
            raise ValueError(f"{file}: none of the columns {', '.join(CAPTION_COLUMNS)}, so there are no captions")
    notes = [f"{len(links)} parquet files without pictures are left out, such as {links[0]}"] if links else []
    parts = [_part(file, root=root, name=name, licence=licence) for file in [*tars, *tables] if file not in links]
    return SetOnDisk(parts=parts, notes=tuple(notes))


def _part(file: Path, *, root: Path, name: str, licence: str) -> Part:
    prefix = "/".join((name, *file.relative_to(root).parent.parts))
    read = _tar_rows if file.suffix == ".tar" else _table_rows
    shard = _Shard(file=file, name=name, licence=licence, prefix=prefix)
    return Part(key=file_key(file, name), rows=functools.partial(read, shard))


def _has_column(file: Path, names: tuple[str, ...]) -> bool:
    try:
        return not set(names).isdisjoint(pq.read_schema(file).names)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: not a whole parquet file ({error}); remove it or download it again") from error


def _tar_rows(shard: _Shard) -> Iterator[Record]:
    last = "nothing"
    try:
        with tarfile.open(shard.file, "r:") as tar:
            files = (member for member in tar if member.isfile())
            for key, members in itertools.groupby(files, key=_key):
                yield _tar_record(shard, tar, key, {_suffix(member): member for member in members})
                last = key
    except tarfile.TarError as error:
        yield _cut_off(shard, f"the shard cannot be read any further than {last}: {error}")
        return
    if not _ends_well(shard.file):
        yield _cut_off(shard, f"the shard is cut off after {last}; what followed is lost")


def _cut_off(shard: _Shard, reason: str) -> BadRow:
    return BadRow(_SPLIT, shard.image_id(shard.file.name), f"{shard.file}: {reason}", path=str(shard.file))


def _ends_well(file: Path) -> bool:
    """Whether the file ends as tar files do. A header that is cut in two is no error to `tarfile`."""
    with file.open("rb") as opened:
        opened.seek(-min(2 * _BLOCK, file.stat().st_size), 2)
        return not any(opened.read())


def _key(member: tarfile.TarInfo) -> str:
    return split_name(member.name)[0]


def _suffix(member: tarfile.TarInfo) -> str:
    return split_name(member.name)[1]


def _tar_record(shard: _Shard, tar: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo]) -> Record:
    picture = next((member for suffix, member in members.items() if suffix in PICTURE_SUFFIXES), None)
    if picture is None:
        found = ", ".join(members)
        return BadRow(_SPLIT, shard.image_id(key), f"{shard.file}: {key} has no picture, only {found}")
    try:
        caption = _tar_caption(tar, members)
    except (ValueError, AttributeError, TypeError) as error:
        return BadRow(_SPLIT, shard.image_id(key), f"{shard.file}: the caption of {key} cannot be read: {error}")
    path = range_path(shard.file.absolute(), start=picture.offset_data, length=picture.size)
    return shard.row(key, image={"bytes": None, "path": path}, caption=caption)


def _tar_caption(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> str | None:
    for suffix in (".txt", ".json"):
        opened = tar.extractfile(members[suffix]) if suffix in members else None
        if opened is None:
            continue
        text = opened.read().decode()
        caption = text if suffix == ".txt" else json.loads(text).get("caption")
        return None if caption is None else text_of(caption)
    return None


def _table_rows(shard: _Shard) -> Iterator[Record]:
    number = 0
    try:
        for number, record in enumerate(_table_records(shard.file), start=1):
            # Files that img2dataset has not written name no keys.
            key = f"{shard.file.stem}/{number}" if record.get("key") is None else str(record["key"])
            yield _table_record(shard, key, record)
    except (pa.ArrowException, OSError) as error:
        yield _cut_off(shard, f"it cannot be read any further than row {number}: {error}")


def _table_records(file: Path) -> Iterator[dict[str, Any]]:
    """Rows with the columns `image` and `caption`, and `key` and `status` where the file has them."""
    with pq.ParquetFile(file) as opened:
        names = opened.schema_arrow.names
        image = next(name for name in IMAGE_COLUMNS if name in names)
        caption = next(name for name in CAPTION_COLUMNS if name in names)
        known = [name for name in ("key", "status") if name in names]
        for batch in opened.iter_batches(batch_size=_BATCH_ROWS, columns=[image, caption, *known]):
            for record in batch.to_pylist():
                yield record | {"image": record[image], "caption": record[caption]}


def _table_record(shard: _Shard, key: str, record: dict[str, Any]) -> Record:
    if record.get("status", "success") != "success":
        return Absent(_SPLIT, record["status"])
    data, caption = record["image"], record["caption"]
    data = data.get("bytes") if isinstance(data, dict) else data
    if not isinstance(data, bytes | None) or not isinstance(caption, str | None):
        found = f"{type(data).__name__} and {type(caption).__name__}"
        return BadRow(
            _SPLIT, shard.image_id(key), f"{shard.file}: {key} has {found}; expected a picture's bytes and text"
        )
    image = None if data is None else {"bytes": data, "path": f"{shard.file.name}/{key}"}
    return shard.row(key, image=image, caption=caption)
