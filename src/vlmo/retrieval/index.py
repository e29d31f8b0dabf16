"""An index that was built: its facts, the nearest images of a vector, and the images themselves."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int64
from PIL import Image

from vlmo.data.decoding import MAX_PIXELS, EncodedImage
from vlmo.folder import read_json
from vlmo.retrieval.filters import PHOTO_COLUMNS, PhotoFilter, check_filter, filter_error, is_filter_error
from vlmo.retrieval.hits import NO_RANKING, Hit, Ranking, hit_of
from vlmo.retrieval.in_memory import FILE, MemoryVectors, has_faiss
from vlmo.retrieval.skipped import read_skipped
from vlmo.retrieval.sources import read_uri
from vlmo.retrieval.store import FILTERED, TABLE, Approximate, DamagedError, Store, one_line
from vlmo.retrieval.words import OwnWords, Rows, found_share, join_rows

INDEX_FILE = "index.json"
VERSION = 3
MAX_TOP = 10_000
MAX_BYTES = 2**29
"""If vectors in memory take more, or columns, both stay on the disk; a million vectors of 128 dimensions fit."""
_LOGGER = logging.getLogger(__name__)
_SHOWN = ["id", "path", "captions", "width", "height", "hash"]
_GATHERED = 2048  # vectors at a time, so that they stay in the processor's cache
_KEPT_WORDS = 4096
"""Words whose images are kept, 12 bytes for each word of each image."""
_MATCHED, _STEPS = 5000, 4
"""Images with the best matches of words that are compared where not all fit into memory; and steps of BM25 up to the
best, within which similarity decides: smaller differences come from the lengths of file names."""


class Query(NamedTuple):
    """A search among the images of an index.

    Attributes:
        vector: L2-normalised. None: the images that were taken last, the newest first, with a similarity of 0.
        where: A filter in SQL; all images that pass it are compared, also where there is an approximate index.
        photos: A filter of photographs, which are compared in memory, or else while the table is read.
        words: Only images whose texts have one of these (`query_words`), those with the best matches first; of
            equally good ones those with the most similar vectors.
        every_word: Only those that have all of them; none in an index of an earlier version.
    """

    vector: Float32[np.ndarray, " dim"] | None
    top: int
    where: str | None = None
    photos: PhotoFilter = PhotoFilter()
    words: Sequence[str] | None = None
    every_word: bool = False


class _Images(NamedTuple):
    """Columns and vectors, and a function from a word to the rows that have it, with their scores by BM25."""

    table: pa.Table
    vectors: Float32[np.ndarray, "image dim"]
    own: dict[int, OwnWords]
    having: Callable[[str], Rows] | None = None


class _Memory(NamedTuple):
    """Columns and vectors of all images of one version of an index; None if they are too many for the memory.

    Then `coded` are the columns, FAISS's vectors and how they are searched, if there is a file of them.
    """

    version: tuple[int, ...]
    images: _Images | None
    coded: tuple[pa.Table, MemoryVectors, Approximate] | None = None


class Index:
    """An index folder, open for reading; changes of a writer are seen a moment later.

    Attributes:
        fingerprint: Fingerprint of the model that made the vectors.
        model_folder: Folder of that model.
        dim: Size of a vector.

    Args:
        in_memory: Keep vectors and columns in memory from the start: searches are exact then, and faster, or of
            many vectors approximate, by FAISS. Else the first one with a filter of photographs, or by date, reads them.
        growing: A run is known to be adding images, so that no warning says that some may be missing.

    Raises:
        ValueError: It is no index, damaged, or its first run has not ended.
    """

    def __init__(self, folder: str | Path, *, in_memory: bool = False, growing: bool = False) -> None:
        self.folder = Path(folder).expanduser()
        self._version: tuple[int, ...] = ()
        facts = self._read_changed()
        if not self._complete:
            if "updated" not in facts and not (self.folder / f"{TABLE}.lance" / "data").exists():
                raise ValueError(
                    f"{folder}: the index is not finished: its first run was cut off, or has no image yet. If none is "
                    "running, run vlmo index again with this folder as --out; it goes on where it stood"
                )
            if not growing:
                unfinished = "a run of vlmo index has not ended, so that new images may be missing"
                _LOGGER.warning("%s: %s; if none is running, run it again", folder, unfinished)
        self._store, self._lock, self._in_memory = Store(self.folder), threading.Lock(), in_memory
        self._memory = self._read_memory() if in_memory else None

    fingerprint: str
    model_folder: str
    dim: int

    @property
    def complete(self) -> bool:
        """False while images are being added, and after a run that was cut off."""
        self._read_changed()
        return self._complete

    @property
    def version(self) -> tuple[int, ...]:
        """Numbers that change when images do, or when another index takes the folder."""
        self._read_changed()
        with one_line(self.folder):
            return *self._version, self._store.version

    @property
    def num_images(self) -> int:
        """Number of images."""
        with one_line(self.folder):
            return self._store.table.count_rows()

    @property
    def num_skipped(self) -> int:
        """Number of files that the last run could not use."""
        self._read_changed()
        return self._num_bad + sum(self._formats.values())

    def skipped(self, *, most: int) -> dict[str, Any]:
        """Return "files" that the last run could not use, at most so many, and numbers of those of other "formats".

        The files are those of `read_skipped`.
        """
        self._read_changed()
        return {"files": read_skipped(self.folder, inputs=self._inputs, most=most), "formats": self._formats}

    @property
    def columns(self) -> dict[str, str]:
        """Columns of metadata and their types, in words."""
        return self._store.columns()

    @property
    def has_texts(self) -> bool:
        """True if an image has a word, such as of its file's name, that mode "words" finds."""
        return self._store.has_words and bool(len(self._store.ids("full_text <> ''", most=1)))

    def nearest(self, vector: Float32[np.ndarray, " dim"] | None, **others: Any) -> list[Hit]:
        """Return the images that `rank` finds; `others` are the other fields of a `Query`."""
        found = self.rank(Query(vector, **others))
        return found.hits(found.ranks)

    def rank(self, query: Query) -> Ranking:
        """Return the images whose vectors are most similar to the query's, best first.

        Raises:
            ValueError: Something of the query is wrong, or the index is damaged.
        """
        vector, top, where, photos, words, _ = query
        photos = photos if vector is not None else replace(photos, since=photos.since or "0001")  # of any date
        self._check(query, photos.columns)
        memory = self._current_memory() if self._memory is not None or photos.columns else None
        images = None if memory is None else memory.images
        self._read_changed()
        search = self._approximate if where is None else None
        try:
            if words is not None and vector is not None:
                return self._rank_matching(query, vector, images)
            if vector is None or photos.columns or images is not None:
                ids = None if where is None else self._store.ids(where)
                best = functools.partial(_best, vector=vector, top=top, photos=photos, ids=ids)
                if images is None and (parts := [(each, best(each).places) for each in self._blocks()]):
                    table = pa.concat_tables([each.table.take(places) for each, places in parts])
                    images = _Images(table, np.vstack([each.vectors[places] for each, places in parts]), {})
                return NO_RANKING if images is None else best(images)
            if memory is not None and memory.coded is not None and where is None:
                table, vectors, how = memory.coded
                places, similar = vectors.nearest(vector, top=top, search=how)
                if len(places) == min(top, len(vectors)):
                    return Ranking(table, places, similar)
            ask = functools.partial(self._store.nearest, vector, top=top, columns=self._visible(), where=where)
            found = ask(search=search)
            if search is not None and len(found) < min(top, self.num_images):  # too few in these partitions
                found = ask(search=None)
        except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
            if where is not None and is_filter_error(error):
                raise filter_error(where, error, columns=[*FILTERED, *self.columns]) from error
            with one_line(self.folder):
                raise
        return Ranking(found, np.arange(len(found)), 1 - np.asarray(found["_distance"]))

    def _rank_matching(self, query: Query, vector: Float32[np.ndarray, " dim"], images: _Images | None) -> Ranking:
        """Rank images that have some words, or every one, by BM25 in steps, and within one by similarity."""
        _, top, where, photos, words, every = query
        if not (words and (self._store.has_words if images is None else images.having)):
            return NO_RANKING
        if images is not None and images.having is not None:
            places, scores, shares = join_rows([images.having(word) for word in words], every=every)
            passed = _passing(images.table, photos, None if where is None else self._store.ids(where))[places]
        else:
            columns, most = ["id", *["full_text"] * (not every)], max(_MATCHED, top)
            found = self._store.matching(words, every=every, most=most, columns=columns, where=where)
            if not len(found):
                return NO_RANKING
            ids = found["id"].combine_chunks()
            rows = self._store.select("id", ids.to_pylist(), columns=["vector", *self._visible()]).combine_chunks()
            images, found = self._images(rows), found.take(pc.index_in(rows["id"], value_set=ids))
            places, scores, shares = np.arange(len(rows)), np.asarray(found["_score"]), np.ones(len(rows))
            if not every:
                shares[:] = [found_share(words, text) for text in found["full_text"].to_pylist()]
            passed = _passing(images.table, photos, None)
        places, scores, shares = places[passed], scores[passed], shares[passed]
        similar = _similarities(images.vectors, vector, places)
        best = np.lexsort((-similar, -np.ceil(_STEPS * scores / scores.max(initial=0))))[:top]
        return Ranking(images.table, places[best], similar[best], shares[best].tolist(), images.own)

    def _check(self, query: Query, needed: Sequence[str]) -> None:
        vector, top, where, _, words, every_word = query
        if vector is not None and np.shape(vector) != (self.dim,):
            raise ValueError(f"the vector has shape {np.shape(vector)}; expected {self.dim} numbers")
        if not 1 <= top <= MAX_TOP:
            raise ValueError(f"top is {top}; give a number from 1 to {MAX_TOP}")
        if not (words is None or every_word or self._store.has_words):
            raise ValueError("the index knows no words: an earlier version made it; run vlmo index again")
        columns = self.columns if where is not None or needed else {}
        if where is not None:
            check_filter(where, columns=[*FILTERED, *columns])
        for name in needed:
            if columns.get(name) != PHOTO_COLUMNS[name]:
                reason = f"this index has no column {name} of a {PHOTO_COLUMNS[name]}; run vlmo index again over files"
                raise filter_error(name, reason, columns=[*FILTERED, *columns])

    def thumbnail(self, id: str) -> bytes:  # noqa: A002
        """A small JPEG file of an image; ValueError if there is no such image."""
        return self._row(id, ["thumbnail"])["thumbnail"]

    def vector(self, id: str) -> Float32[np.ndarray, " dim"]:  # noqa: A002
        """The vector of an image; ValueError if there is no such image."""
        return np.array(self._row(id, ["vector"])["vector"], dtype=np.float32)

    def image(self, id: str) -> Image.Image:  # noqa: A002
        """An image at its full size; ValueError if there is no such image, or its file is gone or damaged."""
        return _load(self._row(id, ["path", "bytes"]), id)

    def sample(self, most: int) -> list[tuple[Hit, dict[str, Any]]]:
        """At most so many images, evenly taken, each with its "thumbnail" and "vector"."""
        offsets = np.linspace(0, self.num_images - 1, min(most, self.num_images)).astype(int).tolist()
        columns = [*self._visible(), "thumbnail", "vector"]
        with one_line(self.folder):
            rows = self._store.table.take_offsets(offsets).select(columns).to_arrow().to_pylist()
        return [(hit_of(row, 0.0), row) for row in rows]

    def files(self, ids: Sequence[str]) -> list[tuple[str, str, Callable[[], bytes]]]:
        """Id, path and a function that reads the file, or raises ValueError, of those images that the index has."""
        paths = {row["id"]: row["path"] for row in self._rows(ids, ["id", "path"])}
        read = functools.partial(self._row, columns=["path", "bytes"])
        known = [each for each in dict.fromkeys(ids) if each in paths]
        return [(each, paths[each], lambda each=each: _read(read(each))) for each in known]

    def groups(self) -> dict[str, Any]:
        """The "albums" by their names and "months" from the last on: "name", "count" and the "id" of the newest.

        Images that have no date but that of their files are in no month; "num_undated" is their number.
        """
        found: dict[str, Any] = {"albums": [], "months": [], "num_undated": 0}
        columns = [name for name in ("album", "taken", "taken_from") if self.columns.get(name) == "text"]
        if self.num_images and {"album", "taken"} <= {*columns}:
            images = pa.Table.from_batches(self._store.scan(["id", *columns]))
            images = images.append_column("is_dated", _is_dated(images))
            images = images.sort_by([("is_dated", "ascending"), ("taken", "ascending")])
            is_dated = images["is_dated"].cast(pa.bool_())
            found["num_undated"] = len(images) - pc.sum(images["is_dated"]).as_py()
            months = pc.if_else(is_dated, pc.utf8_slice_codeunits(images["taken"], 0, 7), None)
            for key, names, order in (("albums", images["album"], "ascending"), ("months", months, "descending")):
                named = pa.table({"name": names, "id": images["id"]}).drop_null().group_by("name", use_threads=False)
                counts = named.aggregate([("id", "count"), ("id", "last")]).sort_by([("name", order)])
                found[key] = counts.rename_columns(["name", "count", "id"]).to_pylist()
        return found

    def loaders(self, ids: Sequence[str], *, least: int) -> list[Callable[[], Image.Image]]:
        """Functions that read and decode (`decode_to`) an image each, on any thread; they raise as `image` does."""
        rows = {row["id"]: row for row in self._rows(ids, ["id", "path", "bytes"])}
        return [functools.partial(_load, rows.get(id), id, least=least) for id in ids]  # noqa: A001

    def _read_changed(self) -> dict[str, Any]:
        path = self.folder / INDEX_FILE
        status = path.stat() if path.is_file() else None
        version = (status.st_mtime_ns, status.st_ino) if status is not None else (0,)
        if version == self._version:
            return {}
        facts = read_facts(self.folder)
        try:
            made_with, made = facts["model"], facts["approximate"]
            if self._version and made_with["fingerprint"] != self.fingerprint:
                raise DamagedError(f"{self.folder} is now an index of another model; open it again with that one")
            self.fingerprint, self.model_folder = made_with["fingerprint"], made_with["folder"]
            self.dim, self._complete = made_with["dim"], facts.get("complete", True)
            self._approximate = None if made is None else Approximate(**made["search"])
            self._coded: dict[str, Any] | None = None if made is None else made.get("memory")
            self._inputs: list[str] = facts.get("inputs", [])
            self._formats: dict[str, int] = facts.get("skipped", {})
            self._num_bad: int = facts.get("bad", 0)
        except (KeyError, TypeError) as error:
            raise DamagedError(f"{self.folder}: the index is damaged, it lacks {error}; build it anew") from error
        self._version = version
        return facts

    def _current_memory(self) -> _Memory:
        with self._lock:
            if self._memory is None or self._memory.version != self.version:
                self._memory = self._read_memory()
            return self._memory

    def _read_memory(self) -> _Memory:
        version = self.version
        with one_line(self.folder):
            count, size, shown = self._store.table.count_rows(), 0, list[pa.Table]()
            if not 0 < 4 * self.dim * count <= MAX_BYTES:
                return _Memory(version, None, self._read_coded(version[-1]))
            vectors, start = np.empty((count, self.dim), np.float32), 0
            for table, block, *_ in self._blocks():
                shown.append(table.slice(0, count - start))  # a writer may have added rows
                vectors[start : start + len(block)] = block[: count - start]
                start, size = start + len(shown[-1]), size + shown[-1].nbytes
                if size > MAX_BYTES:
                    return _Memory(version, None)
            table = pa.concat_tables(shown).combine_chunks()
            row_ids = table["_rowid"].combine_chunks()

            @functools.lru_cache(maxsize=_KEPT_WORDS)
            def having(word: str) -> Rows:
                found = self._store.matching([word], every=True, most=len(row_ids), columns=[])
                numbers = pc.index_in(row_ids, value_set=found["_rowid"].combine_chunks())
                places = np.flatnonzero(numbers.is_valid())  # a writer may have changed either
                return places, np.asarray(found["_score"])[np.asarray(numbers.take(places))]

        table, vectors = table.drop_columns("_rowid"), vectors[:start]
        return _Memory(version, _Images(table, vectors, {}, having if self._store.has_words else None))

    def _read_coded(self, version: int) -> tuple[pa.Table, MemoryVectors, Approximate] | None:
        # A writer that changes the table writes the file anew at its end.
        made = self._coded if self._in_memory and has_faiss() and (self.folder / FILE).is_file() else None
        if made is None or made["version"] != version:
            return None
        vectors, shown, size = MemoryVectors(self.folder), list[pa.RecordBatch](), 0
        for batch in self._store.scan(self._visible()):
            shown.append(batch)
            size += batch.nbytes
            if size > MAX_BYTES:
                return None
        table = pa.Table.from_batches(shown).combine_chunks()
        return (table, vectors, Approximate(**made["search"])) if len(table) == len(vectors) else None

    def _blocks(self) -> Iterator[_Images]:
        for batch in self._store.scan(["vector", *self._visible()], with_row_id=True):
            yield self._images(pa.Table.from_batches([batch]))

    def _images(self, rows: pa.Table) -> _Images:
        vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, self.dim)
        return _Images(rows.drop_columns("vector"), vectors, {})

    def _visible(self) -> list[str]:
        return [*_SHOWN, *self._store.columns()]

    def _rows(self, ids: Sequence[str], columns: list[str]) -> list[dict[str, Any]]:
        return self._store.rows("id", [id for id in ids if id.isalnum()], columns=columns)  # noqa: A001

    def _row(self, id: str, columns: list[str]) -> dict[str, Any]:  # noqa: A002
        for row in self._rows([id], columns):
            return row
        raise ValueError(f"{self.folder}: no image has the id {id!r}")


