"""Builds an index, goes on with one that was interrupted, or brings one up to date."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from rich.console import Console

from vlmo.folder import write_file
from vlmo.retrieval.approximate import Recall, make_approximate
from vlmo.retrieval.embedding import LocalEngine
from vlmo.retrieval.encoder import BATCH, Encoder
from vlmo.retrieval.index import INDEX_FILE, VERSION, read_facts
from vlmo.retrieval.listing import listed
from vlmo.retrieval.pictures import THUMBNAIL
from vlmo.retrieval.places import as_origin
from vlmo.retrieval.reading import Reader
from vlmo.retrieval.store import Store
from vlmo.retrieval.tables import MetadataTable, Unmatched
from vlmo.retrieval.tasks import Engine
from vlmo.retrieval.update import Update

_LOCK_FILE = ".lock"
_LOOKUPS_FROM = 20_000
"""Pictures from which on the table's columns of ids and hashes are indexed."""


@dataclass(frozen=True)
class IndexSettings:
    """How an index is built.

    Attributes:
        store_bytes: Whether the index holds the bytes of picture files; those of shards it holds in any case. None: as
            in the last run, and not in the first one.
        metadata: Table of captions and columns for files, by their names. None: that of the last run; without one,
            `captions.csv` and the like in the folders themselves.
        thumbnail: Longest side of thumbnails, in pixels.
        batch: Pictures that go through the model at a time.
        approximate_from: Number of pictures from which on an approximate index is built beside the exact search.
    """

    store_bytes: bool | None = None
    metadata: Path | None = None
    thumbnail: int = THUMBNAIL
    batch: int = BATCH
    approximate_from: int = 50_000

    def __post_init__(self) -> None:
        """Looks at the values.

        Raises:
            ValueError: Thumbnails are below 16 pixels, or a count is below 1.
        """
        if self.thumbnail < 16 or self.batch < 1 or self.approximate_from < 1:
            raise ValueError(
                f"thumbnail is {self.thumbnail}, batch {self.batch} and approximate_from {self.approximate_from}; give "
                "at least 16 pixels, and numbers of pictures from 1 up"
            )


@dataclass(frozen=True)
class BuildReport:
    """What a run did to an index.

    Attributes:
        pictures: How many pictures it holds now.
        captions: How many captions.
        encoded: Pictures that went through the model.
        reused: New or changed pictures whose bytes the index had a vector of.
        unchanged: Pictures that were left as they are.
        deleted: Pictures that are gone.
        bad: Lines in the quarantine.
        seconds: Of the whole run.
        recall: Of the approximate index; None without one.
        unmatched: Names in tables of metadata that no picture has; None: every name has one.
    """

    pictures: int
    captions: int
    encoded: int
    reused: int
    unchanged: int
    deleted: int
    bad: int
    seconds: float
    recall: Recall | None
    unmatched: Unmatched | None = None


def build_index(
    model: str | Path | Encoder,
    inputs: Sequence[str | Path] = (),
    *,
    out: str | Path,
    settings: IndexSettings | None = None,
    forget: Sequence[str | Path] = (),
    engine: Literal["local", "ray"] = "local",
    workers: int = 2,
    device: str | None = None,
    console: Console | None = None,
) -> BuildReport:
    """Makes the folder `out` an index of all pictures in `inputs`, and in the inputs of earlier runs.

    What the index has already is not embedded again: after a crash, and when files were added, changed or removed. Bad
    pictures leave a line in `quarantine.jsonl`.

    Args:
        model: Model folder, or what `Encoder` made of one.
        inputs: Folders, picture files, .tar and .parquet files, folders that `datasets` saved, or patterns and URIs of
            these.
        out: Folder of the index, on this machine's disk.
        forget: Inputs of earlier runs whose pictures leave the index, or the table of metadata that they were given.
        engine: Who embeds: this process, or actors of Ray Data.
        workers: Number of these actors.
        device: Where the model runs, if a folder is given; None takes a GPU if there is one.
        console: Where the progress goes, as a bar, or as a line every ten seconds where it is no terminal; None shows
            nothing.

    Raises:
        ValueError: Nothing to index, something that cannot be read, or an index of another model.
    """
    settings = settings or IndexSettings()
    start, folder = time.perf_counter(), Path(out).expanduser()
    facts = _facts_of(folder)
    told = _told(facts, settings, forget)
    table = None if told["metadata"] is None else MetadataTable(Path(told["metadata"]))
    origins = _origins(facts, inputs, forget)
    encoder = model if isinstance(model, Encoder) else Encoder(model, device=device)
    _check_model(facts, encoder, folder=folder)
    before = () if facts is None else facts["inputs"]
    with listed(origins, before=before, console=console) as listing, _locked(folder):
        facts = _new_facts(facts, encoder, origins=origins, told=told)
        write_file(folder / INDEX_FILE, json.dumps(facts, indent=1))
        store = Store(folder, dim=encoder.dim)
        reader = Reader(told["store_bytes"], table)
        update = Update(store, reader=reader, listing=listing, console=console)
        counts = update.run(_engine(engine, encoder, settings=settings, workers=workers))
        pictures = store.pictures.count_rows()
        store.tidy(lookups=pictures >= _LOOKUPS_FROM, alone="updated" not in facts)
        approximate = make_approximate(
            store, least=settings.approximate_from, before=facts["approximate"], console=console
        )
        captions = store.captions.count_rows()
        facts |= {
            "complete": True,
            "pictures": pictures,
            "captions": captions,
            "updated": _now(),
            "approximate": None if approximate is None else approximate.facts(),
        }
        write_file(folder / INDEX_FILE, json.dumps(facts, indent=1))
    return BuildReport(
        pictures=pictures,
        captions=captions,
        encoded=counts.encoded,
        reused=counts.reused,
        unchanged=counts.unchanged,
        deleted=counts.deleted,
        bad=counts.bad,
        seconds=time.perf_counter() - start,
        recall=None if approximate is None else approximate.recall,
        unmatched=reader.unmatched(),
    )


