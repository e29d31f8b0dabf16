"""Shards and saved data sets with columns of others' choice, as cells of a table and a column of images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Image, Value, concatenate_datasets
from datasets.exceptions import DatasetsError

from vlmo.data.listing import IMAGE_SUFFIXES, SHARD_SUFFIXES, regular_file
from vlmo.data.saved import ADVICE, naming_damage, open_saved, read_about, saved_splits
from vlmo.data.schema import FEATURES
from vlmo.data.stream.records import IMAGE_COLUMNS, Bad, is_confined, read_shard
from vlmo.data.tables import CAPTION_COLUMNS, SECOND_COLUMNS, SPLITS, column_of
from vlmo.data.tables import IMAGE_COLUMNS as TABLE_IMAGES
from vlmo.released.download import cache_folder

_TOLD = (*CAPTION_COLUMNS, "question", "answer", "answers", "label")
_READ = (*_TOLD, "question_id", "question_type", "answer_type", "image_id", "source", "licence", "license", "split")


class Stored(NamedTuple):
    """Rows as a table's lines.

    Attributes:
        cells: Of each row, by column. Images are cells for `decode_image`, of which `images` has the bytes, or paths.
        images: The same columns of images, which stay on the disk; None if the cells hold the paths.
        classes: Names of the classes in `label`, if the set lists them.
    """

    cells: list[dict[str, Any]]
    images: Dataset | None = None
    classes: list[str] | None = None


def read_splits(path: Path) -> Stored | None:
    """Return the rows of a saved set, of all its splits; None if they have the columns of `FEATURES`.

    ValueError if no column holds images, or none tells a task.
    """
    splits = saved_splits(path) or {None: path}
    first = next(iter(splits.values()))
    with naming_damage(first, advice=ADVICE):
        told = json.loads(read_about(first / "dataset_info.json"))
        if FEATURES.keys() <= (told["features"] or {}).keys():
            return None
    return _stored(path, [(split, open_saved(folder), path) for split, folder in splits.items()], texts_only=True)


def shards_of(files: Sequence[Path]) -> list[Path]:
    """Return the shards among the files of a folder, but tables that img2dataset left beside its tars.

    Beside images, which may be what shards were unpacked to, these are tables that name them; beside texts, those with
    images.

    Raises:
        ValueError: A parquet file beside images or texts cannot be read.
    """
    suffixes = {file.suffix.lower() for file in files}
    known = {file for file in files if file.suffix.lower() in SHARD_SUFFIXES}
    shards = [file for file in files if file in known and (_is_tar(file) or file.with_suffix(".tar") not in known)]
    if not suffixes.isdisjoint(IMAGE_SUFFIXES):
        return [file for file in shards if not _is_tar(file) and _names_images(file)]
    if ".txt" in suffixes and ".tar" not in suffixes:
        return [file for file in shards if _columns_and_image(file)[1] is not None]
    return shards


def _is_tar(file: Path) -> bool:
    return file.suffix.lower() == ".tar"


def _names_images(file: Path) -> bool:
    names, image = _columns_and_image(file)
    is_path = isinstance(image, str) or (isinstance(image, dict) and image.get("bytes") is None)
    return is_path and column_of(names, _TOLD) is not None


def _columns_and_image(file: Path) -> tuple[list[str], Any]:
    """Return the columns of a parquet file and its first image; None as that without any."""
    try:
        with pq.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            structs = [each.name for each in schema if pa.types.is_struct(each.type) and "bytes" in each.type.names]
            name = column_of(schema.names, (*IMAGE_COLUMNS, *TABLE_IMAGES, *structs))
            batches = opened.iter_batches(16, columns=[name]) if name else ()
            cells = (cell for batch in batches for cell in batch.column(0).to_pylist() if cell is not None)
            return schema.names, next(cells, None)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def read_shards(path: Path, shards: Sequence[Path]) -> Stored:
    """Return the rows of tars, whose images stay there, or of parquet files, which are copied into the cache folder.

    A folder, or the first word of a file's name, tells the split: `train/0.tar`, `test-00000-of-00001.parquet`.

    Raises:
        ValueError: A record or file cannot be read, or the columns are no images with captions, questions or classes.
    """
    if len({file.suffix.lower() for file in shards}) > 1:
        raise ValueError(f"{path} holds tar and parquet files, such as {shards[0]}; name a folder of one kind")
    if _is_tar(shards[0]):
        return Stored([cells for tar in shards for cells in _tar_cells(tar, path, split=_split_of(tar, path))])
    groups: dict[tuple[str | None, Path], list[str]] = {}
    for file in shards:
        regular_file(file)
        groups.setdefault((_split_of(file, path), file.parent), []).append(str(file))
    cache = str(cache_folder() / "parquet")
    try:
        parts: Any = [
            (split, Dataset.from_parquet(cast(Any, files), cache_dir=cache), folder)
            for (split, folder), files in groups.items()
        ]
    except (DatasetsError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error.__cause__ or error}") from error
    return _stored(path, parts)


def _split_of(file: Path, path: Path) -> str | None:
    place = file.relative_to(path)  # of a file that is given itself ".", which has no name
    words = [*place.parts[:-1], *re.split(r"[-_.]", place.name)[:1]]
    return next((SPLITS[word.lower()] for word in words if word.lower() in SPLITS), None)


def _tar_cells(tar: Path, path: Path, *, split: str | None) -> Iterator[dict[str, Any]]:
    name = tar.relative_to(path.parent).as_posix()  # with that of the folder: others have a 00000.tar too
    for record, _ in read_shard(str(tar), images="places", details=True):
        if isinstance(record, Bad):
            raise ValueError(
                f"{tar}, record {record.index}: {record.reason}. Repair it, or train on streams, which list such "
                f"records and go on: --data.streams.patterns {path}"
            )
        told = {key: value for key, value in record.metadata.items() if key in _READ}
        captions = {"captions": list(record.captions)} if record.captions else {}
        own = {"image_id": f"{name}#{record.key}", "image": {"bytes": None, "path": record.path}}
        yield {**own, **captions, "split": split, **told}


def _placed(images: Any, name: str, *, path: Path, folder: Path, first: int) -> Dataset:
    """Return images of which paths are those of files in `folder`; ValueError for a path that leads out of it."""
    data, paths = images.data.column(name).flatten()
    if not paths.filter(data.is_null()).drop_null():
        return images

    def place(cell: dict[str, Any] | None, number: int) -> dict[str, Any]:
        if cell is None or cell["bytes"] is not None or cell["path"] is None:
            return {name: cell}
        named = cell["path"].strip().replace("\\", "/")
        if not named:
            return {name: None}
        if not is_confined(named, folder):
            raise ValueError(
                f"{path}, row {first + number}: {named!r:.80} lies outside {folder}; give paths relative to that folder"
            )
        return {name: {"bytes": None, "path": str((folder / named).resolve())}}

    # Not from the cache: a link may lead elsewhere by now.
    return images.map(
        place,
        with_indices=True,
        input_columns=[name],
        features=images.features,
        keep_in_memory=data.null_count == len(data),
        load_from_cache_file=False,
    )


def _stored(path: Path, parts: Sequence[tuple[str | None, Dataset, Path]], *, texts_only: bool = False) -> Stored:
    """Return rows by split and the folder that their paths count from; on demand, of columns of texts alone."""
    cells: list[dict[str, Any]] = []
    images: list[Dataset] = []
    classes = None
    root = (path if path.is_dir() else path.parent).resolve()
    for split, rows, folder in parts:
        names = rows.column_names
        found = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
        image = column_of(found, ("image", *found)) or column_of(names, (*IMAGE_COLUMNS, *TABLE_IMAGES))
        others = {*names} - {image, *FEATURES, "split"}
        if image is None or (others and not column_of(names, _TOLD)):
            raise ValueError(
                f"{path}: its columns are {', '.join(names)}; expected images (image) and beside them captions (one of "
                f"{', '.join(CAPTION_COLUMNS)}), question and answer or answers, or label; rename_column of datasets "
                "gives them these names"
            )
        second = column_of(names, SECOND_COLUMNS)
        renamed = {image: "image"} | ({second: SECOND_COLUMNS[0]} if second else {})
        shown: Any = rows.select_columns(list(renamed)).rename_columns(renamed)
        for given, name in renamed.items():
            try:
                shown = shown.cast_column(name, Image(decode=False))
            except (pa.ArrowException, TypeError) as error:
                raise ValueError(f"{path}: its column {given} holds neither images nor paths ({error})") from error
            if not texts_only or rows.features[given] in (Value("string"), Value("large_string")):
                shown = _placed(shown, name, path=path, folder=folder, first=len(cells))
        data, paths = shown.data.column("image").flatten()
        files = paths.to_pylist() if data.null_count == len(data) else [None] * len(data)  # as of tables, else numbers
        read: Any = rows.select_columns([name for name in names if name not in renamed and name in _READ])
        if isinstance(label := rows.features.get("label"), ClassLabel):
            classes = label.names
        lines = read.to_list() if read.column_names else [{} for _ in range(len(rows))]
        for line, file in zip(lines, files, strict=True):
            number = str(len(cells))
            if classes is not None:
                line["label"] = classes[line["label"]] if line["label"] in range(len(classes)) else None
            held = {name: {"bytes": None, "path": number} for name in renamed.values()}
            image_id = os.path.relpath(file, root) if file else f"{path.name}#{number}"
            cells.append({"image_id": image_id, **line, **held, **({"split": split} if split else {})})
        images.append(shown)
    return Stored(cells, concatenate_datasets(images), classes)