def _passing(images: pa.Table, photos: PhotoFilter, ids: pa.Array | None) -> Bool[np.ndarray, " image"]:
    passed = photos.passing(images)
    return passed if ids is None else passed & np.asarray(pc.is_in(images["id"], value_set=ids))


def _is_dated(images: pa.Table) -> pa.ChunkedArray:
    """Return 0 for images whose date is that of the file alone, and 1 for all others."""
    sources = images["taken_from"] if "taken_from" in images.schema.names else pa.nulls(len(images), pa.string())
    return pc.not_equal(sources.cast(pa.string()), "file").fill_null(fill_value=True).cast(pa.int8())


def _best(
    images: _Images, *, vector: Float32[np.ndarray, " dim"] | None, top: int, photos: PhotoFilter, ids: pa.Array | None
) -> Ranking:
    places = np.flatnonzero(_passing(images.table, photos, ids))
    if vector is None:
        dates = images.table.select(["taken", "id"]).append_column("is_dated", _is_dated(images.table)).take(places)
        order = [("is_dated", "descending"), ("taken", "descending"), ("id", "ascending")]
        best = np.asarray(pc.select_k_unstable(dates, top, order))
        return Ranking(images.table, places[best], np.zeros(len(best)))
    similar = _similarities(images.vectors, vector, places)
    best = np.argpartition(-similar, top - 1)[:top] if top < len(places) else np.arange(len(places))
    best = best[np.argsort(-similar[best], kind="stable")]
    return Ranking(images.table, places[best], similar[best], own=images.own)