def _engine(name: Literal["local", "ray"], encoder: Encoder, *, settings: IndexSettings, workers: int) -> Engine:
    if name == "local":
        return LocalEngine(encoder, batch=settings.batch, thumbnail=settings.thumbnail)
    try:
        from vlmo.retrieval.ray_engine import RayEngine
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}. Ray needs more packages: pip install 'vlmo[ray]'") from error
    return RayEngine(encoder, workers=workers, batch=settings.batch, thumbnail=settings.thumbnail)


def _facts_of(folder: Path) -> dict[str, Any] | None:
    """What the index says of itself; None of a folder that is missing or empty.

    Raises:
        ValueError: The folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir() or not (folder / INDEX_FILE).is_file():
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {_LOCK_FILE, f"{INDEX_FILE}.aside"}:
            return None  # a start that came to nothing
        raise ValueError(f"{folder} holds something else than an index; name a new folder")
    return read_facts(folder)


def _told(facts: dict[str, Any] | None, settings: IndexSettings, forget: Sequence[str | Path]) -> dict[str, Any]:
    """What every run goes by until one is told otherwise.

    Raises:
        ValueError: The table of metadata is gone.
    """
    told: dict[str, Any] = {"metadata": None, "store_bytes": False, **({} if facts is None else facts.get("told", {}))}
    if settings.store_bytes is not None:
        told["store_bytes"] = settings.store_bytes
    if settings.metadata is not None:
        told["metadata"] = as_origin(str(settings.metadata))
    elif told["metadata"] in [as_origin(str(given)) for given in forget]:
        told["metadata"] = None
    elif told["metadata"] is not None and not Path(told["metadata"]).is_file():
        raise ValueError(
            f"{told['metadata']}, this index's table of metadata, is gone; give --metadata with its new place, or take "
            f"it out with --forget {told['metadata']}"
        )
    return told


def _origins(facts: dict[str, Any] | None, inputs: Sequence[str | Path], forget: Sequence[str | Path]) -> list[str]:
    before = [] if facts is None else facts["inputs"]
    table = None if facts is None else facts.get("told", {}).get("metadata")
    dropped = [origin for given in forget if (origin := as_origin(str(given))) != table]
    if unknown := [origin for origin in dropped if origin not in before]:
        raise ValueError(f"{unknown[0]} is no input of this index; its inputs are {', '.join(before) or 'none'}")
    kept = [origin for origin in before if origin not in dropped]
    origins = list(dict.fromkeys([*kept, *(as_origin(str(given)) for given in inputs)]))
    if not origins and not forget:
        raise ValueError("there is nothing to index; give folders, pictures, .tar or .parquet files")
    return origins


def _check_model(facts: dict[str, Any] | None, encoder: Encoder, *, folder: Path) -> None:
    if facts is not None and facts["model"]["fingerprint"] != encoder.fingerprint:
        raise ValueError(
            f"{folder} was made with another model ({facts['model']['folder']}, fingerprint "
            f"{facts['model']['fingerprint'][:8]}) than {encoder.folder} ({encoder.fingerprint[:8]}); name a new folder"
        )


def _new_facts(
    facts: dict[str, Any] | None, encoder: Encoder, *, origins: list[str], told: dict[str, Any]
) -> dict[str, Any]:
    model = {"folder": str(encoder.folder.absolute()), "fingerprint": encoder.fingerprint, "dim": encoder.dim}
    before = {"created": _now(), "pictures": 0, "captions": 0, "approximate": None} if facts is None else facts
    now = {"model": model, "metric": "cosine", "inputs": origins, "told": told, "complete": False}
    return {**before, "version": VERSION, **now}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time; the system lifts the lock when a process ends, however it does.

    Raises:
        ValueError: Another process is writing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{folder}: another process is writing this index; wait for it") from error
    try:
        yield
    finally:
        lock.release()
