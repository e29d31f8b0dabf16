"""Builds an index, goes on with one that was interrupted, or brings one up to date."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from vlmo.data.rows import QuarantineFile, read_lines, to_lines
from vlmo.folder.atomic import LOCK_FILE, lock_folder, write_file
from vlmo.lazy import install_command
from vlmo.progress import Progress
from vlmo.retrieval.approximate import make_approximate
from vlmo.retrieval.embedding import PENDING_FILE, Batch, Pending, Work, embed_works
from vlmo.retrieval.encoder import BATCH, Encoder
from vlmo.retrieval.engines import EngineChoice, Precision
from vlmo.retrieval.index import INDEX_FILE, VERSION, read_facts
from vlmo.retrieval.metadata import MetadataTable
from vlmo.retrieval.sources import Found, Reader, as_origin, find, image_id, was_deleted
from vlmo.retrieval.store import Store

SHARDS_FILE, QUARANTINE_FILE = "shards.jsonl", "quarantine.jsonl"
APPROXIMATE_FROM = 50_000
"""Images from which on an approximate index is built beside the exact search."""
_LOOKUPS_FROM = 20_000
"""Images from which on the table's columns of ids and hashes are indexed."""
_LISTED_EVERY, _LOOKED_UP, _TOGETHER, _DELETED_AT_ONCE = 1000, 2048, 128, 1024
"""Files between two updates of the progress; that are looked up in the table, given to an executor, and deleted, at
a time."""


@dataclass(frozen=True)
class BuildReport:
    """Result of a run: numbers of images and captions that the index holds, and of images by what was done with them.

    Attributes:
        encoded: Images that went through the model.
        reused: New or changed images whose bytes the index had a vector of.
        deleted: Images that are gone.
        bad: Lines in the quarantine.
        recall: Recall of the approximate index, as `make_approximate` measures it; None without one.
        unmatched: A sentence about names in tables of metadata that no image has; None: every name has one.
    """

    images: int
    captions: int
    encoded: int
    reused: int
    unchanged: int
    deleted: int
    bad: int
    seconds: float
    recall: Mapping[str, Any] | None
    unmatched: str | None = None


