"""People's own files as rows: tables beside images, folders of images by class, images with masks (docs/data.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from datasets import Dataset, Features, Value, concatenate_datasets

from vlmo.data.decoding import ImageCell
from vlmo.data.listing import IMAGE_SUFFIXES, walk
from vlmo.data.rows import column
from vlmo.data.saved import is_saved
from vlmo.data.schema import (
    FEATURES,
    QUESTION_FEATURES,
    REASONING_FEATURES,
    SEGMENT_FEATURES,
    class_features,
    make_row,
)
from vlmo.data.stored import Stored, read_shards, read_splits, shards_of
from vlmo.data.tables import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    SECOND_COLUMNS,
    SPLITS,
    TABLE_SUFFIXES,
    captions_of,
    column_of,
    find_table,
    table_records,
)
from vlmo.processing.answers import MIN_ANNOTATORS, soft_targets

CLASS_LIST = "classes.txt"
"""Names of the classes of masks, one a line, in the order of their numbers."""
_TRUTH = dict.fromkeys(("true", "1", "yes"), 1) | dict.fromkeys(("false", "0", "no"), 0)
_MASKS = ("masks", "annotations")

Rows = list[dict[str, Any]]


class Record(NamedTuple):
    """A line of a table.

    Attributes:
        where: The table and the line, for errors.
        folder: Folder of the table.
        cells: By column.
        stored: Cells of images are those of `Stored`; else they are paths.
    """

    where: str
    folder: Path
    cells: dict[str, Any]
    stored: bool = False

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
        image = self.value(*names)
        if self.stored and isinstance(image, dict):
            return cast(ImageCell, image)
        if not isinstance(image, str) or not image.strip() or "\0" in image:
            raise ValueError(f"{self.where}: no image is named; give its path relative to {self.folder}")
        file = (self.folder / image.strip().replace("\\", "/")).resolve()
        if not file.is_relative_to(root):
            raise ValueError(f"{self.where}: {image} lies outside {root}; move the image or the table")
        return _cell(file)


def tables_of(path: Path) -> list[Path]:
    """Return the table that `path` is or holds, or those of its folders of splits; ValueError if one has none."""
    if not path.is_dir():
        return [path] if path.suffix.lower() in TABLE_SUFFIXES else []
    if table := find_table(path):
        return [table]
    parts = [each for each in sorted(path.iterdir()) if each.name.lower() in SPLITS and each.is_dir()]
    tables = {part: find_table(part) for part in parts}
    found = [table for table in tables.values() if table]
    if found and len(found) < len(parts):
        without = next(part for part, table in tables.items() if table is None)
        raise ValueError(f"{without} has no table such as {found[0]} beside its images; add one, or move the folder")
    return found


def _read_tables(path: Path, tables: Sequence[Path]) -> Dataset:
    """Return the rows of `tables_of(path)`; each table in a folder of its own has that split."""
    several = path.is_dir() and tables[0].parent != path
    root = (path if several else tables[0].parent).resolve()
    records = []
    for table in tables:
        own = {"split": SPLITS.get(table.parent.name.lower())} if several else {}
        records += [Record(f"{table}:{line}", table.parent, own | cells) for line, cells in table_records(table)]
    if not records:
        raise ValueError(f"{tables[0]}: the table has no rows")
    return _rows_of(records, path=path, root=root)


def _read_stored(path: Path, stored: Stored) -> Dataset:
    folder = (path if path.is_dir() else path.parent).resolve()
    records = [Record(f"{path}, row {n}", folder, cells, stored=True) for n, cells in enumerate(stored.cells)]
    if not records:
        raise ValueError(f"{path} holds no record")
    return _rows_of(records, path=path, root=folder, stored=stored)


def _rows_of(records: list[Record], *, path: Path, root: Path, stored: Stored | None = None) -> Dataset:
    names = records[0].cells.keys()
    if "question" in names:
        rows, features = _questions(records, root)
    elif column_of(names, SECOND_COLUMNS):
        rows, features = _sentences(records, root)
    elif "label" in names and not column_of(names, CAPTION_COLUMNS):
        rows, features = _labelled(records, root, names=stored.classes if stored else None)
    else:
        rows, features = _captioned(records, root)
    return _dataset(rows, features, path=path, images=stored.images if stored else None)


def read_images(path: Path, images: Sequence[Path]) -> Dataset:
    """Return the image files of a folder: with masks, with classes (folders in it, or in those of splits), or alone.

    ValueError if an image has no mask, or the masks' classes have no names.
    """
    if masks := _masks_of(path):
        return _masked(path, masks)
    split, places = _split_of([file.relative_to(path).parts for file in images])
    names = sorted({place[0] for place in places if len(place) > 1})
    if len(names) < 2 or any(len(place) == 1 for place in places):
        return Dataset.from_list([image_row(file, root=path) for file in images], features=FEATURES)
    rows = [
        image_row(file, root=path) | {"label": names.index(place[0]), "split": part}
        for file, place, part in zip(images, places, split, strict=True)
    ]
    return _dataset(rows, class_features(names), path=path)


def open_own(path: Path) -> Dataset | None:
    """Return all rows of a table or of a saved set, whose columns tell the task; None of anything else.

    A saved set with the columns of `FEATURES` is something else. Images' paths are relative to their table's folder.
    `question` and `answer` make questions; `second_image`, a sentence and `label` sentences about two images; `label`
    without a caption classes; anything else captions, with one row an image, in the order of first mention.

    Raises:
        ValueError: A column is missing, or a value cannot be used; the message names the line.
    """
    if is_saved(path):
        stored = read_splits(path)
        return None if stored is None else _read_stored(path, stored)
    tables = tables_of(path)
    return _read_tables(path, tables) if tables else None


def open_shards(path: Path, files: Sequence[Path]) -> Dataset | None:
    """Return all rows of the shard that `path` is, or of those among the files of the folder; None without any."""
    shards = shards_of(files)
    return _read_stored(path, read_shards(path, shards)) if shards else None


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


def image_row(file: Path, *, root: Path, captions: Sequence[str] = ()) -> dict[str, Any]:
    """Return the row of an image file below `root`, under its path there."""
    name = file.relative_to(root).as_posix()
    return make_row(name, image=_cell(file), captions=captions, source=root.name, licence="unknown")


# ---------------------------------------------------------------------------------------------- tables


def _captioned(records: list[Record], root: Path) -> tuple[Rows, Features]:
    rows: dict[str, dict[str, Any]] = {}
    for record in records:
        has_captions = not record.stored or column_of(record.cells, CAPTION_COLUMNS)
        captions = captions_of(record.value(*CAPTION_COLUMNS) if has_captions else None, where=record.where)
        row = _row(record, root=root, captions=captions)
        known = rows.setdefault(row["image_id"], row)
        if known is row:
            continue
        for key in ("split",) if record.stored else ("image", "split"):
            if known.get(key) != row.get(key):
                raise ValueError(
                    f"{record.where}: {row['image_id']} has {key} {row.get(key)!r}, an earlier line said "
                    f"{known.get(key)!r}"
                )
        known["captions"] += row["captions"]
    return list(rows.values()), FEATURES


def _questions(records: list[Record], root: Path) -> tuple[Rows, Features]:
    given = [_answers(record) for record in records]
    numbers = {name: number for number, name in enumerate(_sorted_answers(given))}
    rows = []
    for number, (record, answers) in enumerate(zip(records, given, strict=True)):
        labels, scores = soft_targets(answers, numbers=numbers)
        row = _row(record, root=root) | {
            "question": record.text("question"),
            "question_id": str(record.cells.get("question_id") or number),
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


def _sentences(records: list[Record], root: Path) -> tuple[Rows, Features]:
    rows = []
    for number, record in enumerate(records):
        sentence, label = record.text(*CAPTION_COLUMNS), record.text("label").lower()
        if label not in _TRUTH:
            raise ValueError(f"{record.where}: label is {label!r}; expected one of {', '.join(_TRUTH)}")
        row = _row(record, root=root, captions=[sentence])
        second = record.image(*SECOND_COLUMNS, root=root)
        own = {"second_image": second, "label": _TRUTH[label], "sentence_group": sentence}
        rows.append(row | own | {"image_id": f"{row['image_id']}#{number}"})
    return rows, REASONING_FEATURES


def _labelled(records: list[Record], root: Path, *, names: list[str] | None) -> tuple[Rows, Features]:
    labels = [record.text("label") for record in records]
    names = names or sorted(set(labels))
    rows = [
        _row(record, root=root) | {"label": names.index(label)} for record, label in zip(records, labels, strict=True)
    ]
    return rows, class_features(names)


def _row(record: Record, *, root: Path, captions: Sequence[str] = ()) -> dict[str, Any]:
    image = record.image(*IMAGE_COLUMNS, root=root)
    name = "" if record.stored else Path(cast(str, image["path"])).relative_to(root).as_posix()
    row = make_row(name, image=image, captions=captions, source=root.name, licence="unknown")
    row |= {key: str(record.cells[key]) for key in ("image_id", "source", "split") if record.cells.get(key)}
    licence = record.cells.get("licence") or record.cells.get("license")
    return row | ({"licence": str(licence)} if licence else {})


def _cell(file: Path) -> ImageCell:
    return {"bytes": None, "path": str(file)}


# ---------------------------------------------------------------------------------------------- folders


def _split_of(places: list[tuple[str, ...]]) -> tuple[list[str | None], list[tuple[str, ...]]]:
    """Return the split of each path and the path in it, if the outermost folders are those of splits."""
    if all(len(place) > 1 and place[0].lower() in SPLITS for place in places):
        return [SPLITS[place[0].lower()] for place in places], [place[1:] for place in places]
    return [None for _ in places], places


def _masks_of(path: Path) -> dict[str, Path]:
    """Return the masks by their paths without the suffix; empty for a folder without images and masks side by side."""
    folder = next((path / name for name in _MASKS if (path / name).is_dir()), None)
    if folder is None or not (path / "images").is_dir():
        return {}
    files = [file for file in walk(folder) if file.suffix.lower() in IMAGE_SUFFIXES]
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def _masked(path: Path, masks: dict[str, Path]) -> Dataset:
    folder = path / "images"
    images = [file for file in walk(folder) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not (path / CLASS_LIST).is_file():
        raise ValueError(f"{path} has images and masks, but no {CLASS_LIST} with a name a line: class 0, class 1, ...")
    places = [file.relative_to(folder) for file in images]
    if missing := [place for place in places if place.with_suffix("").as_posix() not in masks]:
        raise ValueError(f"{len(missing)} images of {folder} have no mask of the same name, such as {missing[0]}")
    split, _ = _split_of([place.parts for place in places])
    rows = [
        image_row(file, root=path) | {"mask": _cell(masks[place.with_suffix("").as_posix()]), "split": part}
        for file, place, part in zip(images, places, split, strict=True)
    ]
    return _dataset(rows, SEGMENT_FEATURES, path=path)


def _dataset(rows: Rows, features: Features, *, path: Path, images: Dataset | None = None) -> Dataset:
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
    kept = [int(cast(str, row["image"]["path"])) for row in rows]
    others = Features({name: feature for name, feature in features.items() if name not in images.column_names})
    lines: Rows = [{} for _ in range(len(images))]
    for number, row in zip(kept, rows, strict=True):
        lines[number] = {name: row[name] for name in others}
    joined: Any = concatenate_datasets([images, Dataset.from_list(lines, features=others)], axis=1)
    return joined.select_columns(list(features)).select(kept)
