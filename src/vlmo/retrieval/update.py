"""Brings the tables of an index in line with its inputs."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from vlmo.data.quarantine import QuarantineFile, read_lines, to_lines
from vlmo.folder.atomic import write_file
from vlmo.progress import Progress
from vlmo.retrieval.executor import Executor, Finished, Rows, Task
from vlmo.retrieval.journal import Journal
from vlmo.retrieval.sources import Found, Reader, image_id
from vlmo.retrieval.store import Known, Store

SHARDS_FILE, QUARANTINE_FILE = "shards.jsonl", "quarantine.jsonl"
_LOOKED_UP = 2048
_DELETED_AT_ONCE = 1024


class Update:
    """One run over all inputs of an index.

    Args:
        store: The tables.
        reader: Reads images.
        size: Bytes of all inputs.
        progress: Progress in bytes.
    """

    def __init__(self, store: Store, *, reader: Reader, size: int, progress: Progress) -> None:
        self._store, self._reader, self._progress = store, reader, progress
        self._size, self._read = size, 0
        self.counts = dict.fromkeys(("encoded", "reused", "unchanged", "deleted", "bad"), 0)
        self._seen = array("Q")  # the first 64 bits of the ids that are still there
        # Stamps of the shards that were read to their ends.
        self._done = {line["shard"]: line["stamp"] for line in read_lines(store.folder / SHARDS_FILE)}
        self._settled: set[str] = set()  # shards that were not read again, or not to their ends: their images stay
        self._unreadable: tuple[str, ...] = ()  # folders, with "/": images below stay too

    def run(self, executor: Executor, listing: Iterable[Found]) -> dict[str, int]:
        """Embed new images and remove those that are gone; the tables are valid whenever this is interrupted.

        Return the numbers of images by what was done with them, as in `BuildReport`.

        Raises:
            ValueError: The index is damaged.
        """
        journal, quarantine = Journal(self._store), QuarantineFile(self._store.folder / QUARANTINE_FILE)
        bad_before, bad_now = read_lines(self._store.folder / QUARANTINE_FILE), []
        tasks = self._tasks(listing, journal)
        for step in executor(tasks, self._reader, journal.encoded):
            if isinstance(step, Finished):
                self._finish(step.shard)
                continue
            if isinstance(step, Rows):
                journal.add(step)
                self._mark(record.id for record in step.records)
                self.counts["encoded"] += step.num_encoded
                self.counts["reused"] += len(step.records) - step.num_encoded
                self._advance(0, unchanged=0)
            else:
                self._mark(step.unchanged)
                quarantine.add(step.bad)
                bad_now += [bad.line() for bad in step.bad]
                # The part of a shard that could not be read this time may exist: its images stay.
                self._settled.update(bad.shard for bad in step.bad if bad.kind == "shard")
                self._advance(step.size, unchanged=len(step.unchanged))
        journal.close()
        self._delete_unseen()
        write_file(self._store.folder / SHARDS_FILE, "".join(_done_line(*done) for done in self._done.items()))
        # Lines of this run, and older ones about shards that were not read again.
        bad_before = [line for line in bad_before if line["path"] in self._settled]
        lines = list(dict.fromkeys(to_lines([line]) for line in [*bad_before, *bad_now]))
        write_file(self._store.folder / QUARANTINE_FILE, "".join(lines))
        self.counts["bad"] = len(lines)
        return self.counts

    def _tasks(self, listing: Iterable[Found], journal: Journal) -> Iterator[Task]:
        """Tasks of what is new or may have changed; the rest counts as unchanged."""
        begun: Counter[str] = Counter()  # images of shards in the table
        for batch in self._store.scan(["shard"], where="shard is not null"):
            begun.update(batch["shard"].to_pylist())
        files: list[Found] = []
        listed: set[str] = set()
        for found in listing:
            if found.kind == "file":
                files.append(found)
                if len(files) >= _LOOKED_UP:
                    yield from self._files_task(files, journal)
                    files = []
            elif found.place not in listed:
                listed.add(found.place)
                self._unreadable += (f"{found.place}/",) if found.kind == "unreadable" else ()
                if self._done.get(found.place) == self._reader.stamp(found):
                    self._settled.add(found.place)
                    self._advance(found.size, unchanged=begun[found.place])
                else:
                    known: dict[str, Known] = {}
                    if found.place in begun:
                        where = "shard = '{}'".format(found.place.replace("'", "''"))
                        for batch in self._store.scan(["id", "stamp", "hash"], where=where):
                            known |= {row["id"]: Known(row["stamp"], row["hash"]) for row in batch.to_pylist()}
                    yield Task([found], known)
        yield from self._files_task(files, journal)

    def _files_task(self, files: list[Found], journal: Journal) -> Iterator[Task]:
        ids = [image_id(found.place) for found in files]
        known = journal.known(ids)
        changed: dict[str, Found] = {}
        for id, found in zip(ids, files, strict=True):  # noqa: A001
            stamp = self._reader.stamp(found)  # of new files too: it marks names in tables as used
            if id in known and known[id].stamp == stamp:
                self._mark([id])
                self._advance(found.size, unchanged=1)
            else:
                changed[id] = found
        if changed:
            yield Task(list(changed.values()), {id: known[id] for id in changed if id in known})  # noqa: A001

    def _finish(self, shard: Found) -> None:
        """Remember a shard that was read to its end, so that it is not read again before it changes."""
        if shard.place in self._settled:
            self._done.pop(shard.place, None)
        else:
            self._done[shard.place] = self._reader.stamp(shard)
            with (self._store.folder / SHARDS_FILE).open("a", encoding="utf-8") as file:
                file.write(_done_line(shard.place, self._done[shard.place]))

    def _mark(self, ids: Iterable[str]) -> None:
        self._seen.extend(int(id[:16], 16) for id in ids)  # noqa: A001

    def _advance(self, size: int, *, unchanged: int) -> None:
        self.counts["unchanged"] += unchanged
        self._read += size
        done = self.counts["encoded"] + self.counts["reused"] + self.counts["unchanged"]
        self._progress.update("indexing", self._read, self._size, note=f"{done} images")

    def _delete_unseen(self) -> None:
        """Remove images that were not seen, unless their shard or folder was not read."""
        seen = np.unique(np.frombuffer(self._seen, dtype=np.uint64)) if self._seen else np.zeros(0, np.uint64)
        gone: list[str] = []
        for batch in self._store.scan(["id", "shard", "place"]):
            ids, shards = batch["id"].to_pylist(), batch["shard"].to_pylist()
            places = batch["place"].to_pylist()
            there = np.isin(np.array([int(id[:16], 16) for id in ids], dtype=np.uint64), seen)  # noqa: A001
            rows = zip(ids, there, shards, places, strict=True)
            gone += [
                image_id
                for image_id, is_there, shard, place in rows
                if not (is_there or shard in self._settled or place.startswith(self._unreadable))
            ]
        for start in range(0, len(gone), _DELETED_AT_ONCE):
            self._store.delete(gone[start : start + _DELETED_AT_ONCE])
        self.counts["deleted"] = len(gone)


def _done_line(shard: str, stamp: str) -> str:
    return json.dumps({"shard": shard, "stamp": stamp}) + "\n"
