"""People's own tables, shards and saved sets, with columns of their choice, as rows (docs/data.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, List, Value, concatenate_datasets
from datasets.exceptions import DatasetsError

from vlmo.data.decoding import image_at, is_range
from vlmo.data.listing import IMAGE_SUFFIXES, SHARD_SUFFIXES, regular_file, walk
from vlmo.data.rows import (
    ADVICE,
    Bad,
    arrow_table,
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
_TRUTH = {"true": 1, "1": 1, "yes": 1, "false": 0, "0": 0, "no": 0}
_ANSWER_COLUMNS = ("answer", "answers")
_TASK_COLUMNS = (*CAPTION_COLUMNS, *_ANSWER_COLUMNS, "question", "label")
_TEXTS = (
    "label",
    "question",
    "question_id",
    "question_type",
    "answer_type",
    "image_id",
    "source",
    "licence",
    "license",
    "split",
)
_LIST = List(Value("string"))
_STORED = Features(
    {"image": Image(decode=False), "captions": _LIST, "answers": _LIST}
    | dict.fromkeys(_TEXTS, Value("string"))
)
"""Columns of shards and saved sets as they lie in the cache folder."""

Row = dict[str, Any]
"""A line of a table or a stored record. `where` names it in errors; `number` counts from 0."""


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
            # Rows as they are in this package need no reading.
            if FEATURES.keys() <= (about["features"] or {}).keys():
                return None
        return _open_records([path], path)
    tables = tables_of(path)
    if not tables:
        return None
    # Tables in folders named train, test and so on are the splits of one set.
    by_split = path.is_dir() and tables[0].parent != path
    root = (path if by_split else tables[0].parent).resolve()
    rows: list[Row] = []
    # Of all tables, each with a value of one of its rows.
    columns: Row = {}
    for table in tables:
        split = SPLITS.get(table.parent.name.lower()) if by_split else None
        for line, cells in table_records(table):
            columns |= cells
            where = f"{table}:{line}"
            rows.append({"split": split, **cells, "where": where, "folder": table.parent})
    if columns:
        _check_columns(columns, image=column_of(columns, IMAGE_COLUMNS), path=path)
    for row in rows:
        image = _image_file(row, *IMAGE_COLUMNS, root=root)
        row["image"] = image_at(image)
        row["image_id"] = _value(row, "image_id", image.relative_to(root).as_posix())
        if SECOND_IMAGE in columns:
            row[SECOND_IMAGE] = image_at(_image_file(row, SECOND_IMAGE, root=root))
    return _open_rows(rows, path=path, source=root.name)


def own_labels(path: Path) -> list[str]:
    """Return the answers of a table of questions, or the classes of masks, by number; ValueError for data without."""
    # Masks hold numbers alone: their names stand in a file beside them.
    class_list = path / CLASS_LIST
    if class_list.is_file():
        names = map(str.strip, class_list.read_text(encoding="utf-8").splitlines())
        return list(filter(None, names))
    rows = open_own(path)
    if rows is None:
        rows = open_shards(path, list(walk(path)) if path.is_dir() else [path])
    if rows is None or "answers" not in rows.column_names:
        raise ValueError(
            f"{path} has no answers or classes: expected a folder of vlmo data prepare, a table with the columns "
            f"question and answer, or images and masks with {CLASS_LIST}"
        )
    return sorted(set().union(*column(rows, "answers")))


def _check_columns(names: Collection[str], *, image: str | None, path: Path) -> None:
    others = {*names} - {image, *FEATURES, "split"}
    if image is None or (others and not column_of(names, _TASK_COLUMNS)):
        raise ValueError(
            f"{path}: its columns are {', '.join(names)}; expected images (image) and beside them captions (one of "
            f"{', '.join(CAPTION_COLUMNS)}), question and answer or answers, or label; rename them"
        )


# ------------------------------------------------------------------------------------------------ cells of one record


def _text(row: Row, *names: str) -> str:
    """Return the text of the first of these columns; ValueError where it is missing or empty."""
    name = column_of(row, names) or names[0]
    text = _plain(row.get(name))
    if not text:
        raise ValueError(f"{row['where']}: {name} is {row.get(name)!r:.60}; expected a text")
    return text


def _plain(value: object) -> str:
    return "" if value is None or isinstance(value, list | dict) else str(value).strip()


def _value(row: Row, name: str, default: str) -> str:
    value = row.get(name)
    return default if value in (None, "") else str(value)


def _image_file(row: Row, *names: str, root: Path) -> Path:
    """Return the image file that the first of these columns names; ValueError unless it lies in `root`."""
    image = _text(row, *names).replace("\\", "/")
    # A null character is an error of the file system, so it must not get there.
    if "\0" not in image and not is_range(image):
        # Links are followed first, so that none leads out of the folder.
        file = (row["folder"] / image).resolve()
        if file.is_relative_to(root):
            return file
    raise ValueError(
        f"{row['where']}: {image!r:.200} lies outside {root}; move the image or the table"
    )


def _captions(cells: Mapping[str, Any], *, where: str) -> list[str]:
    return captions_of(cells.get(column_of(cells, CAPTION_COLUMNS) or ""), where=where)


def _answers(cells: Mapping[str, Any], *, where: str) -> list[str]:
    value = cells.get(column_of(cells, _ANSWER_COLUMNS) or "")
    # The hub's VQAv2 has dictionaries, with the confidence beside it.
    if isinstance(value, list):
        value = [answer.get("answer") if isinstance(answer, dict) else answer for answer in value]
    elif isinstance(value, bool | int | float):
        value = str(value)
    return list(filter(None, map(str.strip, captions_of(value, where=where))))


# -------------------------------------------------------------------------------------------------- rows of tasks


def _open_rows(
    rows: list[Row],
    *,
    path: Path,
    source: str,
    images: Dataset | None = None,
    classes: Sequence[str] = (),
) -> Dataset:
    """Return the data set of rows; `images` holds their images if they do not, and `classes` the labels' order."""
    if not rows:
        raise ValueError(f"{path} has no rows")
    columns = set().union(*rows)
    for number, row in enumerate(rows):
        row["number"] = number
        row["source"] = _value(row, "source", source)
        row["licence"] = _value(row, "licence", _value(row, "license", "unknown"))
        row["split"] = _value(row, "split", "")
    if "question" in columns:
        _make_questions(rows)
        features = QUESTION_FEATURES
    elif SECOND_IMAGE in columns:
        _make_sentences(rows)
        features = REASONING_FEATURES
    elif "label" in columns and not column_of(columns, CAPTION_COLUMNS):
        labels = [_text(row, "label") for row in rows]
        classes = classes or sorted(set(labels))
        # In the order of names, unless a list of classes gives theirs.
        numbers = {name: number for number, name in enumerate(classes)}
        for row, label in zip(rows, labels, strict=True):
            row["captions"] = []
            row["label"] = numbers[label]
        features = class_features(classes)
    else:
        rows = _merge_captions(rows)
        features = FEATURES
    return to_dataset(rows, features, path=path, images=images)


