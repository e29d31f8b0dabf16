"""Builds an index, goes on with one that was interrupted, or brings one up to date."""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from vlmo.data.rows import QuarantineFile, read_lines, to_lines
from vlmo.folder import read_json
from vlmo.folder.atomic import LOCK_FILE, lock_folder, write_file
from vlmo.lazy import install_command
from vlmo.progress import Progress
from vlmo.retrieval.approximate import make_approximate
from vlmo.retrieval.embedding import ENCODED, Batch, Encoded, Work, embed_works
from vlmo.retrieval.encoder import BATCH, Encoder
from vlmo.retrieval.index import INDEX_FILE, VERSION, read_facts
from vlmo.retrieval.metadata import MetadataTable
from vlmo.retrieval.ocr import load_reader
from vlmo.retrieval.skipped import QUARANTINE_FILE
from vlmo.retrieval.sources import (
    Found,
    Reader,
    as_origin,
    find,
    folder_identity,
    image_id,
    was_deleted,
)
from vlmo.retrieval.store import Store
from vlmo.retrieval.words import OCR_COLUMN

SHARDS_FILE = "shards.json"
APPROXIMATE_FROM = 50_000
"""Images from which on an approximate index is built beside the exact search."""
_WRITTEN_ROWS, _WRITTEN_BYTES, _WRITTEN_EVERY_S, _FIRST_WRITTEN_S = 4096, 128 << 20, 30.0, 2.0
"""New rows, their bytes, seconds since the last write, and until the first, from which on they are written: each write
of LanceDB costs more than the one before, and a kill loses what is not written."""
_LOOKUPS_FROM = 20_000
"""Images from which on the table's columns of ids and hashes are indexed."""
_UNMOUNTED = "it was on a disk of its own, which is not here: its images stay in the index"
_LISTED_EVERY, _TOGETHER, _DELETED_AT_ONCE = 1000, 512, 1024
"""Files between two updates of the progress; that are looked up and given to an executor, and deleted, at a time."""


class StoppedError(Exception):
    """A run that was asked to end has done so; what it embedded is written."""


class MissingInputError(ValueError):
    """An input of an earlier run is gone, or empty and not the folder that it was: its disk may not be mounted.

    Attributes:
        reason: What is wrong, without what to do.
    """

    def __init__(self, reason: str, origin: str) -> None:
        super().__init__(f"{reason}. The index keeps its images; --remove {origin} takes them out")
        self.reason = reason


@dataclass(frozen=True)
class BuildReport:
    """Result of a run: number of images that the index holds, and numbers of images by what was done with them.

    Attributes:
        encoded: Images that went through the model.
        reused: New or changed images whose bytes the index had a vector of.
        deleted: Images that are gone.
        bad: Lines in the quarantine.
        recall: Recall of the approximate index, as `make_approximate` measures it; None without one.
    """

    images: int
    encoded: int
    reused: int
    unchanged: int
    deleted: int
    bad: int
    seconds: float
    recall: Mapping[str, Any] | None


