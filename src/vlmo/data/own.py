"""People's own tables, shards and saved sets, with columns of their choice, as rows (docs/data.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, Value, concatenate_datasets
from datasets.exceptions import DatasetsError

from vlmo.data.decoding import ImageCell, image_at, is_range
from vlmo.data.listing import IMAGE_SUFFIXES, SHARD_SUFFIXES, regular_file, walk
from vlmo.data.rows import ADVICE, column, is_saved, naming_damage, open_saved, read_about, saved_splits
from vlmo.data.schema import FEATURES, QUESTION_FEATURES, REASONING_FEATURES, class_features, make_row
from vlmo.data.stream.records import IMAGE_COLUMNS as SHARD_IMAGES
from vlmo.data.stream.records import Bad, read_shard
from vlmo.data.tables import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    SECOND_COLUMNS,
    SPLITS,
    captions_of,
    column_of,
    table_records,
    tables_of,
)
from vlmo.processing.answers import MIN_ANNOTATORS, soft_targets
from vlmo.released.download import cache_folder

CLASS_LIST = "classes.txt"
"""Names of the classes of masks, one a line, in the order of their numbers."""
_TRUTH = dict.fromkeys(("true", "1", "yes"), 1) | dict.fromkeys(("false", "0", "no"), 0)
_TASK_COLUMNS = (*CAPTION_COLUMNS, "question", "answer", "answers", "label")
_FACTS = ("question_id", "question_type", "answer_type", "image_id", "source", "licence", "license", "split")
_TEXT_COLUMNS = (*_TASK_COLUMNS, *_FACTS)

Rows = list[dict[str, Any]]


class Record(NamedTuple):
    """A line of a table, or a row of a shard or saved set.

    Attributes:
        number: Number among all records.
        where: The table and the line, for errors.
        folder: Folder that paths of images are relative to.
        cells: By column.
        held: Images that need no path, by column: those of tars, and in `to_dataset` those of `images`.
    """

    number: int
    where: str
    folder: Path
    cells: dict[str, Any]
    held: dict[str, ImageCell] = {}

    def value(self, *names: str) -> Any:
        """Return the cell of the first of these columns that is there; ValueError without any."""
        found = column_of(self.cells, names)
        if found is None:
            raise ValueError(f"{self.where}: no column {' or '.join(names)}; found {', '.join(self.cells)}")
        return self.cells[found]

    def text(self, *names: str) -> str:
        """Return the text of the first of these columns that is there; ValueError if there is none, or it is empty."""
        value = self.value(*names)
        text = "" if value is None or isinstance(value, list | dict) else str(value).strip()
        if not text:
            raise ValueError(f"{self.where}: {column_of(self.cells, names)} is {value!r}; expected a text")
        return text

    def image(self, *names: str, root: Path) -> ImageCell:
        """Return the image of the first of these columns: a file in `root`, relative to the table; else ValueError."""
        if held := self.held.get(names[0]):
            return held
        image = self.value(*names)
        if not isinstance(image, str) or not image.strip() or "\0" in image or is_range(image):
            raise ValueError(f"{self.where}: no image is named; give its path relative to {self.folder}")
        file = (self.folder / image.strip().replace("\\", "/")).resolve()
        if not file.is_relative_to(root):
            raise ValueError(f"{self.where}: {image} lies outside {root}; move the image or the table")
        return image_at(file)


def open_own(path: Path) -> Dataset | None:
    """Return all rows of a table or of a saved set, whose columns tell the task; None of anything else.

    A saved set with the columns of `FEATURES` is something else. Images' paths are relative to their table's folder.
    `question` and `answer` make questions; `second_image`, a sentence and `label` sentences about two images; `label`
    without a caption classes; anything else captions, with one row an image, in the order of first mention. ValueError
    names the line where a column is missing, or a value cannot be used.
    """
    if is_saved(path):
        splits = saved_splits(path) or {None: path}
        first = next(iter(splits.values()))
        with naming_damage(first, advice=ADVICE):
            about = json.loads(read_about(first / "dataset_info.json"))
            if FEATURES.keys() <= (about["features"] or {}).keys():
                return None
        return _read_columns(path, [(split, open_saved(folder), path) for split, folder in splits.items()])
    tables = tables_of(path)
    if not tables:
        return None
    several = path.is_dir() and tables[0].parent != path  # each in a folder of its split
    records = []
    for table in tables:
        own = {"split": SPLITS.get(table.parent.name.lower())} if several else {}
        for line, cells in table_records(table):
            records.append(Record(len(records), f"{table}:{line}", table.parent, own | cells))
    return _rows_of(records, path=path, root=path if several else tables[0].parent)


def own_labels(path: Path) -> list[str]:
    """Return the answers of a table of questions, or the classes of masks, by number; ValueError for data without."""
    listed = path / CLASS_LIST
    if listed.is_file():
        return [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = open_own(path)
    if rows is None:
        rows = open_shards(path, list(walk(path)) if path.is_dir() else [path])
    if rows is None or "answers" not in rows.column_names:
        raise ValueError(
            f"{path} has no answers or classes: expected a folder of vlmo data prepare, a table with the columns "
            f"question and answer, or images and masks with {CLASS_LIST}"
        )
    return _sorted_answers(column(rows, "answers"))


# ---------------------------------------------------------------------------------------------- from records to rows


def _rows_of(
    records: list[Record], *, path: Path, root: Path, images: Dataset | None = None, classes: list[str] | None = None
) -> Dataset:
    """Return the rows of records, of which `images` holds columns of images, one of each record."""
    if not records:
        raise ValueError(f"{path} has no rows")
    names, root = records[0].cells.keys(), root.resolve()
    make = _captioned
    if "question" in names:
        make = _questions
    elif column_of(names, SECOND_COLUMNS) or SECOND_COLUMNS[0] in records[0].held:
        make = _sentences
    elif "label" in names and not column_of(names, CAPTION_COLUMNS):
        make = _labelled
    rows, features = make(records, root, classes)
    return to_dataset(rows, features, path=path, images=images)


def _captioned(records: list[Record], root: Path, _: list[str] | None) -> tuple[Rows, Features]:
    rows: dict[str, dict[str, Any]] = {}
    for record in records:
        has_captions = "image" not in record.held or column_of(record.cells, CAPTION_COLUMNS)
        captions = captions_of(record.value(*CAPTION_COLUMNS) if has_captions else None, where=record.where)
        row = _row(record, root=root, captions=captions)
        known = rows.setdefault(row["image_id"], row)
        if known is row:
            continue
        for key in ("split",) if record.held else ("image", "split"):
            if known.get(key) != row.get(key):
                raise ValueError(
                    f"{record.where}: {row['image_id']} has {key} {row.get(key)!r}, an earlier line said "
                    f"{known.get(key)!r}"
                )
        known["captions"] += row["captions"]
    return list(rows.values()), FEATURES


def _questions(records: list[Record], root: Path, _: list[str] | None) -> tuple[Rows, Features]:
    given = [_answers(record) for record in records]
    numbers = {name: number for number, name in enumerate(_sorted_answers(given))}
    rows = []
    for record, answers in zip(records, given, strict=True):
        labels, scores = soft_targets(answers, numbers=numbers)
        row = _row(record, root=root) | {
            "question": record.text("question"),
            "question_id": str(record.cells.get("question_id") or record.number),
            "answers": answers,
            "answer_labels": labels,
            "answer_scores": [1.0] if len(answers) == 1 else scores,
        }
        rows.append(row | {name: str(record.cells.get(name) or "") for name in ("question_type", "answer_type")})
    return rows, QUESTION_FEATURES


def _answers(record: Record) -> list[str]:
    """Return the answer, or those of several people; none is a question to be answered."""
    value = record.value("answer", "answers")
    if isinstance(value, list):  # the hub's VQAv2 has them with each one's confidence
        value = [each.get("answer") if isinstance(each, dict) else each for each in value]
    given = captions_of(str(value) if isinstance(value, bool | int | float) else value, where=record.where)
    answers = [text for answer in given if (text := answer.strip())]
    if 1 < len(answers) < MIN_ANNOTATORS:
        raise ValueError(
            f"{record.where}: {len(answers)} answers ({', '.join(answers)}); expected one, or those of ten people"
        )
    return answers


def _sorted_answers(given: Iterable[Sequence[str]]) -> list[str]:
    return sorted({answer for answers in given for answer in answers})


def _sentences(records: list[Record], root: Path, _: list[str] | None) -> tuple[Rows, Features]:
    rows = []
    for record in records:
        sentence, label = record.text(*CAPTION_COLUMNS), record.text("label").lower()
        if label not in _TRUTH:
            raise ValueError(f"{record.where}: label is {label!r}; expected one of {', '.join(_TRUTH)}")
        row = _row(record, root=root, captions=[sentence])
        second = record.image(*SECOND_COLUMNS, root=root)
        own = {"second_image": second, "label": _TRUTH[label], "sentence_group": sentence}
        rows.append(row | own | {"image_id": f"{row['image_id']}#{record.number}"})
    return rows, REASONING_FEATURES


def _labelled(records: list[Record], root: Path, names: list[str] | None) -> tuple[Rows, Features]:
    labels = [record.text("label") for record in records]
    names = names or sorted(set(labels))
    numbers = {name: number for number, name in enumerate(names)}
    rows = [_row(record, root=root) | {"label": numbers[label]} for record, label in zip(records, labels, strict=True)]
    return rows, class_features(names)


def _row(record: Record, *, root: Path, captions: Sequence[str] = ()) -> dict[str, Any]:
    image = record.image(*IMAGE_COLUMNS, root=root)
    name = "" if record.held else Path(cast(str, image["path"])).relative_to(root).as_posix()
    row = make_row(name, image=image, captions=captions, source=root.name, licence="unknown", number=record.number)
    row |= {key: str(record.cells[key]) for key in ("image_id", "source", "split") if record.cells.get(key)}
    licence = record.cells.get("licence") or record.cells.get("license")
    return row | ({"licence": str(licence)} if licence else {})


def to_dataset(rows: Rows, features: Features, *, path: Path, images: Dataset | None = None) -> Dataset:
    """Return rows as a data set; columns of `images` join them by `number`; ValueError if only some have a split."""
    without = [row["image_id"] for row in rows if not row.get("split")]
    if without and len(without) < len(rows):
        raise ValueError(
            f"{path}: {len(without)} images have no split, such as {without[0]}; name one for each or none"
        )
    if not without:
        features = Features({**features, "split": Value("string")})
    if images is None:
        return Dataset.from_list([{name: row[name] for name in features} for row in rows], features=features)
    # Columns are joined before rows are chosen: afterwards every image would be copied.
    others = Features({name: feature for name, feature in features.items() if name not in images.column_names})
    lines: Rows = [{} for _ in range(len(images))]
    for row in rows:
        lines[row["number"]] = {name: row[name] for name in others}
    joined: Any = concatenate_datasets([images, Dataset.from_list(lines, features=others)], axis=1)
    return joined.select_columns(list(features)).select([row["number"] for row in rows])


# ---------------------------------------------------------------------------------------- shards and saved sets


def open_shards(path: Path, files: Sequence[Path]) -> Dataset | None:
    """Return all rows of the shard that `path` is, or of those among the files of the folder; None without any.

    Images in tars stay there; parquet files are copied into the cache folder. A folder, or the first word of a file's
    name, tells the split: `train/0.tar`, `test-00000-of-00001.parquet`. ValueError for a record or file that cannot be
    read, or columns that are no images with captions, questions or classes.
    """
    shards = _shards_of(files)
    if not shards:
        return None
    if shards[0].suffix.lower() == ".tar":
        records = [record for tar in shards for record in _tar_records(tar, path)]
        records = [record._replace(number=number) for number, record in enumerate(records)]
        return _rows_of(records, path=path, root=path)
    groups: dict[tuple[str | None, Path], list[str]] = {}
    for file in shards:
        regular_file(file)
        groups.setdefault((_split_of(file, path), file.parent), []).append(str(file))
    cache = str(cache_folder() / "parquet")
    try:
        parts: Any = [
            (split, Dataset.from_parquet(cast(Any, names), cache_dir=cache), folder)
            for (split, folder), names in groups.items()
        ]
    except (DatasetsError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error.__cause__ or error}") from error
    return _read_columns(path, parts)


def _shards_of(files: Sequence[Path]) -> list[Path]:
    """Return the tars among the files of a folder, or else its parquet files: beside tars, img2dataset leaves tables.

    Beside images, which may be what shards were unpacked to, these are tables of images' paths and captions or the
    like; beside texts, those with a column of images.
    """
    suffixes = {file.suffix.lower() for file in files}
    tars, tables = ([file for file in files if file.suffix.lower() == suffix] for suffix in SHARD_SUFFIXES)
    if not suffixes.isdisjoint(IMAGE_SUFFIXES):
        return [file for file in tables if _columns(file)[1] and column_of(_columns(file)[0], _TASK_COLUMNS)]
    beside = {(file.parent, file.stem) for file in tars}
    others = [file for file in tables if (file.parent, file.stem) not in beside]
    if tars and others:
        raise ValueError(f"a folder holds tar and parquet files, such as {others[0]}; name a folder of one kind")
    return tars or [file for file in tables if ".txt" not in suffixes or any(_columns(file))]


def _columns(file: Path) -> tuple[list[str], bool]:
    """Return the columns of a parquet file with images, and True if these may be paths."""
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    structs = [each.name for each in schema if pa.types.is_struct(each.type) and "bytes" in each.type.names]
    name = column_of(schema.names, (*SHARD_IMAGES, *IMAGE_COLUMNS, *structs))
    return (schema.names if name else []), name is not None and not pa.types.is_binary(schema.field(name).type)


def _split_of(file: Path, path: Path) -> str | None:
    below = file.relative_to(path)  # of a file that is given itself ".", which has no name
    words = [*below.parts[:-1], *re.split(r"[-_.]", below.name)[:1]]
    return next((SPLITS[word.lower()] for word in words if word.lower() in SPLITS), None)


def _tar_records(tar: Path, path: Path) -> Iterable[Record]:
    name = tar.relative_to(path.parent).as_posix()  # with that of the folder: others have a 00000.tar too
    split = _split_of(tar, path)
    for record, _ in read_shard(str(tar), images="ranges", details=True):
        if isinstance(record, Bad):
            raise ValueError(
                f"{tar}, record {record.index}: {record.reason}. Repair it, or train on streams, which list such "
                f"records and go on: --data.streams.patterns {path}"
            )
        facts = {key: value for key, value in record.metadata.items() if key in _TEXT_COLUMNS}
        captions = {"captions": list(record.captions)} if record.captions else {}
        cells = {"image_id": f"{name}#{record.key}", "split": split, **captions, **facts}
        yield Record(0, f"{path}, {name}#{record.key}", path, cells, {"image": {"bytes": None, "path": record.path}})


def _read_columns(path: Path, parts: Sequence[tuple[str | None, Dataset, Path]]) -> Dataset:
    """Return the rows of sets with columns of others' choice, each with its split and the folder of its paths.

    A column of images holds paths, or images, which stay where they are.
    """
    records: list[Record] = []
    images: list[Dataset] = []
    classes = None
    root = path if path.is_dir() else path.parent
    for split, rows, folder in parts:
        names = rows.column_names
        found = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
        image = column_of(found, ("image", *found)) or column_of(names, (*SHARD_IMAGES, *IMAGE_COLUMNS))
        if image is None or ({*names} - {image, *FEATURES, "split"} and not column_of(names, _TASK_COLUMNS)):
            raise ValueError(
                f"{path}: its columns are {', '.join(names)}; expected images (image) and beside them captions (one of "
                f"{', '.join(CAPTION_COLUMNS)}), question and answer or answers, or label; rename_column of datasets "
                "gives them these names"
            )
        second = column_of(names, SECOND_COLUMNS)
        read: Any = rows.select_columns(
            [name for name in names if name not in (image, second) and name in _TEXT_COLUMNS]
        )
        lines = read.to_list() if read.column_names else [{} for _ in range(len(rows))]
        held: dict[str, Dataset] = {}
        for given, name in [(image, "image"), *([(second, SECOND_COLUMNS[0])] if second else [])]:
            cells, paths = _paths_of(rows, given, path=path, may_lie_elsewhere=given in found and is_saved(path))
            if paths is None:
                held[name] = cells.rename_column(given, name) if given != name else cells
            else:
                for line, each in zip(lines, paths, strict=True):
                    line[name] = each
        if isinstance(label := rows.features.get("label"), ClassLabel):
            classes = label.names
        for line in lines:
            number = len(records)
            if classes is not None:
                line["label"] = classes[line["label"]] if line["label"] in range(len(classes)) else None
            line = ({"image_id": f"{path.name}#{number}"} if held else {}) | line | ({"split": split} if split else {})
            cells_held: dict[str, ImageCell] = {name: {"bytes": None, "path": str(number)} for name in held}
            records.append(Record(number, f"{path}, row {number}", folder, line, cells_held))
        if held:
            images.append(concatenate_datasets(list(held.values()), axis=1))
    joined = cast(Dataset, concatenate_datasets(images)) if images else None
    if joined is not None and len(joined) < len(records):
        raise ValueError(f"{path}: some of its files hold images and others their paths; give all in one way")
    return _rows_of(records, path=path, root=root, images=joined, classes=classes)


def _paths_of(rows: Dataset, name: str, *, path: Path, may_lie_elsewhere: bool) -> tuple[Any, list[str | None] | None]:
    """Return a column of images as such, and its paths if it holds nothing else; ValueError if it holds neither."""
    cells: Any = rows.select_columns([name])
    if rows.features[name] in (Value("string"), Value("large_string")):
        return cells, column(rows, name)
    try:
        cells = cells.cast_column(name, Image(decode=False))
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"{path}: its column {name} holds neither images nor paths ({error})") from error
    data, paths = cells.data.column(name).flatten()
    apart = len(paths.filter(data.is_null()).drop_null())
    if apart == 0 or may_lie_elsewhere:
        return cells, None
    if data.null_count < len(data):
        raise ValueError(f"{path}: its column {name} holds {apart} paths among images; give all as paths, or as images")
    return cells, paths.to_pylist()
