"""An index that is there: its facts, the nearest pictures of a vector, and the pictures themselves."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from lancedb.query import LanceVectorQueryBuilder
from lancedb.table import Table
from PIL import Image

from vlmo.data.decoding import decode_image
from vlmo.retrieval.filters import blames_filter, check_condition, filter_error
from vlmo.retrieval.hits import Hit
from vlmo.retrieval.places import read_place
from vlmo.retrieval.store import DISTANCE, RESERVED, Store, one_line

INDEX_FILE = "index.json"
VERSION = 1
MAX_TOP = 10_000
_LOGGER = logging.getLogger(__name__)

_FEW, _FEW_SHARE = 50_000, 0.05
"""Pictures, and share of all, up to which those that pass a filter are all compared: of the partitions that an
approximate index looks through, few or none may hold one of them."""
_SHOWN = ["id", "place", "path", "captions", "width", "height"]


@dataclass(frozen=True)
class Approximate:
    """How an approximate index of the vectors is asked.

    Attributes:
        kind: LanceDB's name of the index type.
        nprobes: Partitions that are looked through.
        candidates: How many of the best are compared once more, by their whole vectors; never less than twice `top`.
    """

    kind: str
    nprobes: int
    candidates: int = 200

    def widened(self, factor: float) -> Approximate:
        """For a filter that one of `factor` pictures passes: as many that pass are met as without it."""
        return replace(self, nprobes=math.ceil(factor * self.nprobes))


class Index:
    """An index folder, open for reading; what a writer changes meanwhile is seen a moment later.

    Raises:
        ValueError: It is no index, damaged, or its first run has not ended.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._seen = _seen(self.folder)
        self.facts = read_facts(self.folder)
        _check_complete(self.facts, folder=self.folder)
        with _whole_facts(self.folder):
            self.fingerprint: str = self.facts["model"]["fingerprint"]
            self.model_folder: str = self.facts["model"]["folder"]
            self._asked = _asked(self.facts)
        self._store = Store(self.folder)
        self.dim = self._store.dim

    folder: Path
    facts: Mapping[str, Any]
    """What `index.json` said when the index was opened."""
    fingerprint: str
    """Of the model that made the vectors."""
    model_folder: str
    """Where that model was."""
    dim: int
    """Numbers in a vector."""

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """The index of a folder.

        Raises:
            ValueError: It is none, damaged, or its first run has not ended.
        """
        return cls(folder)

    @property
    def approximate(self) -> Approximate | None:
        """How the approximate index of pictures is asked, as the last writer has left it; None: there is none."""
        return self._asked_now()[0]

    @property
    def num_pictures(self) -> int:
        """How many pictures it holds."""
        with one_line(self.folder):
            return self._store.pictures.count_rows()

    @property
    def num_captions(self) -> int:
        """How many captions it holds."""
        with one_line(self.folder):
            return self._store.captions.count_rows()

    @property
    def columns(self) -> dict[str, str]:
        """Columns of metadata and what they hold, in words."""
        return {name: kind.value for name, kind in self._store.kinds().items()}

    def nearest(
        self, vector: Float32[np.ndarray, " dim"], *, top: int, where: str | None = None, exact: bool = False
    ) -> list[Hit]:
        """The pictures whose vectors are most like this one, best first.

        Args:
            vector: Of length one.
            top: How many, at most.
            where: A filter in SQL; only pictures that pass it are looked at. With an approximate index, those that pass
                are all compared where they are few.
            exact: Whether to compare with every vector, also where there is an approximate index.

        Raises:
            ValueError: An argument is wrong, or the index is damaged.
        """
        search = None if exact else self.approximate
        found = self._search(self._store.pictures, vector, top=top, where=where, search=search, columns=self._visible())
        return [_hit(row) for row in found]

    def nearest_captions(self, vector: Float32[np.ndarray, " dim"], *, top: int, exact: bool = False) -> list[Hit]:
        """The captions whose vectors are most like this one; each hit is the picture that has it.

        Raises:
            ValueError: The index holds no captions, or as for `nearest`.
        """
        if not self.num_captions:
            raise ValueError(f"{self.folder}: no picture of this index has a caption to be found")
        columns, search = ["picture", "caption"], None if exact else self._asked_now()[1]
        found = self._search(self._store.captions, vector, top=top, where=None, search=search, columns=columns)
        owners = {row["id"]: row for row in self._rows([row["picture"] for row in found], self._visible())}
        hits = []
        for row in found:
            owner = owners.get(row["picture"])
            if owner is not None:
                hits.append(_hit({**owner, "captions": [row["caption"]], "_distance": row["_distance"]}))
        return hits

    def hit(self, id: str) -> Hit:  # noqa: A002 (it is the id)
        """A picture by its id, with a similarity of 1 to itself.

        Raises:
            ValueError: There is none.
        """
        return _hit({**self._row(id, self._visible()), "_distance": 0.0})

    def thumbnail(self, id: str) -> bytes:  # noqa: A002
        """A small JPEG file of a picture.

        Raises:
            ValueError: There is no such picture.
        """
        return self._row(id, ["thumbnail"])["thumbnail"]

    def vector(self, id: str) -> Float32[np.ndarray, " dim"]:  # noqa: A002
        """The vector of a picture.

        Raises:
            ValueError: There is no such picture.
        """
        return np.array(self._row(id, ["vector"])["vector"], dtype=np.float32)

    def picture(self, id: str) -> Image.Image:  # noqa: A002
        """A picture at its full size, from the index or from where it lies.

        Raises:
            ValueError: There is no such picture, or its file is gone or damaged.
        """
        return self.pictures([id])[0]

    def pictures(self, ids: Sequence[str]) -> list[Image.Image]:
        """Several pictures; see `picture`."""
        rows = {row["id"]: row for row in self._rows(ids, ["id", "place", "path", "bytes"])}
        return [self._open(rows.get(picture), id=picture) for picture in ids]

    def _open(self, row: Mapping[str, Any] | None, *, id: str) -> Image.Image:  # noqa: A002
        if row is None:
            raise ValueError(f"{self.folder}: no picture has the id {id!r}")
        data = row["bytes"]
        if data is None:
            try:
                data = read_place(row["path"])
            except OSError as error:
                raise ValueError(f"{row['place']} is gone, or cannot be read: {error.strerror or error}") from error
        return decode_image({"bytes": data, "path": row["place"]})

    # -------------------------------------------------------------------------------------------------------- asking

    def _asked_now(self) -> tuple[Approximate | None, Approximate | None]:
        """How pictures and captions are asked; read again when a writer has been there."""
        seen = _seen(self.folder)
        if seen != self._seen:
            with _whole_facts(self.folder):
                self._asked = _asked(read_facts(self.folder))
            self._seen = seen
        return self._asked

    def _visible(self) -> list[str]:
        return [*_SHOWN, *self._store.kinds()]

    def _row(self, id: str, columns: list[str]) -> dict[str, Any]:  # noqa: A002
        for row in self._rows([id], columns):
            return row
        raise ValueError(f"{self.folder}: no picture has the id {id!r}")

    def _rows(self, ids: Sequence[str], columns: list[str]) -> list[dict[str, Any]]:
        return self._store.rows("id", [id for id in ids if id.isalnum()], columns=columns)  # noqa: A001

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
        self._check(vector, top=top)
        if where is not None:
            check_condition(where, columns=self.columns)

        def found_by(search: Approximate | None) -> list[dict[str, Any]]:
            query = _query(table, vector, top=top, search=search).select([*columns, "_distance"])
            query = query if where is None else query.where(where, prefilter=True)
            return query.to_arrow().to_pylist()

        try:
            if search is not None:
                total = table.count_rows()
                passing = total if where is None else table.count_rows(where)
                if where is None or not _few(passing, total):
                    found = found_by(search.widened(total / max(1, passing)))
                    if len(found) >= min(top, passing):
                        return found
            return found_by(None)
        except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
            if where is not None and blames_filter(error):
                raise filter_error(where, error, columns=self.columns) from error
            with one_line(self.folder):
                raise

    def _check(self, vector: Float32[np.ndarray, " dim"], *, top: int) -> None:
        if np.shape(vector) != (self.dim,):
            raise ValueError(f"the vector has shape {np.shape(vector)}; expected {self.dim} numbers")
        if not 1 <= top <= MAX_TOP:
            raise ValueError(f"top is {top}; give a number from 1 to {MAX_TOP}")


