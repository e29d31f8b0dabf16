"""Builds an index, goes on with one that was interrupted, or brings one up to date."""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vlmo.data.rows import QuarantineFile, read_lines, to_lines
from vlmo.folder import JsonObject, read_json
from vlmo.folder.atomic import LOCK_FILE, lock_folder, write_file
from vlmo.progress import Progress
from vlmo.retrieval.approximate import make_approximate
from vlmo.retrieval.embedding import ENCODED, Batch, Encoded, Work, embed_works
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.facts import INDEX_FILE, IndexFacts, now, read_facts
from vlmo.retrieval.metadata import MetadataTable
from vlmo.retrieval.ocr import load_reader
from vlmo.retrieval.options import IndexOptions
from vlmo.retrieval.presence import Background, common_words, fit_background
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
from vlmo.retrieval.words import OCR_COLUMN, ImageRow

SHARDS_FILE = "shards.json"
# New rows, their bytes, seconds since the last write, and until the first, from which on they are
# written: each write of LanceDB costs more than the one before, and a kill loses what is not
# written.
_WRITTEN_ROWS = 4096
_WRITTEN_BYTES = 128 << 20
_WRITTEN_EVERY_S = 30.0
_FIRST_WRITTEN_S = 2.0
# Images from which on the table's columns of ids and hashes are indexed.
_LOOKUPS_FROM = 20_000
_UNMOUNTED = "it was on a disk of its own, which is not here: its images stay in the index"
# Files between two updates of the progress; that are looked up and given to an executor, and
# deleted, at a time.
_LISTED_EVERY = 1000
_TOGETHER = 512
_DELETED_AT_ONCE = 1024


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
    recall: JsonObject | None