def build_index(
    model: str | Path | Encoder,
    inputs: Sequence[str | Path] = (),
    *,
    out: str | Path,
    store_bytes: bool | None = None,
    metadata: str | Path | None = None,
    remove: Sequence[str | Path] = (),
    batch: int = BATCH,
    approximate_from: int = APPROXIMATE_FROM,
    executor: Literal["local", "ray"] = "local",
    workers: int = 2,
    dim: int | None = None,
    engine: EngineChoice = "torch",
    precision: Precision = "float32",
    device: str | None = None,
    console: Console | None = None,
) -> BuildReport:
    """Make the folder `out` an index of all images in `inputs`, and in the inputs of earlier runs.

    Images that the index has already are not embedded again: after a crash, and when files were added, changed or
    removed. Bad images leave a line in `quarantine.jsonl`.

    Args:
        model: Model folder, or an `Encoder` of one.
        inputs: Folders, image files, videos, .tar and .parquet files, folders that `datasets` saved, or patterns and
            URIs of these.
        out: Folder of the index, on this machine's disk.
        store_bytes: Keep the bytes of image files in the index; those of shards and key frames are kept in any case.
            None: as in the last run, and not in the first one.
        metadata: Table of captions and columns for files, by their names. None: that of the last run; without one,
            `captions.csv` and the like in the folders themselves.
        remove: Inputs of earlier runs whose images leave the index, or the table of metadata that they were given.
        batch: Images that go through the model at a time.
        approximate_from: Number of images from which on an approximate index is built beside the exact search.
        executor: Embed in this process, or in actors of Ray Data.
        workers: Number of these actors.
        dim: Size of the vectors, as for `Encoder`, if a folder is given. None: as in the first run; there all.
        engine: As for `Encoder`, if a folder is given; so are precision and device.
        console: Takes a bar of progress, or a line every ten seconds where it is no terminal; None shows nothing.

    Raises:
        ValueError: Nothing to index, something that cannot be read, an index of another model or size of vectors,
            or a number below 1.
    """
    for name, value in (("batch", batch), ("approximate_from", approximate_from), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give a number from 1 up")
    start, folder = time.perf_counter(), Path(out).expanduser()
    earlier = _facts_of(folder)
    facts: dict[str, Any] = earlier or {"created": _now(), "inputs": [], "approximate": None}
    settings = _settings(facts, store_bytes=store_bytes, metadata=metadata, remove=remove)
    table = None if settings["metadata"] is None else MetadataTable(Path(settings["metadata"]))
    origins = _origins(facts, inputs, remove)
    made_with = facts.get("model", {})
    if isinstance(model, Encoder):
        encoder = model
    else:
        dim = made_with.get("dim") if dim is None else dim
        encoder = Encoder(model, dim=dim, engine=engine, precision=precision, device=device)
    if made_with and (made_with["fingerprint"], made_with["dim"]) != (encoder.fingerprint, encoder.dim):
        raise ValueError(
            f"{folder} was made with another model or size of vectors ({made_with['folder']}, fingerprint "
            f"{made_with['fingerprint'][:8]}, {made_with['dim']} dimensions) than {encoder.folder} "
            f"({encoder.fingerprint[:8]}, {encoder.dim}); name a new folder"
        )
    embed: Callable[..., Iterator[Batch]] = embed_works
    if executor == "ray":
        try:
            from vlmo.retrieval.ray_executor import embed_on_ray
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error}. Ray needs more packages: {install_command('ray')}") from error
        embed = functools.partial(embed_on_ray, workers=workers)
    found: dict[str, Found] = {}  # by their places: of two inputs that lead there, the first counts
    with Progress(console) as progress:
        for origin in origins:
            for each in _list(origin, before=facts["inputs"], progress=progress):
                found.setdefault(each.place, each)
    with lock_folder(folder, work="writing this index"), _leaving_nothing(folder, is_new=earlier is None):
        made_by = {"folder": str(encoder.folder.absolute()), "fingerprint": encoder.fingerprint, "dim": encoder.dim}
        facts |= {"version": VERSION, "model": made_by, "metric": "cosine", "inputs": origins, "settings": settings}
        facts["complete"] = False
        write_file(folder / INDEX_FILE, json.dumps(facts, indent=1))
        store, reader = Store(folder, dim=encoder.dim), Reader(settings["store_bytes"], table)
        with Progress(console, in_bytes=True) as progress:
            update = _Update(store, reader, list(found.values()), progress)
            counts = update.run(functools.partial(embed, encoder=encoder, reader=reader, batch=batch))
        images, captions = store.images.count_rows(), store.captions.count_rows()
        store.optimize(lookups=images >= _LOOKUPS_FROM, alone="updated" not in facts)
        approximate = make_approximate(store, least=approximate_from, before=facts["approximate"], console=console)
        facts |= {"complete": True, "images": images, "captions": captions, "approximate": approximate}
        facts["updated"] = _now()
        write_file(folder / INDEX_FILE, json.dumps(facts, indent=1))
    return BuildReport(
        images=images,
        captions=captions,
        **counts,
        seconds=time.perf_counter() - start,
        recall=None if approximate is None else approximate["recall"],
        unmatched=reader.unmatched(),
    )