def build_index(
    model: str | Path | Encoder,
    inputs: Sequence[str | Path] = (),
    *,
    out: str | Path,
    store_bytes: bool | None = None,
    metadata: str | Path | None = None,
    ocr: bool | None = None,
    remove: Sequence[str | Path] = (),
    batch: int = BATCH,
    approximate_from: int = APPROXIMATE_FROM,
    executor: Literal["local", "ray"] = "local",
    workers: int = 2,
    console: Console | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> BuildReport:
    """Make the folder `out` an index of all images in `inputs`, and in the inputs of earlier runs.

    Images that the index has already are not embedded again: after a crash, and when files were added, changed or
    removed. Bad images leave a line in `quarantine.jsonl`.

    Args:
        inputs: Folders, image files, .tar and .parquet files, folders that `datasets` saved, or patterns and URIs of
            these.
        out: Folder of the index, on this machine's disk.
        store_bytes: Keep the bytes of image files in the index; those of shards are kept in any case. None: as in the
            last run, and not in the first one.
        metadata: Table of captions and columns for files, by their names. None: that of the last run; without one,
            `captions.csv` and the like in the folders themselves.
        ocr: Read text in the images too, into the column "ocr_text" and the full-text index. None: as in the last run,
            and not in the first one.
        remove: Inputs of earlier runs whose images leave the index, or the table of metadata that they were given.
        approximate_from: Number of images from which on an approximate index is built beside the exact search.
        executor: Embed in this process, or in actors of Ray Data.
        workers: Number of these actors.
        console: Takes a bar of progress, or a line every ten seconds where it is no terminal; None shows nothing.
        stop: Asked after each batch; True ends the run, and the next one goes on from there.

    Raises:
        StoppedError: `stop` said so.
        ValueError: Nothing to index, something that cannot be read, an index of another model, or a number below 1.
    """
    for name, value in (
        ("batch", batch),
        ("approximate_from", approximate_from),
        ("workers", workers),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}; give a number from 1 up")
    start, folder = time.perf_counter(), Path(out).expanduser()
    facts = _facts_of(folder)
    table = _metadata_file(facts, metadata, remove)
    settings: dict[str, Any] = {"metadata": table}
    for name, asked in (("store_bytes", store_bytes), ("ocr", ocr)):
        settings[name] = facts.get(name, False) if asked is None else asked
    if settings["ocr"]:
        load_reader()  # raises if it is not installed
    origins = _origins(facts, inputs, remove)
    made_with = facts.get("model", {})
    encoder = model if isinstance(model, Encoder) else Encoder(model)
    if made_with and made_with["fingerprint"] != encoder.fingerprint:
        other = f"{made_with['folder']}, fingerprint {made_with['fingerprint'][:8]}"
        own = f"{encoder.folder} ({encoder.fingerprint[:8]}); name a new folder"
        raise ValueError(f"{folder} was made with another model ({other}) than {own}")
    embed: Callable[..., Iterator[Batch]] = embed_works
    if executor == "ray":
        try:
            from vlmo.retrieval.ray_executor import embed_on_ray
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error}. Ray needs more packages: {install_command('ray')}"
            ) from error
        embed = functools.partial(embed_on_ray, workers=workers)
    reader = Reader(
        settings["store_bytes"],
        None if table is None else MetadataTable(Path(table)),
        settings["ocr"],
    )
    with Progress(console) as progress:
        found, listed = _list_all(origins, facts, progress=progress)
    with lock_folder(folder, work="writing this index"):
        if _facts_of(folder) | {"created": ""} != facts | {"created": ""}:
            raise ValueError(f"{folder}: another process has changed it meanwhile; run again")
        made_by = {
            "folder": str(encoder.folder.absolute()),
            "fingerprint": encoder.fingerprint,
            "dim": encoder.dim,
        }
        facts |= {
            "version": VERSION,
            "model": made_by,
            "metric": "cosine",
            "inputs": origins,
            **settings,
            **listed,
        }
        facts["complete"] = False
        write_file(folder / INDEX_FILE, json.dumps(facts, indent=1))
        store = Store(folder, dim=encoder.dim)
        with Progress(console, in_bytes=True) as progress:
            update = _Update(store, reader, found, progress, stop=stop)
            counts = update.run(
                functools.partial(embed, encoder=encoder, reader=reader, batch=batch)
            )
        images = store.table.count_rows()
        store.optimize(lookups=images >= _LOOKUPS_FROM)
        before = facts["approximate"]
        approximate = make_approximate(
            store, encoder, least=approximate_from, before=before, console=console
        )
        facts |= {"complete": True, "images": images, "bad": counts["bad"]}
        facts |= {"approximate": approximate, "updated": _now()}
        write_file(folder / INDEX_FILE, json.dumps(facts, indent=1))
    recall = None if approximate is None else approximate["recall"]
    return BuildReport(images=images, **counts, seconds=time.perf_counter() - start, recall=recall)


def _facts_of(folder: Path) -> dict[str, Any]:
    if (folder / INDEX_FILE).is_file():
        return read_facts(folder)
    if folder.exists():
        begun = {LOCK_FILE, f"{INDEX_FILE}.aside"}
        if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= begun:
            raise ValueError(f"{folder} holds something else than an index; name a new folder")
    return {
        "created": _now(),
        "inputs": [],
        "metadata": None,
        "store_bytes": False,
        "approximate": None,
    }


def _metadata_file(
    facts: dict[str, Any], given: str | Path | None, remove: Sequence[str | Path]
) -> str | None:
    before = facts["metadata"]
    if given is not None:
        return as_origin(str(given))
    if before in [as_origin(str(each)) for each in remove]:
        return None
    if before is not None and not Path(before).is_file():
        way = f"give --metadata with its new path, or take it out with --remove {before}"
        raise ValueError(f"{before}, this index's table of metadata, is gone; {way}")
    return before