def build_index(
    model: str | Path | Encoder,
    inputs: Sequence[str | Path] = (),
    *,
    out: str | Path,
    console: Console | None = None,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> BuildReport:
    """Make the folder `out` an index of all images in `inputs`, and in the inputs of earlier runs.

    Images that the index has already are not embedded again: after a crash, and when files were added, changed or
    removed. Bad images leave a line in `quarantine.jsonl`.

    Args:
        inputs: Folders, image files, .tar and .parquet files, folders that `datasets` saved, or patterns and URIs of
            these.
        out: Folder of the index, on this machine's disk.
        console: Takes a bar of progress, or a line every ten seconds where it is no terminal; None shows nothing.
        stop: Asked after each batch, and each 512 files; True ends the run, and the next one goes on from there.
        options: Those of `IndexOptions`.

    Raises:
        StoppedError: `stop` said so.
        ValueError: Nothing to index, something that cannot be read, an index of another model, or a number below 1.
    """
    index_options = IndexOptions(**options)
    started_at = time.perf_counter()
    folder = Path(out).expanduser()
    before = _facts_of(folder)
    facts = _next_facts(before, inputs, index_options)
    encoder = model if isinstance(model, Encoder) else Encoder(model)
    _check_model(encoder, before, folder)
    facts.model = {
        "folder": str(encoder.folder.absolute()),
        "fingerprint": encoder.fingerprint,
        "dim": encoder.dim,
    }
    reader = _open_reader(facts)
    embed = functools.partial(
        embed_works, encoder=encoder, reader=reader, batch=index_options.batch
    )
    with Progress(console) as progress:
        files = _list_inputs(facts, before, progress=progress)
    with lock_folder(folder, work="writing this index"):
        # Listing takes minutes, and another run may have begun and ended in them.
        if replace(_facts_of(folder), created=before.created) != before:
            raise ValueError(f"{folder}: another process has changed it meanwhile; run again")
        facts.write(folder)
        store = Store(folder, dim=encoder.dim)
        with Progress(console, in_bytes=True) as progress:
            counts = _Update(store, reader, files, progress, stop=stop).run(embed)
        facts.images = store.table.count_rows()
        store.optimize(lookups=facts.images >= _LOOKUPS_FROM)
        facts.approximate = make_approximate(
            store,
            encoder,
            least=index_options.approximate_from,
            before=before.approximate,
            console=console,
        )
        facts.background = _background(store, encoder, before, images=facts.images)
        facts.bad = counts["bad"]
        # Last: an index is complete once all of it is written.
        facts.complete = True
        facts.updated = now()
        facts.write(folder)
    seconds = time.perf_counter() - started_at
    recall = (facts.approximate or {}).get("recall")
    return BuildReport(images=facts.images, seconds=seconds, recall=recall, **counts)


def _background(
    store: Store, encoder: Encoder, before: IndexFacts, *, images: int
) -> JsonObject | None:
    if before.background is not None and Background(**before.background).is_current(images):
        return before.background
    background = fit_background(store, encoder.embed_texts(common_words()))
    return None if background is None else asdict(background)


def _facts_of(folder: Path) -> IndexFacts:
    """Return the facts of an index, or of a new one in a folder that is not there yet."""
    if (folder / INDEX_FILE).is_file():
        return read_facts(folder)
    if folder.exists():
        begun = {LOCK_FILE, f"{INDEX_FILE}.aside"}
        if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= begun:
            raise ValueError(f"{folder} holds something else than an index; name a new folder")
    return IndexFacts()


def _next_facts(
    before: IndexFacts, inputs: Sequence[str | Path], options: IndexOptions
) -> IndexFacts:
    """Return the facts of a run that begins: those of the last run, as far as nothing else is asked for."""
    facts = replace(
        before,
        metadata=_metadata_file(before, options),
        inputs=_inputs(before, inputs, options.remove),
        complete=False,
    )
    if options.store_bytes is not None:
        facts.store_bytes = options.store_bytes
    if options.ocr is not None:
        facts.ocr = options.ocr
    return facts


def _open_reader(facts: IndexFacts) -> Reader:
    if facts.ocr:
        # Raises if it is not installed.
        load_reader()
    table = None
    if facts.metadata is not None:
        table = MetadataTable(Path(facts.metadata))
    return Reader(facts.store_bytes, table, facts.ocr)


def _check_model(encoder: Encoder, facts: IndexFacts, folder: Path) -> None:
    if facts.model and facts.model["fingerprint"] != encoder.fingerprint:
        raise ValueError(
            f"{folder} was made with another model ({facts.model['folder']}, fingerprint "
            f"{facts.model['fingerprint'][:8]}) than {encoder.folder} ({encoder.fingerprint[:8]}); "
            "name a new folder"
        )


def _metadata_file(facts: IndexFacts, options: IndexOptions) -> str | None:
    if options.metadata is not None:
        return as_origin(str(options.metadata))
    removed = [as_origin(str(path)) for path in options.remove]
    if facts.metadata is None or facts.metadata in removed:
        return None
    if not Path(facts.metadata).is_file():
        raise ValueError(
            f"{facts.metadata}, this index's table of metadata, is gone; give --metadata with its "
            f"new path, or take it out with --remove {facts.metadata}"
        )
    return facts.metadata


def _inputs(
    facts: IndexFacts, inputs: Sequence[str | Path], remove: Sequence[str | Path]
) -> list[str]:
    """Return the inputs of an index: those of its facts and new ones, without some."""
    removed = {as_origin(str(path)) for path in remove} - {facts.metadata}
    for origin in sorted(removed.difference(facts.inputs)):
        raise ValueError(
            f"{origin} is no input of this index; its inputs are "
            f"{', '.join(facts.inputs) or 'none'}"
        )
    origins = [origin for origin in facts.inputs if origin not in removed]
    for path in inputs:
        origin = as_origin(str(path))
        if origin not in origins:
            origins.append(origin)
    if not origins and not remove:
        raise ValueError("there is nothing to index; give folders, images, .tar or .parquet files")
    return origins


def _list_inputs(facts: IndexFacts, before: IndexFacts, *, progress: Progress) -> list[Found]:
    """List all inputs, and put into `facts` what the next run compares with."""
    # By path: of two inputs that lead there, the first counts.
    files: dict[str, Found] = {}
    skipped = Counter[str]()
    mounts = set[Path]()
    facts.folders = {}
    for origin in facts.inputs:
        identity = folder_identity(origin)
        listed = _list_input(origin, before, skipped=skipped, mounts=mounts, progress=progress)
        # A disk that comes or goes meanwhile would make its images look deleted.
        if identity != folder_identity(origin):
            raise MissingInputError(
                f"{origin} was mounted, unmounted or replaced while it was listed", origin
            )
        for file in listed:
            files.setdefault(file.path, file)
        if identity is not None:
            facts.folders[origin] = identity
    for path in {Path(mount) for mount in before.mounts} - mounts:
        # A disk within an input that was there last time: its images are not gone.
        is_below = any(path.is_relative_to(origin) for origin in facts.folders)
        if is_below and not any(name.startswith(f"{path}/") for name in files):
            mounts.add(path)
            files[str(path)] = Found(str(path), "unreadable", "", 0, str(path), reason=_UNMOUNTED)
    facts.skipped = dict(skipped)
    facts.mounts = sorted(str(path) for path in mounts)
    return list(files.values())


def _list_input(
    origin: str,
    before: IndexFacts,
    *,
    skipped: Counter[str],
    mounts: set[Path],
    progress: Progress,
) -> list[Found]:
    is_new = origin not in before.inputs
    if not is_new and was_deleted(origin):
        return []
    listed = []
    try:
        for file in find(origin, skipped=skipped, mounts=mounts):
            listed.append(file)
            if len(listed) % _LISTED_EVERY == 0:
                progress.update(f"listing {origin}", len(listed), None)
    except ValueError as error:
        if is_new:
            raise
        raise MissingInputError(str(error), origin) from error
    if listed:
        return listed
    reason = f"{origin} holds no image, .tar or .parquet file"
    if is_new:
        raise ValueError(reason)
    # A folder that was emptied is still the same one; an empty mount point is not that of its disk.
    if before.folders.get(origin) != (folder_identity(origin) or ""):
        raise MissingInputError(
            f"{reason}, and is another folder than before: its disk may not be mounted", origin
        )
    return []


class _Update:
    """A run over files: images that are new or changed are written, those that are gone deleted.

    The table is valid whenever the run is interrupted.
    """

    def __init__(
        self,
        store: Store,
        reader: Reader,
        files: Sequence[Found],
        progress: Progress,
        *,
        stop: Callable[[], bool],
    ) -> None:
        self._store = store
        self._reader = reader
        self._files = files
        self._progress = progress
        self._stop = stop
        self._num_bytes = sum(file.size for file in files)
        self._num_read = 0
        self._counts = dict.fromkeys(("encoded", "reused", "unchanged", "deleted", "bad"), 0)
        # New ones by id, which are not written yet.
        self._rows: dict[str, ImageRow] = {}
        self._started_at = self._written_at = time.monotonic()
        # Ids of images.
        self._seen: set[str] = set()
        # Of the images in the table, once they are asked for.
        self._hashes: set[str] | None = None
        # Stamps of shards that were read, by path.
        self._done: dict[str, str] = {}
        # Shards whose last rows are not written yet.
        self._finished: list[Found] = []
        # Shards that were done before and have not changed.
        self._unread: set[str] = set()
        # Shards that were not read to their ends.
        self._broken: set[str] = set()
        shards = store.folder / SHARDS_FILE
        if shards.is_file():
            paths = {file.path for file in files}
            stamps: dict[str, str] = read_json(shards)
            self._done = {path: stamp for path, stamp in stamps.items() if path in paths}

    def run(self, embed: Callable[..., Iterator[Batch]]) -> dict[str, int]:
        """Embed new images and remove those that are gone; return the counts of `BuildReport`."""
        # A model may take minutes for the first batch.
        self._advance(0, unchanged=0)
        quarantine_file = self._store.folder / QUARANTINE_FILE
        quarantine = QuarantineFile(quarantine_file)
        lines_before = read_lines(quarantine_file)
        lines = []
        try:
            for batch in embed(self._works(), lookup=self._lookup):
                self._add(batch)
                quarantine.add(batch.bad)
                lines += [bad.line() for bad in batch.bad]
                self._check_stop()
                if self._is_due():
                    self._write()
                self._advance(batch.size, unchanged=len(batch.unchanged))
        except StoppedError:
            self._write()
            raise
        self._write()
        self._delete()
        # Lines of this run, and older ones about shards that were not read again.
        kept = [line for line in lines_before if line["path"] in self._unread | self._broken]
        texts = dict.fromkeys(to_lines([line]) for line in [*kept, *lines])
        write_file(quarantine_file, "".join(texts))
        self._counts["bad"] = len(texts)
        return self._counts

    def _add(self, batch: Batch) -> None:
        for row in batch.rows:
            self._rows[row["id"]] = row
            self._seen.add(row["id"])
        self._seen.update(batch.unchanged)
        self._counts["encoded"] += batch.num_encoded
        self._counts["reused"] += len(batch.rows) - batch.num_encoded
        for bad in batch.bad:
            if bad.kind == "shard":
                self._broken.add(bad.shard)
        if batch.finished is not None:
            self._finished.append(batch.finished)

    def _check_stop(self) -> None:
        if self._stop():
            raise StoppedError

    def _works(self) -> Iterator[Work]:
        """Yield what is new or may have changed; the rest counts as unchanged."""
        for shard in self._files:
            if shard.kind == "file":
                continue
            if self._done.get(shard.path) == self._reader.stamp(shard):
                self._unread.add(shard.path)
                self._advance(shard.size, unchanged=0)
            else:
                # The whole shard is read again; what has not changed in it is not embedded.
                yield Work([shard], self._store.stamps("shard", [shard.path]))
        files = [file for file in self._files if file.kind == "file"]
        for start in range(0, len(files), _TOGETHER):
            # Here too: files that have not changed make no batch.
            self._check_stop()
            files_by_id = {image_id(file.path): file for file in files[start : start + _TOGETHER]}
            stamps = self._store.stamps("id", list(files_by_id))
            changed = []
            size = 0
            for key, file in files_by_id.items():
                if key in stamps and stamps[key][0] == self._reader.stamp(file):
                    self._seen.add(key)
                    size += file.size
                else:
                    changed.append(file)
            self._advance(size, unchanged=len(files_by_id) - len(changed))
            if changed:
                yield Work(changed, stamps)

    def _lookup(self, hashes: Sequence[str]) -> dict[str, Encoded]:
        """Return what was encoded before from the same bytes, by their hashes."""
        if self._hashes is None:
            self._hashes = set()
            for rows in self._store.scan(["hash"]):
                self._hashes.update(rows["hash"].to_pylist())
        # Most images are new: to ask the table about each batch would take longer as it grows.
        stored = [*self._hashes.intersection(hashes)]
        columns = [*ENCODED, OCR_COLUMN] if self._reader.ocr else ENCODED
        if not stored or not {*columns} <= {*ENCODED, *self._store.columns()}:
            return {}
        encoded = {}
        for row in self._store.rows("hash", stored, columns=["hash", *columns]):
            # A row whose text was not read yet gives nothing.
            if row[columns[-1]] is not None:
                encoded[row["hash"]] = {name: row[name] for name in columns}
        return encoded

    def _is_due(self) -> bool:
        """Return True if new rows wait for long enough, or are enough, to be written."""
        size = sum(len(row["bytes"] or b"") + len(row["thumbnail"]) for row in self._rows.values())
        # The first ones soon, for those who search meanwhile.
        pause = min(_WRITTEN_EVERY_S, self._written_at - self._started_at + _FIRST_WRITTEN_S)
        is_late = time.monotonic() - self._written_at >= pause
        return is_late or len(self._rows) >= _WRITTEN_ROWS or size >= _WRITTEN_BYTES

    def _write(self) -> None:
        """Write new rows, and then note the shards that end with them, which are not read again before they change."""
        if self._rows:
            self._store.write(list(self._rows.values()))
            if self._hashes is not None:
                self._hashes.update(row["hash"] for row in self._rows.values())
        self._rows = {}
        for shard in self._finished:
            # Noted after its rows: after a kill in between, the shard is only read once more.
            self._done.pop(shard.path, None)
            if shard.path not in self._broken:
                self._done[shard.path] = self._reader.stamp(shard)
        write_file(self._store.folder / SHARDS_FILE, json.dumps(self._done, indent=1))
        self._finished = []
        self._written_at = time.monotonic()

    def _advance(self, size: int, *, unchanged: int) -> None:
        self._counts["unchanged"] += unchanged
        self._num_read += size
        done = sum(self._counts[name] for name in ("encoded", "reused", "unchanged"))
        self._progress.update("indexing", self._num_read, self._num_bytes, note=f"{done} images")

    def _delete(self) -> None:
        """Remove images that were not seen, unless their shard or folder was not read."""
        # A folder that cannot be listed may still hold its images.
        unreadable = tuple(f"{file.path}/" for file in self._files if file.kind == "unreadable")
        gone: list[str] = []
        for rows in self._store.scan(["id", "shard", "path"]):
            for row in rows.to_pylist():
                if row["shard"] in self._unread:
                    self._counts["unchanged"] += 1
                elif row["id"] in self._seen or row["shard"] in self._broken:
                    continue
                elif not row["path"].startswith(unreadable):
                    gone.append(row["id"])
        for start in range(0, len(gone), _DELETED_AT_ONCE):
            self._store.delete(gone[start : start + _DELETED_AT_ONCE])
        self._counts["deleted"] = len(gone)