def _merge_captions(rows: list[Row]) -> list[Row]:
    """Return the first rows of images, with the captions of all rows; ValueError if they disagree about the image."""
    first: dict[str, Row] = {}
    for row in rows:
        captions = _captions(row, where=row["where"])
        before = first.setdefault(row["image_id"], row)
        if before is row:
            row["captions"] = list(captions)
            continue
        for key in ("image", "split"):
            if before.get(key) != row.get(key):
                raise ValueError(
                    f"{row['where']}: {row['image_id']} has {key} {row.get(key)!r}, "
                    f"an earlier line said {before.get(key)!r}"
                )
        before["captions"] += captions
    return list(first.values())


def _make_questions(rows: list[Row]) -> None:
    for row in rows:
        row["answers"] = _answers(row, where=row["where"])
    names = set().union(*(row["answers"] for row in rows))
    numbers = {name: number for number, name in enumerate(sorted(names))}
    for row in rows:
        row["captions"] = []
        row["question"] = _text(row, "question")
        row["question_id"] = _value(row, "question_id", str(row["number"]))
        row["question_type"] = _value(row, "question_type", "")
        row["answer_type"] = _value(row, "answer_type", "")
        row["answer_labels"], scores = soft_targets(row["answers"], numbers=numbers)
        # A single answer is certain; VQA's score counts how many of ten people gave it.
        row["answer_scores"] = [1.0] if len(row["answers"]) == 1 else scores


def _make_sentences(rows: list[Row]) -> None:
    for row in rows:
        sentence = _text(row, *CAPTION_COLUMNS)
        label = _text(row, "label").lower()
        if label not in _TRUTH:
            raise ValueError(
                f"{row['where']}: label is {label!r:.60}; expected one of {', '.join(_TRUTH)}"
            )
        row["label"] = _TRUTH[label]
        row["captions"] = [sentence]
        # NLVR2's consistency: all rows of a sentence must be right.
        row["sentence_group"] = sentence
        row["image_id"] = f"{row['image_id']}#{row['number']}"


def to_dataset(
    rows: list[Row], features: Features, *, path: Path, images: Dataset | None = None
) -> Dataset:
    """Return rows as a data set; columns of `images` join them by `number`; ValueError if only some have a split."""
    without = [row["image_id"] for row in rows if not row.get("split")]
    if without and len(without) < len(rows):
        raise ValueError(
            f"{path}: {len(without)} images have no split, such as {without[0]}; give all one, or none"
        )
    if not without:
        features = Features({**features, "split": Value("string")})
    if images is None:
        rows = [{name: row[name] for name in features} for row in rows]
        return Dataset.from_list(rows, features=features)
    # Columns are joined before rows are chosen: afterwards every image would be copied.
    others = Features({name: features[name] for name in features if name != "image"})
    columns: list[Row] = [{} for _ in range(len(images))]
    for row in rows:
        columns[row["number"]] = {name: row[name] for name in others}
    joined: Any = concatenate_datasets(
        [images, Dataset.from_list(columns, features=others)], axis=1
    )
    return joined.select_columns(list(features)).select([row["number"] for row in rows])


# ---------------------------------------------------------------------------------------------- shards and saved sets