def _origins(
    facts: dict[str, Any], inputs: Sequence[str | Path], remove: Sequence[str | Path]
) -> list[str]:
    before = facts["inputs"]
    dropped = [origin for given in remove if (origin := as_origin(str(given))) != facts["metadata"]]
    if unknown := [origin for origin in dropped if origin not in before]:
        raise ValueError(
            f"{unknown[0]} is no input of this index; its inputs are {', '.join(before) or 'none'}"
        )
    kept = [origin for origin in before if origin not in dropped]
    origins = list(dict.fromkeys([*kept, *(as_origin(str(given)) for given in inputs)]))
    if not origins and not remove:
        raise ValueError("there is nothing to index; give folders, images, .tar or .parquet files")
    return origins


def _list_all(
    origins: Sequence[str], facts: Mapping[str, Any], *, progress: Progress
) -> tuple[list[Found], dict[str, Any]]:
    """List all inputs; return what is there, and facts that the next run compares with.

    These are numbers of "skipped" files by suffix, identities of inputs that are "folders", and "mounts" in them.
    """
    found: dict[str, Found] = {}  # by their paths: of two inputs that lead there, the first counts
    skipped, mounts, folders = Counter[str](), set[Path](), dict[str, str]()
    for origin in origins:
        identity = folder_identity(origin)
        files = _list(origin, facts, skipped=skipped, mounts=mounts, progress=progress)
        if identity != folder_identity(origin):
            raise MissingInputError(
                f"{origin} was mounted, unmounted or replaced while it was listed", origin
            )
        for file in files:
            found.setdefault(file.path, file)
        if identity is not None:
            folders[origin] = identity
    for path in {*map(Path, facts.get("mounts", ()))} - mounts:
        is_below = any(path.is_relative_to(origin) for origin in folders)
        if is_below and not any(name.startswith(f"{path}/") for name in found):
            mounts.add(path)
            found[str(path)] = Found(str(path), "unreadable", "", 0, str(path), reason=_UNMOUNTED)
    return list(found.values()), {
        "skipped": skipped,
        "folders": folders,
        "mounts": sorted(map(str, mounts)),
    }


