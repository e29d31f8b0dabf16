"""LanceDB tables of an index: their columns, and how rows get in and out."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

if TYPE_CHECKING:
    from lancedb.query import LanceVectorQueryBuilder
    from lancedb.table import Table

IMAGES, CAPTIONS = "pictures", "captions"
"""Names of the tables on the disk."""
DISTANCE = "cosine"
"""LanceDB's word for 1 - cosine."""
WIDER = "__wider"
"""Suffix of a column's name while its type is changed."""

_OWN = {
    "id": pa.string(),
    "place": pa.string(),
    "origin": pa.string(),
    "shard": pa.string(),
    "stamp": pa.string(),
    "hash": pa.string(),
    "path": pa.string(),
    "bytes": pa.large_binary(),
    "captions": pa.list_(pa.string()),
    "thumbnail": pa.binary(),
    "width": pa.int32(),
    "height": pa.int32(),
}
FILTERED = tuple(name for name, kind in _OWN.items() if kind not in (pa.binary(), pa.large_binary()))
"""Columns of every index that a filter may name."""
RESERVED = frozenset((*_OWN, "vector", "metadata", "caption_vectors"))
"""Names that no column of metadata has."""

_LOGGER = logging.getLogger(__name__)
_MAX_COLUMNS = 500  # of metadata; each makes every later write slower
_FULL = r"\(os error (27|28|122)\)"  # EFBIG, ENOSPC, EDQUOT: a file may not grow, a disk or a quota is full
_READ_EVERY = timedelta(seconds=2)  # how soon a reader sees the writes of others
_OLD, _ANY_AGE = timedelta(seconds=10), timedelta(milliseconds=1)  # versions that no reader uses any more


# Types of columns of metadata, with their names for people, in SQL and in Python.
_TYPES = {
    pa.bool_(): ("true or false", "boolean", bool),
    pa.int64(): ("whole number", "bigint", int),
    pa.float64(): ("number", "double", float),
    pa.string(): ("text", "string", str),
}


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return the narrowest type that holds values of both."""
    numbers = {one, other} == {pa.int64(), pa.float64()}
    return one if one == other else pa.float64() if numbers else pa.string()


def column_type(values: Iterable[Any]) -> pa.DataType | None:
    """Return the narrowest type that holds all values; None if all are missing."""
    types = {kind for value in values for kind, (*_, python) in _TYPES.items() if type(value) is python}
    return functools.reduce(_wider, types) if types else None


def converted(value: Any, kind: pa.DataType) -> Any:
    """Return a value as a column of this type, which must be wide enough, holds it."""
    if value is None:
        return None
    if kind == pa.string():
        return str(value).lower() if isinstance(value, bool) else str(value)
    return float(value) if kind == pa.float64() else value


@dataclass(frozen=True)
class Approximate:
    """Parameters of a search in an approximate index of the vectors.

    Attributes:
        kind: LanceDB's name of the index type.
        nprobes: Partitions that are searched.
        candidates: Number of the best that are compared once more, by their whole vectors; never less than twice `top`.
    """

    kind: str
    nprobes: int
    candidates: int = 200


class Known(NamedTuple):
    """Stamp and hash of an image in the table: enough to tell if it has changed."""

    stamp: str
    hash: str


def encoded_schema(dim: int) -> pa.Schema:
    """Schema of rows on their way to the table: metadata as JSON, caption vectors as bytes of float32."""
    more = {"metadata": pa.string(), "vector": _vector(dim), "caption_vectors": pa.large_binary()}
    return pa.schema({**_OWN, **more})


def _vector(dim: int) -> pa.DataType:
    return pa.list_(pa.float32(), dim)


class DamagedError(ValueError):
    """An index that cannot be read: it is damaged, or gone."""


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Turn LanceDB's exceptions into one line that names the index.

    Raises:
        DamagedError: The code inside failed.
        ValueError: It failed because the disk is full.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
        if re.search(_FULL, str(error)):
            raise ValueError(f"{folder}: the disk is full ({plain(error)}); free some space and run again") from error
        raise DamagedError(f"{folder}: the index is damaged, or no index ({plain(error)}); build it anew") from error


def plain(error: Exception) -> str:
    """LanceDB's message in one line, without file names of its source."""
    text = " ".join(str(error).split()).removeprefix("Invalid input, ")
    return re.sub(r",? ?\S*/src/\S+\.rs:\d+:\d+", "", text)[:300].rstrip(". ")


