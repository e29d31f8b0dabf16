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
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

if TYPE_CHECKING:
    from lancedb.query import LanceVectorQueryBuilder
    from lancedb.table import Table

IMAGES, CAPTIONS = "images", "captions"
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
    """Search of `nprobes` of an index's `partitions`; the best `candidates` are compared again, by whole vectors."""

    partitions: int
    nprobes: int
    candidates: int = 200


def encoded_schema(dim: int) -> pa.Schema:
    """Schema of rows on their way to the table: metadata as JSON, caption vectors as bytes of float32."""
    return pa.schema({**_OWN, "metadata": pa.string(), "vector": _vector(dim), "caption_vectors": pa.large_binary()})


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

        self.folder, self._has_warned = folder, False
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
        captions = pa.schema({"id": pa.string(), "image": pa.string(), "caption": pa.string(), "vector": _vector(dim)})
        existing = set(self._connection.list_tables().tables)
        # A creation ends with a manifest, and a table that has held rows has data: neither is there if it was cut off.
        table = self.folder / f"{IMAGES}.lance"
        if IMAGES not in existing or not (any(table.glob("_versions/*.manifest")) or (table / "data").exists()):
            for name, schema in ((CAPTIONS, captions), (IMAGES, images)):
                if name in existing:
                    self._connection.drop_table(name)
                self._connection.create_table(name, schema=schema)
        self._finish_widening()

    def nearest(
        self,
        table: Table,
        vector: Float32[np.ndarray, " dim"],
        *,
        top: int,
        columns: Sequence[str],
        search: Approximate | None = None,
        where: str | None = None,
    ) -> list[dict[str, Any]]:
        """Columns and "_distance" of the `top` rows whose vectors are most similar, best first.

        Args:
            table: `images` or `captions`.
            vector: L2-normalised.
            search: Parameters of the approximate index; None compares with every vector.
            where: A filter in SQL; only rows that pass it are compared.
        """
        asked = table.search(np.asarray(vector, np.float32), vector_column_name="vector", query_type="vector")
        query = cast("LanceVectorQueryBuilder", asked).distance_type(DISTANCE).limit(top)
        if search is None:
            query = query.bypass_vector_index()
        else:
            query = query.nprobes(search.nprobes).refine_factor(max(2, -(-search.candidates // top)))
        query = query.select([*columns, "_distance"])
        return (query if where is None else query.where(where, prefilter=True)).to_arrow().to_pylist()

    def columns(self) -> dict[str, str]:
        """Return the columns of metadata with their types, in words."""
        return {name: _TYPES[kind][0] for name, kind in self._types().items()}

    def _types(self) -> dict[str, pa.DataType]:
        with one_line(self.folder):
            return {field.name: field.type for field in self.images.schema if field.name not in RESERVED}

    def known(self, column: str, values: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return stamps and hashes, by their ids, of the images that have one of the values in a column."""
        rows = self.rows(column, values, columns=["id", "stamp", "hash"])
        return {row["id"]: (row["stamp"], row["hash"]) for row in rows}

    def rows(self, column: str, values: Sequence[str], *, columns: list[str]) -> list[dict[str, Any]]:
        """Columns of the images that have one of the values, in no order."""
        if not values:
            return []
        with one_line(self.folder):
            return self.images.search().where(_among(column, values)).select(columns).to_arrow().to_pylist()

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

    def take(self, rows: Sequence[int], *, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return columns of images by their row ids, without those that a writer has moved or removed."""
        try:
            return self.images.take_row_ids(list(rows)).select(list(columns)).to_arrow().to_pylist()
        except (ValueError, RuntimeError, OSError):
            return []

    def scan(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """All images."""
        with one_line(self.folder):
            yield from self.images.search().select(columns).to_batches(8192)

    def write(self, encoded: pa.Table) -> None:
        """Put images and their captions into the tables, in place of older rows of the same images.

        Captions go first, and writing twice changes nothing: the next run repairs what a crash leaves.

        Args:
            encoded: Rows of `encoded_schema`.
        """
        ids, texts = encoded["id"].to_pylist(), encoded["captions"].to_pylist()
        owned = [
            (owner, number, text) for owner, each in zip(ids, texts, strict=True) for number, text in enumerate(each)
        ]
        vectors = np.frombuffer(b"".join(encoded["caption_vectors"].to_pylist()), np.float32)
        captions = {
            "id": pa.array([f"{owner}-{number}" for owner, number, _ in owned], pa.string()),
            "image": pa.array([owner for owner, *_ in owned], pa.string()),
            "caption": pa.array([text for *_, text in owned], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors), self.dim),
        }
        table = encoded.select([*_OWN, "vector"])
        for name, column in self._metadata_columns(
            [json.loads(each) for each in encoded["metadata"].to_pylist()]
        ).items():
            table = table.append_column(name, column)
        known = self.known("id", ids)
        old, new = (table.filter(pa.array([(id in known) == is_known for id in ids])) for is_known in (True, False))  # noqa: A001
        with one_line(self.folder):
            self.captions.delete(_among("image", ids))
            if owned:
                self.captions.add(pa.table(captions))
            if len(new):  # in their order, which a merge would not keep
                self.images.add(new)
            if len(old):
                self.images.merge_insert("id").when_matched_update_all().execute(old)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove images and their captions."""
        with one_line(self.folder):
            self.captions.delete(_among("image", ids))
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
                for table, columns in ((self.images, ("id", "hash")), (self.captions, ("image",))):
                    indexed = {column for index in table.list_indices() for column in index.columns}
                    for column in columns:
                        if column not in indexed:
                            table.create_index(column, config=BTree())
            for table in (self.images, self.captions):
                table.optimize(cleanup_older_than=_ANY_AGE if alone else _OLD)

    def _metadata_columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
        """Values of each column of metadata; missing ones are added, up to `_MAX_COLUMNS`, too narrow ones widened."""
        names = sorted({name for row in rows for name in row})
        wanted = {name: kind for name in names if (kind := column_type(row.get(name) for row in rows)) is not None}
        with one_line(self.folder):
            existing = self._types()
            new = [name for name in wanted if name not in existing]
            free = max(0, _MAX_COLUMNS - len(existing))
            if new[free:] and not self._has_warned:
                message = "an index keeps %d columns of metadata; left out are %.80r and more"
                _LOGGER.warning(message, _MAX_COLUMNS, new[free])
                self._has_warned = True
            if new[:free]:
                self.images.add_columns(pa.schema({name: wanted[name] for name in new[:free]}))
            for name, kind in existing.items():
                if (wider := _wider(kind, wanted.get(name, kind))) != kind:
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
    """SQL condition."""
    listed = "', '".join(value.replace("'", "''") for value in values)
    return f"{column} in ('{listed}')"