def open_shards(path: Path, files: Sequence[Path]) -> Dataset | None:
    """Return all rows of the shard that `path` is, or of those among the files of the folder; None without any.

    Of a folder, tars are read, or else parquet files: beside tars, img2dataset leaves tables. Beside images, which may
    be what shards were unpacked to, neither is. A folder, or the first word of a file's name, tells the split:
    `train/0.tar`, `test-00000-of-00001.parquet`. ValueError as `open_own`.
    """
    files_by_suffix: dict[str, list[Path]] = {}
    for file in files:
        files_by_suffix.setdefault(file.suffix.lower(), []).append(file)
    suffix = column_of(files_by_suffix, SHARD_SUFFIXES)
    if suffix is None or not IMAGE_SUFFIXES.isdisjoint(files_by_suffix):
        return None
    return _open_records(files_by_suffix[suffix], path)


def _open_records(shards: Sequence[Path], path: Path) -> Dataset:
    """Return the rows of shards or a saved set; a copy of the images, or of where they are, is in the cache folder."""
    files = list(shards)
    if is_saved(path):
        files = sorted(path.rglob("*"))
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    features = Features()
    shard = shards[0]
    try:
        if shard.is_dir():
            features = open_saved(next(iter(saved_splits(shard).values()), shard)).features
        elif regular_file(shard) and shard.suffix.lower() == ".parquet":
            features = Features.from_arrow_schema(pq.read_schema(shard))
        if features:
            _check_columns(features, image=image_column(features.arrow_schema), path=path)
        label = features.get("label")
        classes = tuple(label.names) if isinstance(label, ClassLabel) else ()
        stored: Any = Dataset.from_generator(
            _stored_rows,
            features=_STORED,
            cache_dir=str(cache_folder() / "shards"),
            gen_kwargs={
                "shards": tuple(map(str, shards)),
                "path": str(path),
                "classes": classes,
                "stamps": (version("vlmo"), *stamps),
            },
        )
    except (DatasetsError, pa.ArrowException) as error:
        raise ValueError(str(error.__cause__ or f"{shard} cannot be read: {error}")) from error
    rows = []
    texts = arrow_table(stored, [name for name in _STORED if name != "image"])
    for number, cells in enumerate(texts.to_pylist()):
        row: Row = {name: value for name, value in cells.items() if value is not None}
        rows.append(row | {"where": f"{path}, row {number}"})
    root = path if path.is_dir() else path.parent
    images = stored.select_columns(["image"])
    return _open_rows(rows, path=path, source=root.resolve().name, images=images, classes=classes)


def _stored_rows(
    shards: tuple[str, ...], path: str, classes: tuple[str, ...], stamps: tuple[object, ...]
) -> Iterator[Row]:
    """Yield the columns `_STORED` of all records; `stamps` only tell a copy of them from that of other files."""
    del stamps
    source = Path(path)
    root = source if source.is_dir() else source.parent
    class_names = dict(enumerate(classes))
    keys = set[str]()
    for shard in map(Path, shards):
        folder = shard if shard.is_dir() else shard.parent
        split = _split_of(shard, source)
        records = (record for record, _ in read_shard(str(shard), images="ranges", details=True))
        for record in read_saved(shard) if shard.is_dir() else records:
            where = f"{shard}, record {record.index}"
            if isinstance(record, Bad) or (record.image is None and record.path is None):
                reason = record.reason if isinstance(record, Bad) else "it has no image"
                advice = f"Repair it, or train on streams, which list bad ones: --data.streams.patterns {path}"
                raise ValueError(f"{where}: {reason}. {advice}")
            # With the name of the folder: others have a 00000.tar too.
            key = record.key if shard.suffix.lower() == ".tar" else record.index
            image_id = f"{shard.relative_to(source.parent).as_posix()}#{key}"
            if image_id in keys:
                image_id = f"{image_id}#{record.index}"
            keys.add(image_id)
            stored_path = record.path
            if stored_path is not None and not is_range(stored_path):
                file = (folder / stored_path).resolve()
                image_id = stored_path = str(file)
                if file.is_relative_to(root):
                    image_id = file.relative_to(root).as_posix()
            facts = {name: value for name, value in record.metadata.items() if value is not None}
            row: Row = dict.fromkeys(_STORED) | {"image_id": image_id, "split": split}
            row["image"] = {"bytes": record.image, "path": stored_path}
            row["captions"] = list(record.captions) or _captions(facts, where=where) or None
            if "question" in facts:
                row["answers"] = _answers(facts, where=where)
            if class_names and "label" in facts:
                facts["label"] = class_names.get(facts["label"])  # -1 where it is not known
            yield row | {name: _plain(facts[name]) for name in _TEXTS if name in facts}


def _split_of(shard: Path, source: Path) -> str | None:
    """Return the split that a folder below the source, or the first word of the shard's name, tells."""
    if shard == source:
        return None
    first_word = re.split(r"[-_.]", shard.name)[0]
    words = (*shard.relative_to(source).parts[:-1], first_word)
    return next((SPLITS[word.lower()] for word in words if word.lower() in SPLITS), None)