def _similarities(
    vectors: Float32[np.ndarray, "image dim"], vector: Float32[np.ndarray, " dim"], places: Int64[np.ndarray, " place"]
) -> Float32[np.ndarray, " place"]:
    # One thread: a matrix product takes several, which then spin while the model could use their cores.
    vector = np.asarray(vector, np.float32)
    if 2 * len(places) > len(vectors):  # a part of most is read more slowly than all
        return np.vecdot(vectors, vector)[places]
    parts = np.split(places, range(_GATHERED, len(places), _GATHERED))
    return np.concatenate([np.vecdot(vectors[part], vector) for part in parts])


def _load(row: Mapping[str, Any] | None, id: str, *, least: int = MAX_PIXELS) -> Image.Image:  # noqa: A002
    if row is None:
        raise ValueError(f"no image has the id {id!r}")
    return EncodedImage({"bytes": _read(row), "path": row["path"]}).decode_to(least)


def _read(row: Mapping[str, Any]) -> bytes:
    if row["bytes"] is not None:
        return row["bytes"]
    try:
        return read_uri(row["path"])
    except OSError as error:
        raise ValueError(f"{row['path']} is gone, or cannot be read: {error.strerror or error}") from error


def read_facts(folder: Path) -> dict[str, Any]:
    """Read `index.json`; DamagedError if the folder is no index, or one of another version."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise DamagedError(f"{folder} is no index: it has no {INDEX_FILE}. Make one: vlmo index MODEL IMAGES --out DIR")
    try:
        facts = read_json(path)
    except ValueError as error:
        raise DamagedError(f"{error}; build the index anew") from error
    version = facts.get("version") if isinstance(facts, dict) else None
    if version != VERSION:
        raise DamagedError(f"{path} has version {version}; this program reads {VERSION}. Index the images again.")
    return facts