def _list(
    origin: str,
    facts: Mapping[str, Any],
    *,
    skipped: Counter[str],
    mounts: set[Path],
    progress: Progress,
) -> list[Found]:
    is_known = origin in facts["inputs"]
    if is_known and was_deleted(origin):
        return []
    listed: list[Found] = []
    try:
        for found in find(origin, skipped=skipped, mounts=mounts):
            listed.append(found)
            if len(listed) % _LISTED_EVERY == 0:
                progress.update(f"listing {origin}", len(listed), None)
    except ValueError as error:
        if not is_known:
            raise
        raise MissingInputError(str(error), origin) from error
    if not listed:
        reason = f"{origin} holds no image, .tar or .parquet file"
        if not is_known:
            raise ValueError(reason)
        # A folder that was emptied is still the same one; an empty mount point is not that of its disk.
        if facts.get("folders", {}).get(origin) != (folder_identity(origin) or ""):
            raise MissingInputError(
                f"{reason}, and is another folder than before: its disk may not be mounted", origin
            )
    return listed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Update:
    def __init__(
        self,
        store: Store,
        reader: Reader,
        found: Sequence[Found],
        progress: Progress,
        *,
        stop: Callable[[], bool],
    ) -> None:
        self._store, self._reader, self._found, self._progress, self._stop = (
            store,
            reader,
            found,
            progress,
            stop,
        )
        self._size, self._read = sum(each.size for each in found), 0
        self._counts = dict.fromkeys(("encoded", "reused", "unchanged", "deleted", "bad"), 0)
        self._rows: dict[str, dict[str, Any]] = {}  # by id: new ones, which are not written yet
        self._began = self._written_at = time.monotonic()
        self._there: set[str] = set()  # ids of images that were seen
        shards, paths = store.folder / SHARDS_FILE, {each.path for each in found}
        done: dict[str, str] = read_json(shards) if shards.is_file() else {}
        self._done = {
            path: stamp for path, stamp in done.items() if path in paths
        }  # shards that were read
        self._finished: list[Found] = []  # shards whose last rows are not written yet
        self._unread: set[str] = set()  # shards that were done before and have not changed
        self._broken: set[str] = (
            set()
        )  # shards that could not be read to their ends: images in the rest may exist

    def run(self, embed: Callable[..., Iterator[Batch]]) -> dict[str, int]:
        """Embed new images and remove those that are gone; the table is valid whenever this is interrupted."""
        self._advance(0, unchanged=0)  # a model may take minutes for the first batch
        counts, quarantine_file = self._counts, self._store.folder / QUARANTINE_FILE
        quarantine = QuarantineFile(quarantine_file)
        bad_before, bad_now = read_lines(quarantine_file), []
        for batch in embed(self._works(), lookup=self._lookup):
            self._rows |= {row["id"]: row for row in batch.rows}
            self._there.update([row["id"] for row in batch.rows], batch.unchanged)
            counts["encoded"] += batch.num_encoded
            counts["reused"] += len(batch.rows) - batch.num_encoded
            quarantine.add(batch.bad)
            bad_now += [bad.line() for bad in batch.bad]
            self._broken.update(bad.shard for bad in batch.bad if bad.kind == "shard")
            if batch.finished is not None:
                self._finished.append(batch.finished)
            stopped = self._stop()
            if stopped or self._is_due():
                self._write()
            if stopped:
                raise StoppedError
            self._advance(batch.size, unchanged=len(batch.unchanged))
        self._write()
        self._delete()
        # Lines of this run, and older ones about shards that were not read again.
        bad_before = [line for line in bad_before if line["path"] in self._unread | self._broken]
        lines = list(dict.fromkeys(to_lines([line]) for line in [*bad_before, *bad_now]))
        write_file(quarantine_file, "".join(lines))
        counts["bad"] = len(lines)
        return counts

    def _works(self) -> Iterator[Work]:
        """Yield what is new or may have changed; the rest counts as unchanged."""
        for found in self._found:
            if found.kind == "file":
                continue
            if self._done.get(found.path) == self._reader.stamp(found):
                self._unread.add(found.path)
                self._advance(found.size, unchanged=0)
            else:
                yield Work([found], self._store.known("shard", [found.path]))
        files = [found for found in self._found if found.kind == "file"]
        for start in range(0, len(files), _TOGETHER):
            some = {image_id(found.path): found for found in files[start : start + _TOGETHER]}
            known = self._store.known("id", list(some))
            same = {key for key in known if known[key][0] == self._reader.stamp(some[key])}
            self._there |= same
            self._advance(sum(some[key].size for key in same), unchanged=len(same))
            if changed := [found for key, found in some.items() if key not in same]:
                yield Work(changed, known)

    def _lookup(self, hashes: Sequence[str]) -> dict[str, Encoded]:
        columns = [*ENCODED, OCR_COLUMN] if self._reader.ocr else ENCODED
        if not {*columns} <= {*ENCODED, *self._store.columns()}:
            return {}
        rows = self._store.rows("hash", hashes, columns=["hash", *columns])
        # A row whose text was not read yet gives nothing.
        return {
            row["hash"]: {name: row[name] for name in columns}
            for row in rows
            if row[columns[-1]] is not None
        }

    def _is_due(self) -> bool:
        size = sum(len(row["bytes"] or b"") + len(row["thumbnail"]) for row in self._rows.values())
        # The first ones soon, for those who search meanwhile.
        pause = min(_WRITTEN_EVERY_S, self._written_at - self._began + _FIRST_WRITTEN_S)
        late = time.monotonic() - self._written_at >= pause
        return late or len(self._rows) >= _WRITTEN_ROWS or size >= _WRITTEN_BYTES

    def _write(self) -> None:
        """Write new rows, and then note the shards that end with them, which are not read again before they change."""
        if self._rows:
            self._store.write(list(self._rows.values()))
        self._rows = {}
        for shard in self._finished:
            self._done.pop(shard.path, None)
            if shard.path not in self._broken:
                self._done[shard.path] = self._reader.stamp(shard)
        write_file(self._store.folder / SHARDS_FILE, json.dumps(self._done, indent=1))
        self._finished, self._written_at = [], time.monotonic()

    def _advance(self, size: int, *, unchanged: int) -> None:
        self._counts["unchanged"] += unchanged
        self._read += size
        done = sum(self._counts[name] for name in ("encoded", "reused", "unchanged"))
        self._progress.update("indexing", self._read, self._size, note=f"{done} images")

    def _delete(self) -> None:
        """Remove images that were not seen, unless their shard or folder was not read."""
        folders = tuple(f"{found.path}/" for found in self._found if found.kind == "unreadable")
        gone: list[str] = []
        for rows in self._store.scan(["id", "shard", "path"]):
            for row in rows.to_pylist():
                if row["shard"] in self._unread:
                    self._counts["unchanged"] += 1
                elif row["id"] in self._there or row["shard"] in self._broken:
                    continue
                elif not row["path"].startswith(folders):
                    gone.append(row["id"])
        for start in range(0, len(gone), _DELETED_AT_ONCE):
            self._store.delete(gone[start : start + _DELETED_AT_ONCE])
        self._counts["deleted"] = len(gone)
