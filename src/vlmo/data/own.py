"""People's own tables, shards and saved sets, with columns of their choice, as rows (docs/data.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, Value, concatenate_datasets
from datasets.exceptions import DatasetsError

from vlmo.data.decoding import ImageCell, image_at, is_range
from vlmo.data.listing import IMAGE_SUFFIXES, SHARD_SUFFIXES, regular_file, walk
from vlmo.data.rows import (
    ADVICE,
    Bad,
    column,
    is_saved,
    naming_damage,
    open_saved,
    read_about,
    saved_splits,
)
from vlmo.data.schema import (
    FEATURES,
    QUESTION_FEATURES,
    REASONING_FEATURES,
    class_features,
    make_row,
)
from vlmo.data.stream.records import read_saved, read_shard
from vlmo.data.tables import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    SECOND_IMAGE,
    SPLITS,
    captions_of,
    column_of,
    image_column,
    table_records,
    tables_of,
)
from vlmo.processing.answers import soft_targets
from vlmo.released.download import cache_folder

CLASS_LIST = "classes.txt"
"""Names of the classes of masks, one a line, in the order of their numbers."""
_TRUTH = dict.fromkeys(("true", "1", "yes"), 1) | dict.fromkeys(("false", "0", "no"), 0)
_TASK_COLUMNS = (*CAPTION_COLUMNS, "question", "answer", "answers", "label")
_FACTS = (
    "question_id",
    "question_type",
    "answer_type",
    "image_id",
    "source",
    "licence",
    "license",
    "split",
)
_TEXT_COLUMNS = (*_TASK_COLUMNS, *_FACTS)
_STORED = Features({"image": Image(decode=False), "cells": Value("string")})

Rows = list[dict[str, Any]]


class Record(NamedTuple):
    """A line of a table, or a row of a shard or saved set.

    Attributes:
        where: The table and the line, for errors.
        folder: Folder that paths of images are relative to.
        held: The image, if it needs no path: `to_dataset` is given it.
    """

    number: int
    where: str
    folder: Path
    cells: dict[str, Any]
    held: ImageCell | None = None

    def text(self, *names: str) -> str:
        """Return the text of the first of these columns that is there; ValueError if there is none, or it is empty."""
        if (name := column_of(self.cells, names)) is None:
            raise ValueError(
                f"{self.where}: no column {' or '.join(names)}; found {', '.join(self.cells)}"
            )
        value = self.cells[name]
        text = "" if value is None or isinstance(value, list | dict) else str(value).strip()
        if not text:
            raise ValueError(f"{self.where}: {name} is {value!r:.60}; expected a text")
        return text

    def image(self, *names: str, root: Path) -> ImageCell:
        """Return the image of the first of these columns: a file in `root`, relative to the table; else ValueError."""
        if self.held is not None:
            return self.held
        image = self.text(*names).replace("\\", "/")
        if (
            "\0" in image
            or is_range(image)
            or not (file := (self.folder / image).resolve()).is_relative_to(root)
        ):
            raise ValueError(
                f"{self.where}: {image!r:.200} lies outside {root}; move the image or the table"
            )
        return image_at(file)


def open_own(path: Path) -> Dataset | None:
    """Return all rows of a table or of a saved set, whose columns tell the task; None of anything else.

    A saved set with the columns of `FEATURES` is something else. Images' paths are relative to their table's folder.
    `question` and `answer` make questions; `second_image`, a sentence and `label` sentences about two images; `label`
    without a caption classes; anything else captions, with one row an image, in the order of first mention. ValueError
    names the line where a column is missing, or a value cannot be used.
    """
    if is_saved(path):
        first = next(iter(saved_splits(path).values()), path)
        with naming_damage(first, advice=ADVICE):
            about = json.loads(read_about(first / "dataset_info.json"))
            if FEATURES.keys() <= (about["features"] or {}).keys():
                return None
        return _open_records([path], path)
    tables = tables_of(path)
    if not tables:
        return None
    several = path.is_dir() and tables[0].parent != path  # each in a folder of its split
    records = []
    for table in tables:
        own = {"split": SPLITS.get(table.parent.name.lower())} if several else {}
        for line, cells in table_records(table):
            records.append(Record(len(records), f"{table}:{line}", table.parent, own | cells))
    if names := dict.fromkeys(name for record in records for name in record.cells):
        _check_columns(names, image=column_of(names, IMAGE_COLUMNS), path=path)
    return _rows_of(records, path=path, root=path if several else tables[0].parent)


def own_labels(path: Path) -> list[str]:
    """Return the answers of a table of questions, or the classes of masks, by number; ValueError for data without."""
    listed = path / CLASS_LIST
    if listed.is_file():
        return [
            line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    rows = open_own(path)
    if rows is None:
        rows = open_shards(path, list(walk(path)) if path.is_dir() else [path])
    if rows is None or "answers" not in rows.column_names:
        raise ValueError(
            f"{path} has no answers or classes: expected a folder of vlmo data prepare, a table with the columns "
            f"question and answer, or images and masks with {CLASS_LIST}"
        )
    return sorted({answer for answers in column(rows, "answers") for answer in answers})


# ---------------------------------------------------------------------------------------------- from records to rows


def _check_columns(names: Collection[str], *, image: str | None, path: Path) -> None:
    if image is None or (
        {*names} - {image, *FEATURES, "split"} and not column_of(names, _TASK_COLUMNS)
    ):
        raise ValueError(
            f"{path}: its columns are {', '.join(names)}; expected images (image) and beside them captions (one of "
            f"{', '.join(CAPTION_COLUMNS)}), question and answer or answers, or label; rename them"
        )


def _rows_of(
    records: list[Record],
    *,
    path: Path,
    root: Path,
    images: Dataset | None = None,
    classes: list[str] | None = None,
) -> Dataset:
    """Return the rows of records, of which `images` holds columns of images, one of each record."""
    if not records:
        raise ValueError(f"{path} has no rows")
    names = set().union(*(record.cells for record in records))
    root = root.resolve()
    if "question" in names:
        rows = _questions(records, root)
        features = QUESTION_FEATURES
    elif SECOND_IMAGE in names:
        rows = _sentences(records, root)
        features = REASONING_FEATURES
    elif "label" in names and not column_of(names, CAPTION_COLUMNS):
        labels = [record.text("label") for record in records]
        classes = classes or sorted(set(labels))
        numbers = {name: number for number, name in enumerate(classes)}
        rows = [
            _row(each, root=root) | {"label": numbers[label]}
            for each, label in zip(records, labels, strict=True)
        ]
        features = class_features(classes)
    else:
        rows = _captioned(records, root)
        features = FEATURES
    return to_dataset(rows, features, path=path, images=images)


def _captioned(records: list[Record], root: Path) -> Rows:
    rows: dict[str, dict[str, Any]] = {}
    for record in records:
        given = column_of(record.cells, CAPTION_COLUMNS)
        row = _row(
            record,
            root=root,
            captions=captions_of(given and record.cells[given], where=record.where),
        )
        known = rows.setdefault(row["image_id"], row)
        if known is row:
            continue
        for key in ("split",) if record.held else ("image", "split"):
            if known.get(key) != row.get(key):
                values = f"{key} {row.get(key)!r}, an earlier line said {known.get(key)!r}"
                raise ValueError(f"{record.where}: {row['image_id']} has {values}")
        known["captions"] += row["captions"]
    return list(rows.values())


def _questions(records: list[Record], root: Path) -> Rows:
    given = [_answers(record) for record in records]
    numbers = {
        name: number
        for number, name in enumerate(sorted({answer for answers in given for answer in answers}))
    }
    rows = []
    for record, answers in zip(records, given, strict=True):
        labels, scores = soft_targets(answers, numbers=numbers)
        name = record.cells.get("question_id")
        row = _row(record, root=root) | {
            "question": record.text("question"),
            "question_id": str(record.number if name in (None, "") else name),
            "answers": answers,
            "answer_labels": labels,
            "answer_scores": [1.0] if len(answers) == 1 else scores,
        }
        rows.append(
            row
            | {name: str(record.cells.get(name) or "") for name in ("question_type", "answer_type")}
        )
    return rows


def _answers(record: Record) -> list[str]:
    value = record.cells.get(column_of(record.cells, ("answer", "answers")) or "")
    if isinstance(value, list):  # the hub's VQAv2 has them with each one's confidence
        value = [each.get("answer") if isinstance(each, dict) else each for each in value]
    given = captions_of(
        str(value) if isinstance(value, bool | int | float) else value, where=record.where
    )
    return [text for answer in given if (text := answer.strip())]


def _sentences(records: list[Record], root: Path) -> Rows:
    rows = []
    for record in records:
        sentence = record.text(*CAPTION_COLUMNS)
        label = record.text("label").lower()
        if label not in _TRUTH:
            raise ValueError(
                f"{record.where}: label is {label!r:.60}; expected one of {', '.join(_TRUTH)}"
            )
        row = _row(record, root=root, captions=[sentence])
        row |= {"second_image": record.image(SECOND_IMAGE, root=root), "label": _TRUTH[label]}
        rows.append(
            row | {"sentence_group": sentence, "image_id": f"{row['image_id']}#{record.number}"}
        )
    return rows


def _row(record: Record, *, root: Path, captions: Sequence[str] = ()) -> dict[str, Any]:
    image = record.image(*IMAGE_COLUMNS, root=root)
    name = "" if record.held else Path(cast(str, image["path"])).relative_to(root).as_posix()
    row = make_row(
        name,
        image=image,
        captions=captions,
        source=root.name,
        licence="unknown",
        number=record.number,
    )
    given = {key: record.cells.get(key) for key in ("image_id", "source", "licence", "split")}
    given["licence"] = given["licence"] or record.cells.get("license")
    return row | {key: str(value) for key, value in given.items() if value not in (None, "")}


def to_dataset(
    rows: Rows, features: Features, *, path: Path, images: Dataset | None = None
) -> Dataset:
    """Return rows as a data set; columns of `images` join them by `number`; ValueError if only some have a split."""
    without = [row["image_id"] for row in rows if not row.get("split")]
    if without and len(without) < len(rows):
        raise ValueError(
            f"{path}: {len(without)} images have no split, such as {without[0]}; give all one, or none"
        )
    features = features if without else Features({**features, "split": Value("string")})
    if images is None:
        return Dataset.from_list(
            [{name: row[name] for name in features} for row in rows], features=features
        )
    # Columns are joined before rows are chosen: afterwards every image would be copied.
    others = Features(
        {name: feature for name, feature in features.items() if name not in images.column_names}
    )
    lines: Rows = [{} for _ in range(len(images))]
    for row in rows:
        lines[row["number"]] = {name: row[name] for name in others}
    joined: Any = concatenate_datasets([images, Dataset.from_list(lines, features=others)], axis=1)
    return joined.select_columns(list(features)).select([row["number"] for row in rows])


# ---------------------------------------------------------------------------------------------- shards and saved sets


def open_shards(path: Path, files: Sequence[Path]) -> Dataset | None:
    """Return all rows of the shard that `path` is, or of those among the files of the folder; None without any.

    Of a folder, tars are read, or else parquet files: beside tars, img2dataset leaves tables. Beside images, which may
    be what shards were unpacked to, neither is. A folder, or the first word of a file's name, tells the split:
    `train/0.tar`, `test-00000-of-00001.parquet`. ValueError as `open_own`.
    """
    suffixes = [file.suffix.lower() for file in files]
    if not IMAGE_SUFFIXES.isdisjoint(suffixes):
        return None
    kind = next((kind for kind in SHARD_SUFFIXES if kind in suffixes), None)
    shards = [file for file, suffix in zip(files, suffixes, strict=True) if suffix == kind]
    return _open_records(shards, path) if shards else None


def _open_records(shards: Sequence[Path], path: Path) -> Dataset:
    """Return the rows of shards or a saved set; a copy of the images, or of where they are, is in the cache folder."""
    files = [
        file
        for shard in shards
        for file in (sorted(shard.rglob("*")) if shard.is_dir() else [shard])
    ]
    stamps = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    facts = {
        "shards": tuple(map(str, shards)),
        "path": str(path),
        "stamps": (version("vlmo"), *stamps),
    }
    features = None
    shard = shards[0]
    try:
        if shard.is_dir():
            features = open_saved(next(iter(saved_splits(shard).values()), shard)).features
        elif regular_file(shard) and shard.suffix.lower() == ".parquet":
            features = Features.from_arrow_schema(pq.read_schema(shard))
        if features is not None:
            _check_columns(features, image=image_column(features.arrow_schema), path=path)
        cache = str(cache_folder() / "shards")
        kept: Any = Dataset.from_generator(
            _stored_records, features=_STORED, cache_dir=cache, gen_kwargs=facts
        )
    except (DatasetsError, pa.ArrowException) as error:
        raise ValueError(str(error.__cause__ or f"{shard} cannot be read: {error}")) from error
    records = [
        Record(
            number,
            f"{path}, row {number}",
            path,
            json.loads(cells),
            held={"bytes": None, "path": None},
        )
        for number, cells in enumerate(column(kept, "cells"))
    ]
    label = (features or {}).get("label")
    classes = None
    if isinstance(label, ClassLabel):
        classes = label.names
        for cells in (record.cells for record in records):
            cells["label"] = (
                classes[cells["label"]] if cells.get("label") in range(len(classes)) else None
            )
    root = path if path.is_dir() else path.parent
    return _rows_of(
        records, path=path, root=root, images=kept.select_columns(["image"]), classes=classes
    )


def _stored_records(
    shards: tuple[str, ...], path: str, stamps: tuple[Any, ...]
) -> Iterator[dict[str, Any]]:
    """Yield image and other cells of all records; `stamps` only tell a copy of them from that of other files."""
    del stamps
    given = Path(path)
    keys = set[str]()
    root = given if given.is_dir() else given.parent
    for shard in map(Path, shards):
        name = shard.relative_to(given.parent).as_posix()
        folder = shard if shard.is_dir() else shard.parent
        words = (
            [*shard.relative_to(given).parts[:-1], *re.split(r"[-_.]", shard.name)[:1]]
            if shard != given
            else []
        )
        split = next((SPLITS[word.lower()] for word in words if word.lower() in SPLITS), None)
        in_order = (record for record, _ in read_shard(str(shard), images="ranges", details=True))
        for record in read_saved(shard) if shard.is_dir() else in_order:
            if isinstance(record, Bad) or (record.image is None and record.path is None):
                reason = record.reason if isinstance(record, Bad) else "it has no image"
                advice = f"Repair it, or train on streams, which list bad ones: --data.streams.patterns {path}"
                raise ValueError(f"{shard}, record {record.index}: {reason}. {advice}")
            # With the name of the folder: others have a 00000.tar too.
            key, stored = (
                f"{name}#{record.key if shard.suffix.lower() == '.tar' else record.index}",
                record.path,
            )
            key = f"{key}#{record.index}" if key in keys else key
            keys.add(key)
            if record.path is not None and not is_range(record.path):
                key = stored = str(file := (folder / record.path).resolve())
                key = file.relative_to(root).as_posix() if file.is_relative_to(root) else key
            facts = {name: value for name, value in record.metadata.items() if value is not None}
            facts = {
                "image_id": key,
                "split": split,
                "captions": list(record.captions) or None,
            } | facts
            cells = {name: facts[name] for name in _TEXT_COLUMNS if facts.get(name) is not None}
            yield {
                "image": {"bytes": record.image, "path": stored},
                "cells": json.dumps(cells, default=str),
            }
