"""An index that was built: its facts, the nearest images of a vector, and the images themselves."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32
from PIL import Image

from vlmo.data.decoding import MAX_PIXELS, EncodedImage
from vlmo.folder import JsonObject
from vlmo.retrieval.exact import ExactImages, is_dated
from vlmo.retrieval.facts import INDEX_FILE, IndexFacts, read_facts
from vlmo.retrieval.filters import (
    PHOTO_COLUMNS,
    check_filter,
    filter_error,
    is_filter_error,
    photo_columns,
)
from vlmo.retrieval.hits import NO_RANKING, Hit, Ranking, hit_of
from vlmo.retrieval.in_memory import FILE, CodedImages, MemoryVectors, has_faiss
from vlmo.retrieval.options import MAX_TOP, PhotoFilter
from vlmo.retrieval.presence import Background
from vlmo.retrieval.skipped import read_skipped
from vlmo.retrieval.sources import read_uri
from vlmo.retrieval.store import FILTERED, TABLE, Approximate, DamagedError, Store, one_line
from vlmo.retrieval.words import ImageRow, Rows, found_share

MAX_BYTES = 2**29
"""If vectors in memory take more, or columns, both stay on the disk; a million vectors of 128 dimensions fit."""
_LOGGER = logging.getLogger(__name__)
_SHOWN = ["id", "path", "captions", "width", "height", "hash"]
# Words whose images are kept, 12 bytes for a word of an image.
_KEPT_WORDS = 4096
# Images with the best matches of words that are compared where not all fit into memory.
_MATCHED = 5000


class IndexQuery(NamedTuple):
    """A search among the images of an index.

    Attributes:
        vector: L2-normalized. None: the images that were taken last, the newest first, with a similarity of 0.
        where: A filter in SQL; all images that pass it are compared, also where there is an approximate index.
        photos: A filter of photographs, which are compared in memory, or else while the table is read.
        words: Only images whose texts have one of these (`query_words`), those with the best matches first;
            of equally good ones those with the most similar vectors.
        every_word: Only those that have all of them; none in an index of an earlier version.
    """

    vector: Float32[np.ndarray, " dim"] | None
    top: int
    where: str | None = None
    photos: PhotoFilter = PhotoFilter()
    words: Sequence[str] | None = None
    every_word: bool = False


class MissingImageError(ValueError):
    """No image of the index has this id."""


class _Memory(NamedTuple):
    """Images of one version of an index in memory: exactly, or if they are too many, as FAISS's codes."""

    version: tuple[int, ...]
    exact: ExactImages | None = None
    coded: CodedImages | None = None


