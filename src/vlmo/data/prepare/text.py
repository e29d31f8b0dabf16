"""Plain text, such as Wikipedia and BookCorpus: text files or parquet, a document or sentence a line."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlmo.data.prepare.parts import BadRow, Part, Record, Row, SetOnDisk, file_key, read_table_schema
from vlmo.data.schema import hash_share
from vlmo.data.sources import text_rows

TEST_SHARE = 0.01
"""Share of lines, chosen by a hash of the line, that are kept for testing; equal lines are on the same side."""

_COLUMN = "text"
_LAYOUT = f".txt files, or .parquet files with a column {_COLUMN!r}"
_BLOCK_BYTES = 1 << 22
_BATCH_ROWS = 1000


def open_set(root: Path) -> SetOnDisk:
    """Find a row a line, or a piece of a long one; ValueError if nothing there is text."""
    if not root.exists():
        raise ValueError(f"{root}: no such file or folder; --root must hold {_LAYOUT}")
    folder = root.parent if root.is_file() else root
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    texts = [file for file in files if file.suffix.lower() == ".txt"]
    tables = [file for file in files if file.suffix.lower() == ".parquet"]
    if not texts and not tables:
        raise ValueError(f"{root}: none of its {len(files)} files is text; --root must hold {_LAYOUT}")
    parts = []
    for file in texts:
        start, line = 0, 1
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK_BYTES) + opened.readline():  # whole lines
                end = start + len(block)
                rows = functools.partial(_text_rows, file, start, end, line, folder=folder)
                parts.append(Part(file_key(file, start, end), rows))
                start, line = end, line + block.count(b"\n")
    for file in tables:
        schema = read_table_schema(file)
        kind = schema.field(_COLUMN).type if _COLUMN in schema.names else None
        if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise ValueError(f"{file}: it needs a column {_COLUMN!r} of strings; found {columns}")
        parts.append(Part(file_key(file), functools.partial(_table_rows, file, folder=folder)))
    licence = "that of your own files, which is not known here"
    return SetOnDisk(parts=parts, licence=licence, unique=None, needs_image=False)


def _text_rows(file: Path, start: int, end: int, first: int, *, folder: Path) -> Iterator[Record]:
    name = file.relative_to(folder).as_posix()
    with file.open("rb") as opened:
        opened.seek(start)
        block = opened.read(end - start)
    for number, line in enumerate(block.split(b"\n"), start=first):
        try:
            # The mark that some editors put at the start of a file.
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield BadRow("train", f"{name}:{number}", f"{file}:{number}: not UTF-8 ({error})", path=str(file))
            continue
        yield from _line_rows(text, image_id=f"{name}:{number}", source=folder.name)


def _table_rows(file: Path, *, folder: Path) -> Iterator[Record]:
    name, rows = file.relative_to(folder).as_posix(), itertools.count(1)
    try:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=_BATCH_ROWS, columns=[_COLUMN]):
                for row, text in zip(rows, batch.column(0).to_pylist(), strict=False):
                    lines = (text or "").splitlines()
                    for number, line in enumerate(lines, start=1):
                        image_id = f"{name}:{row}" + (f":{number}" if len(lines) > 1 else "")
                        # A document is on one side, whole.
                        yield from _line_rows(line, image_id=image_id, source=folder.name, document=text)
    except pa.ArrowException as error:
        raise ValueError(f"{file}: damaged ({error}); get it again") from error


def _line_rows(line: str, *, image_id: str, source: str, document: str | None = None) -> Iterator[Row]:
    split = "test" if hash_share((document or line).strip()) < TEST_SHARE else "train"
    yield from (Row(split, row) for row in text_rows(line, image_id=image_id, source=source))
