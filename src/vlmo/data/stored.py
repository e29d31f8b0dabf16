"""Shards and saved data sets with columns of others' choice, as cells of a table and a column of images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
from datasets import ClassLabel, Dataset, Image, Value, concatenate_datasets
from datasets.exceptions import DatasetsError

from vlmo.data.listing import SHARD_SUFFIXES, regular_file, walk
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


def load_saved(path: Path) -> Dataset:
    """Open what `save_to_disk` wrote of one split; ValueError if it is empty or damaged."""
    if (dataset := open_saved(path)) is None:
        raise ValueError(f"{path}: the set is empty, it has no row")
    return dataset


def is_saved(path: Path) -> bool:
    """Return True for a folder that `save_to_disk` wrote of a `Dataset` or a `DatasetDict`."""
    return (path / "state.json").is_file() or bool(saved_splits(path))


def read_saved(path: Path) -> Stored | None:
    """Return the rows of a saved set, of all its splits; None if they have the columns of `FEATURES`.

    ValueError if no column holds images, or none tells a task.
    """
    splits: list[Any] = saved_splits(path) or [None]
    first = path / (splits[0] or "")
    with naming_damage(first, advice=ADVICE):
        told = json.loads(read_about(first / "dataset_info.json"))
        if FEATURES.keys() <= (told["features"] or {}).keys():
            return None
    return _stored(path, [(split, load_saved(path / (split or "")), path) for split in splits], texts_only=True)


def shards_of(path: Path) -> list[Path]:
    """Return the shard that `path` is, or those in the folder, but tables that img2dataset left beside its tars."""
    if not path.is_dir():
        return [path] if path.suffix in SHARD_SUFFIXES else []
    files = [file for file in walk(path) if file.suffix in SHARD_SUFFIXES]
    return [file for file in files if file.suffix == ".tar" or not file.with_suffix(".tar").is_file()]


def read_shards(path: Path, shards: Sequence[Path]) -> Stored:
    """Return the rows of tars, whose images stay there, or of parquet files, which are copied into the cache folder.

    A folder, or the first word of a file's name, tells the split: `train/0.tar`, `test-00000-of-00001.parquet`.

    Raises:
        ValueError: A record or file cannot be read, or the columns are no images with captions, questions or classes.
    """
    if len({file.suffix for file in shards}) > 1:
        raise ValueError(f"{path} holds tar and parquet files, such as {shards[0]}; name a folder of one kind")
    if shards[0].suffix == ".tar":
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
            shown = shown.cast_column(name, Image(decode=False))
            if not texts_only or rows.features[given] in (Value("string"), Value("large_string")):
                shown = _placed(shown, name, path=path, folder=folder, first=len(cells))
        read: Any = rows.select_columns([name for name in names if name not in renamed and name in _READ])
        if isinstance(label := rows.features.get("label"), ClassLabel):
            classes = label.names
        for line in read.to_list() if read.column_names else [{} for _ in range(len(rows))]:
            number = str(len(cells))
            if classes is not None:
                line["label"] = classes[line["label"]] if line["label"] in range(len(classes)) else None
            held = {name: {"bytes": None, "path": number} for name in renamed.values()}
            cells.append({"image_id": f"{path.name}#{number}", **line, **held, **({"split": split} if split else {})})
        images.append(shown)
    return Stored(cells, concatenate_datasets(images), classes)