class Store:
    """The tables in the folder of an index.

    Args:
        folder: Folder of the index.
        dim: Size of a vector; the tables are created if they are missing. None opens existing ones.

    Raises:
        ValueError: The tables are missing or cannot be read.
    """

    def __init__(self, folder: Path, *, dim: int | None = None) -> None:
        import lancedb  # brings pandas and clients of services, and takes a second

        self.folder, self._told = folder, False
        with one_line(folder):
            interval = _READ_EVERY if dim is None else timedelta(0)
            self._connection = lancedb.connect(folder, read_consistency_interval=interval)
            if dim is not None:
                self._create(dim)
            self.images: Table = self._connection.open_table(IMAGES)
            self.captions: Table = self._connection.open_table(CAPTIONS)
            self.dim: int = self.images.schema.field("vector").type.list_size

    def _create(self, dim: int) -> None:
        images = pa.schema({**_OWN, "vector": _vector(dim)})
        texts = {"id": pa.string(), "picture": pa.string(), "caption": pa.string()}
        captions = pa.schema({**texts, "vector": _vector(dim)})
        existing = set(self._connection.list_tables().tables)
        # A creation ends with a manifest, and a table that has held rows has data: neither is there if it was cut off.
        table = self.folder / f"{IMAGES}.lance"
        if IMAGES not in existing or not (any(table.glob("_versions/*.manifest")) or (table / "data").exists()):
            for name, schema in ((CAPTIONS, captions), (IMAGES, images)):
                if name in existing:
                    self._connection.drop_table(name)
                self._connection.create_table(name, schema=schema)
        self._finish_widening()

    # ------------------------------------------------------------------------------------------------------- reading

    def count(self, table: str, where: str | None = None) -> int:
        """Return the number of rows of `IMAGES` or `CAPTIONS`, or of those that pass `where`."""
        return self._table(table).count_rows(where)

    def nearest(
        self,
        table: str,
        vector: Float32[np.ndarray, " dim"],
        *,
        top: int,
        columns: Sequence[str],
        search: Approximate | None = None,
        where: str | None = None,
    ) -> list[dict[str, Any]]:
        """Columns and "_distance" of the rows whose vectors are most similar, best first.

        Args:
            table: `IMAGES` or `CAPTIONS`.
            vector: L2-normalised.
            top: Number of rows, at most.
            columns: Names of the columns.
            search: Parameters of the approximate index; None compares with every vector.
            where: A filter in SQL; only rows that pass it are compared.
        """
        asked = self._table(table).search(
            np.asarray(vector, np.float32), vector_column_name="vector", query_type="vector"
        )
        query = cast("LanceVectorQueryBuilder", asked).distance_type(DISTANCE).limit(top)
        if search is None:
            query = query.bypass_vector_index()
        else:
            query = query.nprobes(search.nprobes).refine_factor(max(2, -(-search.candidates // top)))
        query = query.select([*columns, "_distance"])
        return (query if where is None else query.where(where, prefilter=True)).to_arrow().to_pylist()

    def _table(self, name: str) -> Table:
        return {IMAGES: self.images, CAPTIONS: self.captions}[name]

    def columns(self) -> dict[str, str]:
        """Return the columns of metadata with their types, in words."""
        return {name: _TYPES[kind][0] for name, kind in self._types().items()}

    def _types(self) -> dict[str, pa.DataType]:
        with one_line(self.folder):
            return {field.name: field.type for field in self.images.schema if field.name not in RESERVED}

    def known(self, ids: Sequence[str]) -> dict[str, Known]:
        """Return those of these images that are in the table."""
        rows = self.rows("id", ids, columns=["id", "stamp", "hash"])
        return {row["id"]: Known(row["stamp"], row["hash"]) for row in rows}

    def rows(self, column: str, values: Sequence[str], *, columns: list[str]) -> list[dict[str, Any]]:
        """Columns of the rows that have one of the values, in no order."""
        if not values:
            return []
        with one_line(self.folder):
            return self.images.search().where(_among(column, values)).select(columns).to_arrow().to_pylist()

    def version(self) -> int:
        """Return the number of the newest version of the images that this reader sees."""
        return self.images.version

    def all_images(
        self, columns: Sequence[str], *, max_bytes: int
    ) -> tuple[pa.Table, Float32[np.ndarray, "image dim"]] | None:
        """Return columns and "_rowid" of all images, and their vectors.

        None without any image, or if either takes more than `max_bytes`.
        """
        with one_line(self.folder):
            count, start, size = self.images.count_rows(), 0, 0
            if not 0 < 4 * self.dim * count <= max_bytes:
                return None
            shown, vectors = [], np.empty((count, self.dim), np.float32)
            query = self.images.search().select(["vector", *columns]).with_row_id(True)
            for batch in query.to_batches(8192):
                batch = batch.slice(0, count - start)  # a writer may have added rows
                vectors[start : start + len(batch)] = batch["vector"].flatten().to_numpy().reshape(-1, self.dim)
                shown.append(batch.drop_columns("vector"))
                start, size = start + len(batch), size + shown[-1].nbytes
                if size > max_bytes:
                    return None
        return pa.Table.from_batches(shown).combine_chunks(), vectors[:start]

    def take(self, rows: Sequence[int], *, columns: Sequence[str]) -> dict[int, dict[str, Any]] | None:
        """Return columns of images by their row ids; None if a writer has moved or removed one of them."""
        try:
            taken = self.images.take_row_ids(list(rows)).select(list(columns)).with_row_id().to_arrow().to_pylist()
        except (ValueError, RuntimeError, OSError):
            return None
        found = {row.pop("_rowid"): row for row in taken}
        return found if len(found) == len(rows) else None

    def scan(self, columns: list[str], *, where: str | None = None) -> Iterator[pa.RecordBatch]:
        """All rows, or those that pass `where`."""
        with one_line(self.folder):
            query = self.images.search().select(columns)
            yield from (query if where is None else query.where(where)).to_batches(8192)

    # ------------------------------------------------------------------------------------------------------- writing

    def write(self, encoded: pa.Table, *, fresh: bool) -> None:
        """Put images and their captions into the tables, in place of older rows of the same images.

        Captions go first, and writing twice changes nothing: the next run repairs what a crash leaves.

        Args:
            encoded: Rows of `encoded_schema`.
            fresh: True if there are no older rows, which is faster.
        """
        metadata = [json.loads(text) for text in encoded["metadata"].to_pylist()]
        self._write_captions(encoded, fresh=fresh)
        columns = self._metadata_columns(metadata)
        table = encoded.select([*_OWN, "vector"])
        for name, column in columns.items():
            table = table.append_column(name, column)
        with one_line(self.folder):
            if fresh:
                self.images.add(table)
            else:
                merge = self.images.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(table)

    def _write_captions(self, encoded: pa.Table, *, fresh: bool) -> None:
        ids, texts = encoded["id"].to_pylist(), encoded["captions"].to_pylist()
        owners = [owner for owner, captions in zip(ids, texts, strict=True) for _ in captions]
        numbers = [number for captions in texts for number in range(len(captions))]
        data = b"".join(encoded["caption_vectors"].to_pylist())
        rows = {
            "id": pa.array([f"{owner}-{number}" for owner, number in zip(owners, numbers, strict=True)], pa.string()),
            "picture": pa.array(owners, pa.string()),
            "caption": pa.array([caption for captions in texts for caption in captions], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.frombuffer(data, np.float32)), self.dim),
        }
        with one_line(self.folder):
            if not fresh:
                self.captions.delete(_among("picture", ids))
            if owners:
                self.captions.add(pa.table(rows))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove images and their captions."""
        with one_line(self.folder):
            self.captions.delete(_among("picture", ids))
            self.images.delete(_among("id", ids))

    def optimize(self, *, lookups: bool, alone: bool) -> None:
        """Compact files, update the vector indexes and remove versions that no reader uses any more.

        Args:
            lookups: Also index ids and hashes, which pays off for large tables.
            alone: Nobody reads the index yet, so that everything older than the newest version may go.
        """
        from lancedb.index import BTree

        with one_line(self.folder):
            if lookups:
                for table, columns in ((self.images, ("id", "hash")), (self.captions, ("picture",))):
                    indexed = {column for index in table.list_indices() for column in index.columns}
                    for column in columns:
                        if column not in indexed:
                            table.create_index(column, config=BTree())
            for table in (self.images, self.captions):
                table.optimize(cleanup_older_than=_ANY_AGE if alone else _OLD)

    # ------------------------------------------------------------------------------------------- columns of metadata

    def _metadata_columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
        """Values of each column of metadata; missing ones are added, up to `_MAX_COLUMNS`, too narrow ones widened."""
        names = sorted({name for row in rows for name in row})
        wanted = {name: kind for name in names if (kind := column_type(row.get(name) for row in rows)) is not None}
        with one_line(self.folder):
            existing = self._types()
            new = [name for name in wanted if name not in existing]
            if lost := new[max(0, _MAX_COLUMNS - len(existing)) :]:
                if not self._told:
                    told = "an index keeps %d columns of metadata; left out are %.80r and more"
                    _LOGGER.warning(told, _MAX_COLUMNS, lost[0])
                self._told = True
                wanted = {name: kind for name, kind in wanted.items() if name not in lost}
            if added := {name: wanted[name] for name in new if name in wanted}:
                self.images.add_columns(pa.schema(added))
            for name, kind in wanted.items():
                wider = _wider(existing.get(name, kind), kind)
                if wider != existing.get(name, wider):
                    self.images.add_columns({f"{name}{WIDER}": f"cast(`{name}` as {_TYPES[wider][1]})"})
                    self._finish_widening()
        return {
            name: pa.array([converted(row.get(name), kind) for row in rows], kind)
            for name, kind in self._types().items()
        }

    def _finish_widening(self) -> None:
        """Rename widened columns to the names of those they replace; a crash may have come between."""
        table = self._connection.open_table(IMAGES)
        for wider in [name for name in table.schema.names if name.endswith(WIDER)]:
            name = wider.removesuffix(WIDER)
            if name in table.schema.names:
                table.drop_columns([name])
            renaming: Any = {"path": wider, "rename": name}  # LanceDB annotates each as a table of tables
            table.alter_columns(renaming)


def _among(column: str, values: Iterable[str]) -> str:
    """SQL condition; the values are hexadecimal or hold no quotes."""
    listed = "', '".join(values)
    return f"{column} in ('{listed}')"
