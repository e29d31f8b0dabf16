"""People's own data: a folder of pictures, a table of captions, plain text, or a saved data set."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, Features, Value

from vlmo.data.schema import FEATURES, check_columns, column, hash_share, select_rows, text_row

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
)
TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".jsonl"))
TABLE_NAMES = tuple(f"captions{suffix}" for suffix in (".csv", ".tsv", ".jsonl"))

IMAGE_COLUMNS = ("image", "file_name")
CAPTION_COLUMNS = ("caption", "captions")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def open_path(path: Path, *, split: str, test_share: float, max_words: int) -> Dataset:
    """Rows of `split` of what lies at `path`; see `vlmo.data.sources.open_source`.

    Raises:
        ValueError: Nothing there that is understood; the message says what was expected.
    """
    if (path / "dataset_dict.json").is_file():
        return _one_of(path, split=split)
    if (path / "state.json").is_file():
        dataset = _saved(path)
    else:
        try:
            dataset = _read(path, max_words=max_words)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: a text or table in it is not UTF-8 ({error}); save it as UTF-8") from error
        except csv.Error as error:
            raise ValueError(f"{path}: not a table: {error}") from error
    return _choose(dataset, split=split, test_share=test_share, path=path)


def _read(path: Path, *, max_words: int) -> Dataset:
    if path.is_dir():
        return _read_folder(path, max_words=max_words)
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return _read_table(path)
    if suffix == ".txt":
        return _read_text([path], root=path.parent, max_words=max_words)
    raise ValueError(f"{path}: expected a .csv, .tsv, .jsonl or .txt file, or a folder")


def _read_folder(path: Path, *, max_words: int) -> Dataset:
    tables = [path / name for name in TABLE_NAMES if (path / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f"{path}: {' and '.join(table.name for table in tables)}; keep one, or name the file itself")
    if tables:
        return _read_table(tables[0])
    files = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path)))
    pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    if pictures:
        rows = [_picture_row(file, root=path, captions=[]) for file in pictures]
        return Dataset.from_list(rows, features=FEATURES)
    texts = [file for file in files if file.suffix.lower() == ".txt"]
    if texts:
        return _read_text(texts, root=path, max_words=max_words)
    raise ValueError(
        f"{path}: {len(files)} files, but none of {', '.join(TABLE_NAMES)}, no picture, no .txt and no saved data set; "
        f"pictures end with {', '.join(sorted(PICTURE_SUFFIXES))}"
    )


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _picture_row(file: Path, *, root: Path, captions: list[str]) -> dict[str, Any]:
    return {
        "image": {"bytes": None, "path": str(file)},
        "captions": captions,
        "image_id": file.relative_to(root).as_posix(),
        "source": root.name,
        "licence": "unknown",
    }


def _read_table(path: Path) -> Dataset:
    """One row a picture, in the order of first mention; pictures' paths are relative to the table's folder."""
    root = path.parent.resolve()
    rows: dict[str, dict[str, Any]] = {}
    for number, record in table_records(path):
        image = _cell(record, IMAGE_COLUMNS, where=f"{path}:{number}")
        captions = captions_of(_cell(record, CAPTION_COLUMNS, where=f"{path}:{number}"), where=f"{path}:{number}")
        if not isinstance(image, str) or not image.strip():
            raise ValueError(f"{path}:{number}: no picture is named; give its path relative to {root}")
        file = (root / image.strip()).resolve()
        if not file.is_relative_to(root):
            raise ValueError(f"{path}:{number}: {image} lies outside {root}; move the picture or the table")
        row = _picture_row(file, root=root, captions=captions)
        row |= {key: str(record[key]) for key in ("image_id", "source", "licence", "split") if record.get(key)}
        known = rows.setdefault(row["image_id"], row)
        if known is not row:
            _merge(known, row, where=f"{path}:{number}")
    if not rows:
        raise ValueError(f"{path}: the table has no rows")
    has_split = any("split" in row for row in rows.values())
    without = [key for key, row in rows.items() if "split" not in row] if has_split else []
    if without:
        raise ValueError(
            f"{path}: {len(without)} pictures have no split, such as {without[0]}; name one for each or none"
        )
    features = Features({**FEATURES, "split": Value("string")}) if has_split else FEATURES
    return Dataset.from_list(list(rows.values()), features=features)


def _merge(known: dict[str, Any], row: dict[str, Any], *, where: str) -> None:
    for key in ("image", "split"):
        if known.get(key) != row.get(key):
            raise ValueError(
                f"{where}: {row['image_id']} has {key} {row.get(key)!r}, an earlier line said {known.get(key)!r}"
            )
    known["captions"] += row["captions"]


def table_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each record of a .csv, .tsv or .jsonl file.

    Raises:
        ValueError: A line has not the fields of the heading, or is no JSON object.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".jsonl":
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_record(line, where=f"{path}:{number}")
            return
        # Strict: an open quote would take all that follows for one caption.
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        for record in _closed(reader, path=path):
            if None in record or None in record.values():
                raise ValueError(
                    f"{path}:{reader.line_num}: not the {len(reader.fieldnames or ())} fields of the heading; "
                    "put quotes around captions that hold a comma"
                )
            yield reader.line_num, record


def _closed(reader: csv.DictReader, *, path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(
            f"{path}:{reader.line_num + 1}: {error}; a quote that opens a field must be closed at its end, and quotes "
            "within are doubled"
        ) from error


def _json_record(line: str, *, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object such as {{'image': ..., 'captions': [...]}}, found {line[:60]}")
    return record


def _cell(record: dict[str, Any], names: tuple[str, str], *, where: str) -> Any:
    for name in names:
        if name in record:
            return record[name]
    raise ValueError(f"{where}: no column {' or '.join(names)}; found {', '.join(record)}")


def captions_of(value: Any, *, where: str) -> list[str]:
    """A cell of captions as a list.

    Raises:
        ValueError: It is neither a text nor a list of texts.
    """
    captions = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{where}: captions must be a text or a list of texts, found {value!r}")
    return captions


def _read_text(files: list[Path], *, root: Path, max_words: int) -> Dataset:
    rows = []
    for file in files:
        name = file.relative_to(root).as_posix()
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                for part, piece in enumerate(split_words(line, max_words=max_words)):
                    image_id = f"{name}:{number}" + (f":{part}" if part else "")
                    rows.append(text_row(piece, image_id=image_id, source=root.name, licence="unknown"))
    if not rows:
        raise ValueError(f"{root}: {', '.join(file.name for file in files[:5])} hold no text")
    return Dataset.from_list(rows, features=FEATURES)


def split_words(line: str, *, max_words: int) -> list[str]:
    """Pieces of at most `max_words` words: whole sentences while they fit, longer sentences cut; no word is lost."""
    pieces: list[list[str]] = []
    for sentence in _SENTENCE_END.split(line.strip()):
        words = sentence.split()
        if pieces and len(pieces[-1]) + len(words) <= max_words:
            pieces[-1] += words
            continue
        pieces += [words[start : start + max_words] for start in range(0, len(words), max_words)]
    return [" ".join(piece) for piece in pieces]


def _one_of(path: Path, *, split: str) -> Dataset:
    splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    if split not in splits:
        raise ValueError(f"{path}: no split {split!r}; it has {', '.join(splits)}")
    return _saved(path / split)


def _saved(path: Path) -> Dataset:
    """What `save_to_disk` wrote; of no rows it writes no file, and cannot read that itself."""
    files = [
        entry["filename"] for entry in json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]
    ]
    if not files:
        raise ValueError(f"{path}: the set is empty, it has no row")
    if missing := [name for name in files if not (path / name).is_file()]:
        raise ValueError(
            f"{path}: {len(missing)} of {len(files)} shards are missing, such as {missing[0]}; copy or prepare the set "
            "again"
        )
    dataset = Dataset.load_from_disk(str(path))
    check_columns(dataset, name=str(path))
    return cast(Dataset, dataset.cast_column("image", FEATURES["image"]))


def _choose(dataset: Dataset, *, split: str, test_share: float, path: Path) -> Dataset:
    """Rows whose `split` column says so; without that column, by the hash of the row's picture or document."""
    if "split" in dataset.column_names:
        given = column(dataset, "split")
        if split not in given:
            raise ValueError(f"{path}: no row has split {split!r}; found {', '.join(sorted(set(given)))}")
        return select_rows(dataset, [row for row, value in enumerate(given) if value == split])
    if split not in ("train", "test"):
        raise ValueError(f"{path}: split {split!r}; without a split column there are 'train' and 'test'")
    chosen = [
        row
        for row, image_id in enumerate(column(dataset, "image_id"))
        if (hash_share(image_id) < test_share) == (split == "test")
    ]
    if not chosen:
        raise ValueError(
            f"{path}: split {split!r} holds none of the {len(dataset)} rows; add a split column or change test_share "
            f"({test_share})"
        )
    return select_rows(dataset, chosen)