class Index:
    """An index folder, open for reading; changes of a writer are seen a moment later.

    Args:
        in_memory: Keep vectors and columns in memory from the start: searches are exact then, and faster, or of
            many vectors approximate, by FAISS. Else the first one with a filter of photographs, or by date, reads them.
        growing: A run is known to be adding images, so that no warning says that some may be missing.

    Raises:
        ValueError: It is no index, damaged, or its first run has not ended.
    """

    def __init__(
        self, folder: str | Path, *, in_memory: bool = False, growing: bool = False
    ) -> None:
        self.folder = Path(folder).expanduser()
        self._version: tuple[int, ...] = ()
        self._facts = IndexFacts()
        self._read_changed()
        if not self._facts.complete:
            has_data = (self.folder / f"{TABLE}.lance" / "data").exists()
            if self._facts.updated is None and not has_data:
                raise ValueError(
                    f"{folder}: the index is not finished: its first run was cut off, or has no image yet. If none is "
                    "running, run vlmo index again with this folder as --out; it goes on where it stood"
                )
            if not growing:
                unfinished = "a run of vlmo index has not ended, so that new images may be missing"
                _LOGGER.warning("%s: %s; if none is running, run it again", folder, unfinished)
        self._store = Store(self.folder)
        self._lock = threading.Lock()
        self._in_memory = in_memory
        self._memory = self._read_memory() if in_memory else None

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that made the vectors."""
        return self._facts.model["fingerprint"]

    @property
    def model_folder(self) -> str:
        """Folder of that model."""
        return self._facts.model["folder"]

    @property
    def dim(self) -> int:
        """Size of a vector."""
        return self._facts.model["dim"]

    @property
    def complete(self) -> bool:
        """False while images are being added, and after a run that was cut off."""
        self._read_changed()
        return self._facts.complete

    @property
    def version(self) -> tuple[int, ...]:
        """Numbers that change when images do, or when another index takes the folder."""
        self._read_changed()
        with one_line(self.folder):
            return *self._version, self._store.version

    @property
    def background(self) -> Background | None:
        """Similarities of common words; None until a run has ended that fits them."""
        self._read_changed()
        if self._facts.background is None:
            return None
        return Background(**self._facts.background)

    @property
    def num_images(self) -> int:
        """Number of images."""
        with one_line(self.folder):
            return self._store.table.count_rows()

    @property
    def num_skipped(self) -> int:
        """Number of files that the last run could not use."""
        self._read_changed()
        return self._facts.bad + sum(self._facts.skipped.values())

    def skipped(self, *, most: int) -> JsonObject:
        """Return "files" that the last run could not use, at most so many, and numbers of those of other "formats".

        The files are those of `read_skipped`.
        """
        self._read_changed()
        return {
            "files": read_skipped(self.folder, inputs=self._facts.inputs, most=most),
            "formats": self._facts.skipped,
        }

    @property
    def columns(self) -> dict[str, str]:
        """Columns of metadata and their types, in words."""
        return self._store.columns()

    @property
    def has_texts(self) -> bool:
        """True if an image has a word, such as of its file's name, that mode "words" finds."""
        return self._store.has_words and bool(len(self._store.ids("full_text <> ''", most=1)))

    def nearest(self, vector: Float32[np.ndarray, " dim"] | None, **options: Any) -> list[Hit]:
        """Return the images that `rank` finds; `options` are the other fields of an `IndexQuery`."""
        ranking = self.rank(IndexQuery(vector, **options))
        return ranking.hits(ranking.ranks)

    def rank(self, query: IndexQuery) -> Ranking:
        """Return the images whose vectors are most similar to the query's, best first.

        Raises:
            ValueError: Something of the query is wrong, or the index is damaged.
        """
        # The order by date needs a date, whichever.
        if query.vector is None:
            photos = replace(query.photos, since=query.photos.since or "0001")
            query = query._replace(photos=photos)
        self._check(query)
        memory = None
        if self._memory is not None or photo_columns(query.photos):
            memory = self._current_memory()
        self._read_changed()
        try:
            return self._rank(query, memory)
        except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
            if query.where is not None and is_filter_error(error):
                columns = [*FILTERED, *self.columns]
                raise filter_error(query.where, error, columns=columns) from error
            with one_line(self.folder):
                raise

    def _rank(self, query: IndexQuery, memory: _Memory | None) -> Ranking:
        # Words first, then exact in memory, FAISS's codes, and at last the table on the disk.
        exact = None if memory is None else memory.exact
        if query.words is not None and query.vector is not None:
            return self._rank_by_words(query, query.vector, exact)
        if query.vector is None or photo_columns(query.photos) or exact is not None:
            return self._rank_exactly(query, exact)
        if memory is not None and memory.coded is not None and query.where is None:
            ranking = memory.coded.nearest(query.vector, top=query.top)
            if ranking is not None:
                return ranking
        return self._rank_stored(query, query.vector)

    def _rank_exactly(self, query: IndexQuery, exact: ExactImages | None) -> Ranking:
        """Compare all images in memory, or if there are too many, a block of the table at a time."""
        ids = None if query.where is None else self._store.ids(query.where)
        if exact is None:
            tables = []
            vectors = []
            for block in self._blocks():
                # The best of all are among the best of the blocks.
                best = block.nearest(query.vector, top=query.top, photos=query.photos, ids=ids)
                tables.append(block.table.take(best.places))
                vectors.append(block.vectors[best.places])
            if not tables:
                return NO_RANKING
            exact = ExactImages(pa.concat_tables(tables), np.vstack(vectors))
        return exact.nearest(query.vector, top=query.top, photos=query.photos, ids=ids)

    def _rank_stored(self, query: IndexQuery, vector: Float32[np.ndarray, " dim"]) -> Ranking:
        """Compare images on the disk, by the approximate index if there is one and no filter."""
        search = None
        if query.where is None and self._facts.approximate is not None:
            search = Approximate(**self._facts.approximate["search"])
        columns = self._visible()
        rows = self._store.nearest(
            vector, top=query.top, columns=columns, where=query.where, search=search
        )
        # The partitions that were searched may hold too few.
        if search is not None and len(rows) < min(query.top, self.num_images):
            rows = self._store.nearest(vector, top=query.top, columns=columns, where=query.where)
        # LanceDB's distance is 1 - cosine.
        return Ranking(rows, np.arange(len(rows)), 1 - np.asarray(rows["_distance"]))

    def _rank_by_words(
        self, query: IndexQuery, vector: Float32[np.ndarray, " dim"], exact: ExactImages | None
    ) -> Ranking:
        has_words = self._store.has_words if exact is None else exact.find_word is not None
        if not query.words or not has_words:
            return NO_RANKING
        if exact is not None:
            ids = None if query.where is None else self._store.ids(query.where)
            return exact.matching(
                query.words,
                vector=vector,
                top=query.top,
                every_word=query.every_word,
                passing=exact.passing(query.photos, ids),
            )
        columns = ["id"] if query.every_word else ["id", "full_text"]
        # More than are shown: among equal matches the vectors decide.
        most = max(_MATCHED, query.top)
        matches = self._store.matching(
            query.words, every=query.every_word, most=most, columns=columns, where=query.where
        )
        if not len(matches):
            return NO_RANKING
        ids = matches["id"].combine_chunks()
        rows = self._store.select(
            "id", ids.to_pylist(), columns=["vector", *self._visible()]
        ).combine_chunks()
        matches = matches.take(pc.index_in(rows["id"], value_set=ids))
        scores = np.asarray(matches["_score"])
        shares = np.ones(len(rows))
        if not query.every_word:
            texts = matches["full_text"].to_pylist()
            shares = np.array([found_share(query.words, text) for text in texts])
        images = self._exact_images(rows)
        passed = np.flatnonzero(images.passing(query.photos, None))
        return images.order_matches(
            passed, scores[passed], shares[passed], vector=vector, top=query.top
        )

    def _check(self, query: IndexQuery) -> None:
        if query.vector is not None and np.shape(query.vector) != (self.dim,):
            raise ValueError(
                f"the vector has shape {np.shape(query.vector)}; expected {self.dim} numbers"
            )
        if not 1 <= query.top <= MAX_TOP:
            raise ValueError(f"top is {query.top}; give a number from 1 to {MAX_TOP}")
        if query.words is not None and not query.every_word and not self._store.has_words:
            raise ValueError(
                "the index knows no words: an earlier version made it; run vlmo index again"
            )
        if query.where is None and not photo_columns(query.photos):
            return
        columns = self.columns
        if query.where is not None:
            check_filter(query.where, columns=[*FILTERED, *columns])
        for name in photo_columns(query.photos):
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

    def sample(self, most: int) -> list[tuple[Hit, ImageRow]]:
        """At most so many images, evenly taken, each with its "thumbnail" and "vector"."""
        offsets = (
            np.linspace(0, self.num_images - 1, min(most, self.num_images)).astype(int).tolist()
        )
        columns = [*self._visible(), "thumbnail", "vector"]
        with one_line(self.folder):
            rows = self._store.table.take_offsets(offsets).select(columns).to_arrow().to_pylist()
        return [(hit_of(row, 0.0), row) for row in rows]

    def groups(self) -> JsonObject:
        """The "albums" by their names and "months" from the last on: "name", "count" and the "id" of the newest.

        Images that have no date but that of their files are in no month; "num_undated" is their number.
        """
        found: JsonObject = {"albums": [], "months": [], "num_undated": 0}
        columns = [
            name for name in ("album", "taken", "taken_from") if self.columns.get(name) == "text"
        ]
        if self.num_images and {"album", "taken"} <= {*columns}:
            images = pa.Table.from_batches(self._store.scan(["id", *columns]))
            images = images.append_column("is_dated", is_dated(images))
            images = images.sort_by([("is_dated", "ascending"), ("taken", "ascending")])
            dated = images["is_dated"].cast(pa.bool_())
            found["num_undated"] = len(images) - pc.sum(images["is_dated"]).as_py()
            months = pc.if_else(dated, pc.utf8_slice_codeunits(images["taken"], 0, 7), None)
            for key, names, order in (
                ("albums", images["album"], "ascending"),
                ("months", months, "descending"),
            ):
                named = (
                    pa.table({"name": names, "id": images["id"]})
                    .drop_null()
                    .group_by("name", use_threads=False)
                )
                counts = named.aggregate([("id", "count"), ("id", "last")]).sort_by(
                    [("name", order)]
                )
                found[key] = counts.rename_columns(["name", "count", "id"]).to_pylist()
        return found

    def loaders(self, ids: Sequence[str], *, least: int) -> list[Callable[[], Image.Image]]:
        """Functions that read and decode (`decode_to`) an image each, on any thread; they raise as `image` does."""
        rows = {row["id"]: row for row in self._rows(ids, ["id", "path", "bytes"])}
        return [functools.partial(_load, rows.get(id), id, least=least) for id in ids]  # noqa: A001

    def _read_changed(self) -> None:
        """Read the facts of the index again if their file has changed."""
        path = self.folder / INDEX_FILE
        status = path.stat() if path.is_file() else None
        # Time and inode: a file that was replaced within one tick of the clock differs too.
        version = (0,) if status is None else (status.st_mtime_ns, status.st_ino)
        if version == self._version:
            return
        facts = read_facts(self.folder)
        if self._version and facts.model["fingerprint"] != self.fingerprint:
            raise DamagedError(
                f"{self.folder} is now an index of another model; open it again with that one"
            )
        self._facts = facts
        self._version = version

    def _current_memory(self) -> _Memory:
        with self._lock:
            if self._memory is None or self._memory.version != self.version:
                self._memory = self._read_memory()
            return self._memory

    def _read_memory(self) -> _Memory:
        version = self.version
        with one_line(self.folder):
            count = self._store.table.count_rows()
            # Four bytes a number, float32.
            if not 0 < 4 * self.dim * count <= MAX_BYTES:
                return _Memory(version, coded=self._read_coded(version[-1]))
            tables = []
            vectors = np.empty((count, self.dim), np.float32)
            start = 0
            num_bytes = 0
            for block in self._blocks():
                # A writer may have added rows.
                table = block.table.slice(0, count - start)
                vectors[start : start + len(table)] = block.vectors[: len(table)]
                tables.append(table)
                start += len(table)
                num_bytes += table.nbytes
                if num_bytes > MAX_BYTES:
                    return _Memory(version)
            table = pa.concat_tables(tables).combine_chunks()
            find_word = None
            if self._store.has_words:
                find_word = self._word_finder(table["_rowid"].combine_chunks())
        table = table.drop_columns("_rowid")
        return _Memory(version, exact=ExactImages(table, vectors[:start], find_word=find_word))

    def _word_finder(self, row_ids: pa.Array) -> Callable[[str], Rows]:
        """Return a function from a word to the rows of a table with these `_rowid`, and their BM25 scores."""

        @functools.lru_cache(maxsize=_KEPT_WORDS)
        def find_word(word: str) -> Rows:
            matches = self._store.matching([word], every=True, most=len(row_ids), columns=[])
            rows = pc.index_in(row_ids, value_set=matches["_rowid"].combine_chunks())
            # A writer may have changed either.
            places = np.flatnonzero(rows.is_valid())
            return places, np.asarray(matches["_score"])[np.asarray(rows.take(places))]

        return find_word

    def _read_coded(self, version: int) -> CodedImages | None:
        """Return FAISS's codes if there is a file of this version of the table, and the columns fit."""
        if not (self._in_memory and has_faiss() and (self.folder / FILE).is_file()):
            return None
        # A writer that changes the table writes the file anew at its end.
        coded = (self._facts.approximate or {}).get("memory")
        if coded is None or coded["version"] != version:
            return None
        vectors = MemoryVectors(self.folder)
        batches = []
        num_bytes = 0
        for batch in self._store.scan(self._visible()):
            batches.append(batch)
            num_bytes += batch.nbytes
            if num_bytes > MAX_BYTES:
                return None
        table = pa.Table.from_batches(batches).combine_chunks()
        if len(table) != len(vectors):
            return None
        return CodedImages(table, vectors, Approximate(**coded["search"]))

    def _blocks(self) -> Iterator[ExactImages]:
        for batch in self._store.scan(["vector", *self._visible()], with_row_id=True):
            yield self._exact_images(pa.Table.from_batches([batch]))

    def _exact_images(self, rows: pa.Table) -> ExactImages:
        vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, self.dim)
        return ExactImages(rows.drop_columns("vector"), vectors)

    def _visible(self) -> list[str]:
        return [*_SHOWN, *self._store.columns()]

    def _rows(self, ids: Sequence[str], columns: list[str]) -> list[ImageRow]:
        return self._store.rows("id", [id for id in ids if id.isalnum()], columns=columns)  # noqa: A001

    def _row(self, id: str, columns: list[str]) -> ImageRow:  # noqa: A002
        for row in self._rows([id], columns):
            return row
        raise MissingImageError(f"{self.folder}: no image has the id {id!r}")


def _load(row: ImageRow | None, id: str, *, least: int = MAX_PIXELS) -> Image.Image:  # noqa: A002
    if row is None:
        raise ValueError(f"no image has the id {id!r}")
    return EncodedImage({"bytes": _read(row), "path": row["path"]}).decode_to(least)


def _read(row: ImageRow) -> bytes:
    if row["bytes"] is not None:
        return row["bytes"]
    try:
        return read_uri(row["path"])
    except OSError as error:
        raise ValueError(
            f"{row['path']} is gone, or cannot be read: {error.strerror or error}"
        ) from error