@contextmanager
def _leaving_nothing(folder: Path, *, is_new: bool) -> Iterator[None]:
    """Remove the folder of a new index after an error before its first images are in it; not after an interruption."""
    try:
        yield
    except Exception:
        if is_new and not any(folder.glob("*.lance/data/*")) and not (folder / PENDING_FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _facts_of(folder: Path) -> dict[str, Any] | None:
    """Contents of the index file; None of a folder that is missing or empty, or where a start was cut off."""
    if (folder / INDEX_FILE).is_file():
        return read_facts(folder)
    if folder.exists():
        begun = {LOCK_FILE, f"{INDEX_FILE}.aside"}
        if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= begun:
            raise ValueError(f"{folder} holds something else than an index; name a new folder")
    return None


def _settings(
    facts: dict[str, Any], *, store_bytes: bool | None, metadata: str | Path | None, remove: Sequence[str | Path]
) -> dict[str, Any]:
    """Settings that stay in force for later runs until they are given anew."""
    settings: dict[str, Any] = {"metadata": None, "store_bytes": False, **facts.get("settings", {})}
    if store_bytes is not None:
        settings["store_bytes"] = store_bytes
    before = settings["metadata"]
    if metadata is not None:
        settings["metadata"] = as_origin(str(metadata))
    elif before in [as_origin(str(given)) for given in remove]:
        settings["metadata"] = None
    elif before is not None and not Path(before).is_file():
        raise ValueError(
            f"{before}, this index's table of metadata, is gone; give --metadata with its new place, or take it out "
            f"with --remove {before}"
        )
    return settings


def _origins(facts: dict[str, Any], inputs: Sequence[str | Path], remove: Sequence[str | Path]) -> list[str]:
    before, table = facts["inputs"], facts.get("settings", {}).get("metadata")
    dropped = [origin for given in remove if (origin := as_origin(str(given))) != table]
    if unknown := [origin for origin in dropped if origin not in before]:
        raise ValueError(f"{unknown[0]} is no input of this index; its inputs are {', '.join(before) or 'none'}")
    kept = [origin for origin in before if origin not in dropped]
    origins = list(dict.fromkeys([*kept, *(as_origin(str(given)) for given in inputs)]))
    if not origins and not remove:
        raise ValueError("there is nothing to index; give folders, images, videos, .tar or .parquet files")
    return origins


def _list(origin: str, *, before: Sequence[str], progress: Progress) -> list[Found]:
    """Return everything in an input."""
    if origin in before and was_deleted(origin):
        return []
    listed: list[Found] = []
    try:
        for found in find(origin):
            listed.append(found)
            if len(listed) % _LISTED_EVERY == 0:
                progress.update(f"listing {origin}", len(listed), None)
    except ValueError as error:
        if origin not in before:
            raise
        raise ValueError(f"{error}. The index has images of it; --remove {origin} takes them out") from error
    if not listed:
        raise ValueError(
            f"{origin} holds no image, video, .tar or .parquet file; an input that is empty on purpose is taken out of "
            "an index with --remove"
        )
    return listed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Update:
    """One run over all inputs of an index."""

    def __init__(self, store: Store, reader: Reader, found: Sequence[Found], progress: Progress) -> None:
        self._store, self._reader, self._found, self._progress = store, reader, found, progress
        self._size, self._read = sum(each.size for each in found), 0
        self._counts = dict.fromkeys(("encoded", "reused", "unchanged", "deleted", "bad"), 0)
        self._there: set[str] = set()  # ids of images that were seen
        self._done = {line["shard"]: line["stamp"] for line in read_lines(store.folder / SHARDS_FILE)}
        self._unread: set[str] = set()  # shards that were done before and have not changed
        self._broken: set[str] = set()  # shards that could not be read to their ends: images in the rest may exist

    def run(self, embed: Callable[..., Iterator[Batch]]) -> dict[str, int]:
        """Embed new images and remove those that are gone; the tables are valid whenever this is interrupted.

        Return the numbers of images by what was done with them, as in `BuildReport`.

        Raises:
            ValueError: The index is damaged.
        """
        self._advance(0, unchanged=0)  # a model may take minutes for the first batch
        pending, counts = Pending(self._store), self._counts
        quarantine = QuarantineFile(self._store.folder / QUARANTINE_FILE)
        bad_before, bad_now = read_lines(self._store.folder / QUARANTINE_FILE), []
        for batch in embed(self._works(), lookup=pending.encoded):
            pending.add(batch)
            self._there.update([record.id for record in batch.records], batch.unchanged)
            counts["encoded"] += batch.num_encoded
            counts["reused"] += len(batch.records) - batch.num_encoded
            quarantine.add(batch.bad)
            bad_now += [bad.line() for bad in batch.bad]
            self._broken.update(bad.shard for bad in batch.bad if bad.kind == "shard")
            if batch.finished is not None:
                self._finish(batch.finished)
            self._advance(batch.size, unchanged=len(batch.unchanged))
        pending.flush()
        self._delete()
        shards = [{"shard": shard, "stamp": stamp} for shard, stamp in self._done.items()]
        write_file(self._store.folder / SHARDS_FILE, to_lines(shards))
        # Lines of this run, and older ones about shards that were not read again.
        bad_before = [line for line in bad_before if line["path"] in self._unread | self._broken]
        lines = list(dict.fromkeys(to_lines([line]) for line in [*bad_before, *bad_now]))
        write_file(self._store.folder / QUARANTINE_FILE, "".join(lines))
        counts["bad"] = len(lines)
        return counts

    def _works(self) -> Iterator[Work]:
        """Yield what is new or may have changed; the rest counts as unchanged."""
        for found in self._found:
            if found.kind == "file":
                continue
            if self._done.get(found.place) == self._reader.stamp(found):
                self._unread.add(found.place)
                self._advance(found.size, unchanged=0)
            else:
                yield Work([found], self._store.known("shard", [found.place]))
        files = [found for found in self._found if found.kind == "file"]
        for start in range(0, len(files), _LOOKED_UP):
            some = {image_id(found.place): found for found in files[start : start + _LOOKED_UP]}
            known, size = self._store.known("id", list(some)), 0
            changed: list[str] = []
            for id, found in some.items():  # noqa: A001
                stamp = self._reader.stamp(found)  # of new files too: it marks names in tables as used
                if id in known and known[id][0] == stamp:
                    self._there.add(id)
                    size += found.size
                else:
                    changed.append(id)
            self._advance(size, unchanged=len(some) - len(changed))
            for first in range(0, len(changed), _TOGETHER):
                ids = changed[first : first + _TOGETHER]
                yield Work([some[id] for id in ids], {id: known[id] for id in ids if id in known})  # noqa: A001

    def _finish(self, shard: Found) -> None:
        """Note a shard that was read to its end, so that it is not read again before it changes."""
        if shard.place in self._broken:
            self._done.pop(shard.place, None)
        else:
            self._done[shard.place] = self._reader.stamp(shard)
            with (self._store.folder / SHARDS_FILE).open("a", encoding="utf-8") as file:
                file.write(to_lines([{"shard": shard.place, "stamp": self._done[shard.place]}]))

    def _advance(self, size: int, *, unchanged: int) -> None:
        self._counts["unchanged"] += unchanged
        self._read += size
        done = sum(self._counts[name] for name in ("encoded", "reused", "unchanged"))
        self._progress.update("indexing", self._read, self._size, note=f"{done} images")

    def _delete(self) -> None:
        """Remove images that were not seen, unless their shard or folder was not read."""
        folders = tuple(f"{found.place}/" for found in self._found if found.kind == "unreadable")
        gone: list[str] = []
        for rows in self._store.scan(["id", "shard", "place"]):
            for id, shard, place in zip(*(column.to_pylist() for column in rows.columns), strict=True):  # noqa: A001
                if shard in self._unread:
                    self._counts["unchanged"] += 1
                elif not (id in self._there or shard in self._broken or place.startswith(folders)):
                    gone.append(id)
        for start in range(0, len(gone), _DELETED_AT_ONCE):
            self._store.delete(gone[start : start + _DELETED_AT_ONCE])
        self._counts["deleted"] = len(gone)
