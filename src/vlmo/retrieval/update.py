"""Brings the tables of an index in line with what lies in its inputs."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from rich.console import Console

from vlmo.data.stream.records import Bad
from vlmo.folder import write_file
from vlmo.retrieval.journal import Journal
from vlmo.retrieval.listing import Listing
from vlmo.retrieval.pictures import Looks
from vlmo.retrieval.places import Found
from vlmo.retrieval.progress import ByteProgress
from vlmo.retrieval.quarantine import IndexQuarantine
from vlmo.retrieval.reading import Reader
from vlmo.retrieval.store import Known, Store
from vlmo.retrieval.tasks import Engine, Group, Task, task_ids

SHARDS_FILE = "shards.jsonl"
_LOOKED_UP = 2048
_DELETED_AT_ONCE = 1024


@dataclass
class Counts:
    """What a run did."""

    encoded: int = 0
    reused: int = 0
    unchanged: int = 0
    deleted: int = 0
    bad: int = 0


class Update:
    """One run over all inputs of an index.

    Args:
        store: The tables.
        reader: Reads pictures.
        listing: What lies in the inputs.
        console: Where the progress goes; None shows nothing.
    """

    def __init__(self, store: Store, *, reader: Reader, listing: Listing, console: Console | None) -> None:
        self._store, self._reader, self._listing = store, reader, listing
        self._bar = ByteProgress(console, total=listing.size)
        self.counts = Counts()
        self._seen = array("Q")
        self._done = _read_done(store)
        self._listed: set[str] = set()
        self._settled: set[str] = set()
        self._begun: Counter[str] = Counter()

    def run(self, engine: Engine) -> Counts:
        """Embeds and removes; the tables are whole whenever this is interrupted.

        Raises:
            ValueError: The index is damaged.
        """
        self._journal = Journal(self._store)
        for batch in self._store.scan(["shard"], where="shard is not null"):
            self._begun.update(batch["shard"].to_pylist())
        self._quarantine = IndexQuarantine(self._store.folder)
        with self._bar:
            engine.run(self._tasks(), reader=self._reader, sink=self)
        self._journal.close()
        self._sweep()
        self._write_done()
        self.counts.bad = self._quarantine.finish(settled=self._settled.__contains__)
        return self.counts

    # --------------------------------------------------------------------------------------------- what is to be done

    def _tasks(self) -> Iterator[Task]:
        files: list[Found] = []
        for found in self._listing:
            if found.kind == "file":
                files.append(found)
                if len(files) >= _LOOKED_UP:
                    yield from self._files_task(files)
                    files = []
            elif found.place not in self._listed:
                self._listed.add(found.place)
                yield from self._shard_task(found)
        yield from self._files_task(files)

    def _files_task(self, files: list[Found]) -> Iterator[Task]:
        known = self._journal.known(task_ids(files))
        changed: dict[str, Found] = {}
        for id, found in zip(task_ids(files), files, strict=True):  # noqa: A001
            stamp = self._reader.stamp(found)  # of new files too: the tables hear here which names there are
            if id in known and known[id].stamp == stamp:
                self._mark([id])
                self._advance(found.size, unchanged=1)
            else:
                changed[id] = found
        if changed:
            yield Task(list(changed.values()), {id: known[id] for id in changed if id in known})  # noqa: A001

    def _shard_task(self, found: Found) -> Iterator[Task]:
        if self._done.get(found.place) == self._reader.stamp(found):
            self._settled.add(found.place)
            self._advance(found.size, unchanged=self._begun[found.place])
            return
        yield Task([found], self._known_of(found.place) if found.place in self._begun else {})

    def _known_of(self, shard: str) -> dict[str, Known]:
        rows = [
            row
            for batch in self._store.scan(["id", "stamp", "hash"], where=_of_shard(shard))
            for row in batch.to_pylist()
        ]
        return {row["id"]: Known(row["stamp"], row["hash"]) for row in rows}

    # ------------------------------------------------------------------------------------------------ what comes back

    def looks(self, hashes: Sequence[str]) -> dict[str, Looks]:
        """What the index has of pictures with these bytes."""
        return self._journal.looks(hashes)

    def take(self, group: Group) -> None:
        """Marks what is unchanged, tells of what is bad, and moves the bar."""
        self._mark(group.unchanged)
        for bad in group.bad:
            self._quarantine.add(bad)
        self._advance(group.size, unchanged=len(group.unchanged))

    def refuse(self, bad: Bad) -> None:
        """Tells of a picture that cannot be decoded."""
        self._quarantine.add(bad)

    def write(self, rows: pa.Table, *, looks: Sequence[Looks], encoded: int, fresh: bool) -> None:
        """Takes rows; a process that is killed after this does not lose them."""
        self._journal.add(rows, looks=looks, fresh=fresh)
        self._mark(rows["id"].to_pylist())
        self.counts.encoded += encoded
        self.counts.reused += len(rows) - encoded
        self._advance(0, unchanged=0)

    def finish(self, task: Task, *, whole: bool) -> None:
        """Remembers a shard, so that it is not read again before it changes."""
        shard = task.shard
        if shard is None:
            return
        if whole:
            self._done[shard.place] = self._reader.stamp(shard)
            with (self._store.folder / SHARDS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"shard": shard.place, "stamp": self._done[shard.place]}) + "\n")
        else:
            # What could not be read this time may be there: its pictures stay.
            self._settled.add(shard.place)
            self._done.pop(shard.place, None)

    def _mark(self, ids: Sequence[str]) -> None:
        self._seen.extend(int(id[:16], 16) for id in ids)  # noqa: A001

    def _advance(self, size: int, *, unchanged: int) -> None:
        self.counts.unchanged += unchanged
        done = self.counts.encoded + self.counts.reused + self.counts.unchanged
        self._bar.advance(size, text=f"{done} pictures")

    # -------------------------------------------------------------------------------------------------- what is gone

    def _sweep(self) -> None:
        """Removes pictures that were not seen, unless their shard was not read."""
        seen = np.unique(np.frombuffer(self._seen, dtype=np.uint64)) if self._seen else np.zeros(0, np.uint64)
        gone: list[str] = []
        for batch in self._store.scan(["id", "shard"]):
            ids = batch["id"].to_pylist()
            numbers = np.array([int(id[:16], 16) for id in ids], dtype=np.uint64)  # noqa: A001
            there = np.isin(numbers, seen)
            shards = batch["shard"].to_pylist()
            gone += [
                id
                for id, is_there, shard in zip(ids, there, shards, strict=True)  # noqa: A001
                if not is_there and shard not in self._settled
            ]
        for start in range(0, len(gone), _DELETED_AT_ONCE):
            self._store.delete(gone[start : start + _DELETED_AT_ONCE])
        self.counts.deleted = len(gone)

    def _write_done(self) -> None:
        lines = [json.dumps({"shard": shard, "stamp": stamp}) for shard, stamp in self._done.items()]
        write_file(self._store.folder / SHARDS_FILE, "".join(f"{line}\n" for line in lines if line))


def _of_shard(shard: str) -> str:
    quoted = shard.replace("'", "''")
    return f"shard = '{quoted}'"


def _read_done(store: Store) -> dict[str, str]:
    """Stamps of the shards that were read to their ends; half a line, left by a kill, is nothing."""
    path = store.folder / SHARDS_FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return {record["shard"]: record["stamp"] for record in records}
