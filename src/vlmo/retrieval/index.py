"""An index that was built: its facts, the nearest images of a vector, and the images themselves."""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from PIL import Image

from vlmo.data.decoding import decode_image
from vlmo.folder import read_json
from vlmo.retrieval.filters import check_condition, filter_error, is_filter_error
from vlmo.retrieval.sources import read_place
from vlmo.retrieval.store import RESERVED, Approximate, DamagedError, Store, one_line

if TYPE_CHECKING:
    from lancedb.table import Table

INDEX_FILE = "index.json"
VERSION = 2
MAX_TOP = 10_000
MAX_BYTES = 2**29
"""If vectors in memory take more, or columns, both stay on the disk; a million vectors of 128 dimensions fit."""
_LOGGER = logging.getLogger(__name__)

_FEW, _FEW_SHARE = 50_000, 0.05
"""Number, and share of all, of images up to which those that pass a filter are all compared: the partitions that an
approximate index searches may hold few or none of them."""
_FILE = ["place", "path", "bytes"]
_SHOWN = ["id", "place", "path", "captions", "width", "height", "hash"]
_NO_METADATA = RESERVED | {"_distance", "_rowid"}


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        id: Its id in the index; the same as long as the image stays where it is.
        score: Value that results are ordered by: the mixed score in nats after reranking, else the similarity.
        similarity: Cosine of the vectors of query and image.
        match: Log-odds that the text belongs to the image; None where it was not reranked.
        path: File of the image, or video of the key frame; None if the index holds it.
        captions: Its captions; of a search for captions, the one that was found.
        metadata: Every other column.
        place: Source of the image, for people: a file, or a shard and the record in it.
        hash: Digest of its bytes when it was indexed.
        row: Its row in the table, where a search from memory has found it; a writer may move it.
    """

    id: str
    score: float
    similarity: float
    match: float | None
    path: str | None
    captions: tuple[str, ...]
    metadata: Mapping[str, Any]
    width: int
    height: int
    place: str = ""
    hash: str = field(default="", compare=False, repr=False)
    row: int | None = field(default=None, compare=False, repr=False)


class Index:
    """An index folder, open for reading; changes of a writer are seen a moment later.

    Attributes:
        folder: The folder.
        fingerprint: Fingerprint of the model that made the vectors.
        model_folder: Folder of that model.
        dim: Size of a vector.

    Args:
        in_memory: Keep vectors and columns in memory, for many searches: those without a filter are exact then, and
            faster.

    Raises:
        ValueError: It is no index, damaged, or its first run has not ended.
    """

    def __init__(self, folder: str | Path, *, in_memory: bool = False) -> None:
        self.folder = Path(folder).expanduser()
        self._version: tuple[int, ...] = ()
        facts = self._read_changed()
        if not facts.get("complete", True):
            if "updated" not in facts:
                raise ValueError(
                    f"{folder}: the index is not finished: its first run was cut off, or has not ended yet. If none is "
                    "running, run vlmo index again with this folder as --out; it goes on where it stood"
                )
            _LOGGER.warning(
                "%s: a run of vlmo index has not ended, so that new images may be missing; if none is running, run it "
                "again",
                folder,
            )
        self._store, self._memory = Store(self.folder), None
        if in_memory:
            self._memory = ImageMemory(self._store, columns=self._visible, version=self.version)

    fingerprint: str
    model_folder: str
    dim: int

    @property
    def approximate(self) -> Approximate | None:
        """Search parameters of the approximate index of images, as the last writer has set them; None without one."""
        self._read_changed()
        return self._search_images

    @property
    def version(self) -> tuple[int, ...]:
        """Numbers that change when images do, or when another index takes the folder."""
        self._read_changed()
        with one_line(self.folder):
            return *self._version, self._store.images.version

    @property
    def num_images(self) -> int:
        """Number of images."""
        with one_line(self.folder):
            return self._store.images.count_rows()

    @property
    def num_captions(self) -> int:
        """Number of captions."""
        with one_line(self.folder):
            return self._store.captions.count_rows()

    @property
    def columns(self) -> dict[str, str]:
        """Columns of metadata and their types, in words."""
        return self._store.columns()

    def nearest(
        self, vector: Float32[np.ndarray, " dim"], *, top: int, where: str | None = None, exact: bool = False
    ) -> list[Hit]:
        """The images whose vectors are most similar to this one, best first.

        Args:
            vector: L2-normalised.
            top: Number of images, at most.
            where: A filter in SQL; only images that pass it are compared. With an approximate index, those that pass
                are all compared where they are few.
            exact: Compare with every vector, also where there is an approximate index.

        Raises:
            ValueError: An argument is wrong, or the index is damaged.
        """
        self._check(vector, top=top)
        found = None
        if self._memory is not None and where is None:
            found = self._memory.nearest(vector, top=top, version=self.version)
        if found is None:
            search, columns = None if exact else self.approximate, self._visible()
            found = self._search(self._store.images, vector, top=top, where=where, search=search, columns=columns)
        return [_hit(row) for row in found]

    def nearest_captions(self, vector: Float32[np.ndarray, " dim"], *, top: int) -> list[Hit]:
        """The captions whose vectors are most similar to this one; each hit is the image that has it.

        Raises:
            ValueError: The index holds no captions, or as for `nearest`.
        """
        self._check(vector, top=top)
        if not self.num_captions:
            raise ValueError(f"{self.folder}: no image of this index has a caption to be found")
        self._read_changed()
        columns = ["image", "caption"]
        found = self._search(
            self._store.captions, vector, top=top, where=None, search=self._search_captions, columns=columns
        )
        owners = {row["id"]: row for row in self._rows([row["image"] for row in found], self._visible())}
        return [
            _hit({**owners[row["image"]], "captions": [row["caption"]], "_distance": row["_distance"]})
            for row in found
            if row["image"] in owners
        ]

    def thumbnail(self, id: str) -> bytes:  # noqa: A002
        """A small JPEG file of an image; ValueError if there is no such image."""
        return self._row(id, ["thumbnail"])["thumbnail"]

    def vector(self, id: str) -> Float32[np.ndarray, " dim"]:  # noqa: A002
        """The vector of an image; ValueError if there is no such image."""
        return np.array(self._row(id, ["vector"])["vector"], dtype=np.float32)

    def vectors(self) -> tuple[list[str], list[str], Float32[np.ndarray, "image dim"]]:
        """Ids, places and vectors of all images; ValueError if the index is damaged."""
        batches = list(self._store.scan(["id", "place", "vector"]))
        parts = [batch["vector"].flatten().to_numpy().reshape(-1, self.dim) for batch in batches]
        ids, places = ([name for batch in batches for name in batch[column].to_pylist()] for column in ("id", "place"))
        return ids, places, np.concatenate([np.zeros((0, self.dim), np.float32), *parts])

    def image(self, id: str) -> Image.Image:  # noqa: A002
        """An image at its full size, from the index or from its file.

        Raises:
            ValueError: There is no such image, or its file is gone or damaged.
        """
        return _load(self._row(id, _FILE), id)

    def loaders(self, hits: Sequence[Hit]) -> list[Callable[[], Image.Image]]:
        """Functions that read and decode an image each, to be called on any thread; they raise as `image` does."""
        numbers = [hit.row for hit in hits if hit.row is not None]
        taken = self._store.take(numbers, columns=["id", *_FILE]) if numbers else []
        rows = {row["id"]: row for row in taken}
        others = [hit.id for hit in hits if hit.id not in rows]
        rows |= {row["id"]: row for row in self._rows(others, ["id", *_FILE])}
        return [functools.partial(_load, rows.get(hit.id), hit.id) for hit in hits]

    def _read_changed(self) -> dict[str, Any]:
        """Read `index.json` if it is another file than the one that was read last; return its contents, or {}."""
        path = self.folder / INDEX_FILE
        status = path.stat() if path.is_file() else None
        version = (status.st_mtime_ns, status.st_ino) if status is not None else (0,)
        if version == self._version:
            return {}
        facts = read_facts(self.folder)
        try:
            made_with = facts["model"]
            self.fingerprint, self.model_folder = made_with["fingerprint"], made_with["folder"]
            self.dim = made_with["dim"]
            made = facts["approximate"] or {"images": None, "captions": None}
            self._search_images, self._search_captions = (
                None if made[name] is None else Approximate(**made[name]) for name in ("images", "captions")
            )
        except (KeyError, TypeError) as error:
            raise DamagedError(f"{self.folder}: the index is damaged, it lacks {error}; build it anew") from error
        self._version = version
        return facts

    def _visible(self) -> list[str]:
        return [*_SHOWN, *self._store.columns()]

    def _rows(self, ids: Sequence[str], columns: list[str]) -> list[dict[str, Any]]:
        return self._store.rows("id", [id for id in ids if id.isalnum()], columns=columns)  # noqa: A001

    def _row(self, id: str, columns: list[str]) -> dict[str, Any]:  # noqa: A002
        for row in self._rows([id], columns):
            return row
        raise ValueError(f"{self.folder}: no image has the id {id!r}")

    def _check(self, vector: Float32[np.ndarray, " dim"], *, top: int) -> None:
        if np.shape(vector) != (self.dim,):
            raise ValueError(f"the vector has shape {np.shape(vector)}; expected {self.dim} numbers")
        if not 1 <= top <= MAX_TOP:
            raise ValueError(f"top is {top}; give a number from 1 to {MAX_TOP}")

    def _search(
        self,
        table: Table,
        vector: Float32[np.ndarray, " dim"],
        *,
        top: int,
        where: str | None,
        search: Approximate | None,
        columns: list[str],
    ) -> list[dict[str, Any]]:
        if where is not None:
            check_condition(where, columns=self.columns)

        def found_by(search: Approximate | None) -> list[dict[str, Any]]:
            return self._store.nearest(table, vector, top=top, columns=columns, search=search, where=where)

        try:
            if search is not None:
                total = table.count_rows()
                passing = total if where is None else table.count_rows(where)
                if where is None or passing > max(_FEW, _FEW_SHARE * total):
                    # If few pass, as many more partitions are searched.
                    nprobes = math.ceil(total / max(1, passing) * search.nprobes)
                    found = found_by(replace(search, nprobes=nprobes))
                    if len(found) >= min(top, passing):
                        return found
            return found_by(None)
        except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
            if where is not None and is_filter_error(error):
                raise filter_error(where, error, columns=self.columns) from error
            with one_line(self.folder):
                raise


def _hit(row: Mapping[str, Any]) -> Hit:
    similarity = 1.0 - row["_distance"]
    return Hit(
        id=row["id"],
        score=similarity,
        similarity=similarity,
        match=None,
        path=row["path"],
        captions=tuple(row["captions"] or ()),
        metadata={name: value for name, value in row.items() if name not in _NO_METADATA},
        width=row["width"],
        height=row["height"],
        place=row["place"],
        hash=row["hash"],
        row=row.get("_rowid"),
    )


def _load(row: Mapping[str, Any] | None, id: str) -> Image.Image:  # noqa: A002
    """Read and decode the image of a row; ValueError if it is missing, or its file is gone or damaged."""
    if row is None:
        raise ValueError(f"no image has the id {id!r}")
    place, data = row["place"], row["bytes"]
    if data is None:
        try:
            data = read_place(row["path"])
        except OSError as error:
            raise ValueError(f"{place} is gone, or cannot be read: {error.strerror or error}") from error
    return decode_image({"bytes": data, "path": place})


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
        raise DamagedError(
            f"{path} has version {version}; this program reads version {VERSION}. Index the images again."
        )
    return facts


class ImageMemory:
    """Copy of an index's image vectors and of `columns`; a thread reads it again when the index has changed.

    Threads may share one.
    """

    def __init__(self, store: Store, *, columns: Callable[[], list[str]], version: tuple[int, ...]) -> None:
        self._store, self._columns, self._lock = store, columns, threading.Lock()
        self._copy: tuple[tuple[int, ...] | None, tuple[pa.Table, Float32[np.ndarray, "image dim"]] | None] = None, None
        self.read(version)

    def nearest(
        self, vector: Float32[np.ndarray, " dim"], *, top: int, version: tuple[int, ...]
    ) -> list[dict[str, Any]] | None:
        """Columns, "_rowid" and "_distance" of the images with the most similar vectors, best first.

        None where the table must be asked: the copy is of another version than this one, or holds no images.
        """
        known, images = self._copy
        if known != version:
            if self._lock.acquire(blocking=False):
                threading.Thread(target=self._read_locked, args=(version,), daemon=True).start()
            return None
        if images is None:
            return None
        table, vectors = images
        # One thread: a matrix product takes several, which then spin while the model could use their cores.
        similar = np.vecdot(vectors, np.asarray(vector, np.float32))
        top = min(top, len(similar))
        best = np.argpartition(similar, -top)[-top:]
        best = best[np.argsort(-similar[best], kind="stable")]
        return table.take(best).append_column("_distance", pa.array(1 - similar[best])).to_pylist()

    def _read_locked(self, version: tuple[int, ...]) -> None:
        try:
            self.read(version)
        finally:
            self._lock.release()

    def read(self, version: tuple[int, ...]) -> None:
        """Copy the images, none if there are too many."""
        # A writer may have removed the version that was being read, or the index; the table tells what is wrong.
        with suppress(ValueError):
            self._copy = version, self._store.all_images(self._columns(), max_bytes=MAX_BYTES)