def nearest_ids(
    table: Table, vector: Float32[np.ndarray, " dim"], *, top: int, search: Approximate | None
) -> list[str]:
    """Ids of the rows whose vectors are most like this one; `search` None compares with every vector."""
    return _query(table, vector, top=top, search=search).select(["id", "_distance"]).to_arrow()["id"].to_pylist()


def _few(passing: int, total: int) -> bool:
    return passing <= max(_FEW, _FEW_SHARE * total)


def _query(
    table: Table, vector: Float32[np.ndarray, " dim"], *, top: int, search: Approximate | None
) -> LanceVectorQueryBuilder:
    asked = table.search(np.asarray(vector, dtype=np.float32), vector_column_name="vector", query_type="vector")
    query = cast("LanceVectorQueryBuilder", asked)
    query = query.distance_type(DISTANCE).limit(top)
    if search is None:
        return query.bypass_vector_index()
    return query.nprobes(search.nprobes).refine_factor(max(2, -(-search.candidates // top)))


def _seen(folder: Path) -> tuple[int, int] | None:
    """What tells one version of `index.json` from the next."""
    path = folder / INDEX_FILE
    if not path.is_file():
        return None
    found = path.stat()
    return found.st_mtime_ns, found.st_ino


def _asked(facts: Mapping[str, Any]) -> tuple[Approximate | None, Approximate | None]:
    made = facts["approximate"]
    if made is None:
        return None, None
    captions = made["captions"]
    return Approximate(**made["search"]), None if captions is None else Approximate(**captions)


@contextmanager
def _whole_facts(folder: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}: the index is damaged ({INDEX_FILE} lacks {error}); build it anew") from error


def read_facts(folder: Path) -> dict[str, Any]:
    """What `index.json` says.

    Raises:
        ValueError: The folder is no index, or one of another version.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise ValueError(f"{folder} is no index: it has no {INDEX_FILE}. Make one: vlmo index MODEL PICTURES --out DIR")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); build the index anew") from error
    version = facts.get("version") if isinstance(facts, dict) else None
    if version != VERSION:
        raise ValueError(f"{path} has version {version}; this program reads version {VERSION}. Build the index anew.")
    return facts


def _check_complete(facts: Mapping[str, Any], *, folder: Path) -> None:
    if facts.get("complete", True):
        return
    if "updated" not in facts:
        raise ValueError(
            f"{folder}: the index is not finished: its first run was cut off, or has not ended yet. If none is going "
            "on, run vlmo index again with this folder as --out; it goes on where it stood"
        )
    _LOGGER.warning(
        "%s: a run of vlmo index has not ended, so that new pictures may be missing; if none is going on, run it again",
        folder,
    )


def _hit(row: Mapping[str, Any]) -> Hit:
    similarity = 1.0 - row["_distance"]
    return Hit(
        id=row["id"],
        score=similarity,
        similarity=similarity,
        match=None,
        path=row["path"],
        captions=tuple(row["captions"] or ()),
        metadata={name: value for name, value in row.items() if name not in RESERVED and name != "_distance"},
        width=row["width"],
        height=row["height"],
        place=row["place"],
    )
