"""Embeds images with Ray Data, on this machine or on a cluster.

Tasks are read wherever there is room, and their images stream through actors that hold a model each, to this process,
which alone writes the tables. Every machine must see the model folder and the inputs at the same places.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext

from vlmo.data.stream.records import Bad
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.engine import Encoded, Finished, Group, Lookup, RecordEncoder, Rows, Task, read_groups
from vlmo.retrieval.sources import Reader

_SHARE = 0.5
"""CPUs that a reading task or an actor asks for, so that both find room on a machine of two."""


class _End(NamedTuple):
    """Number of groups of a task, and true if it could be read to its end."""

    groups: int
    complete: bool


class RayEngine:
    """Some actors of a Ray cluster, each with the model.

    The cluster is the one that this process has joined, that `RAY_ADDRESS` names, or a new one on this machine.

    Args:
        encoder: The model, whose folder the actors read.
        workers: Number of actors.
        batch: Images that go through a model at a time.
        thumbnail: Longest side of thumbnails, in pixels.

    Raises:
        ValueError: There is no worker.
    """

    def __init__(self, encoder: Encoder, *, workers: int, batch: int, thumbnail: int) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; give a number from 1 up")
        self._workers = workers
        self._settings = {
            "folder": str(encoder.folder.absolute()),
            "device": encoder.device.type,
            "batch": batch,
            "thumbnail": thumbnail,
        }

    def run(self, tasks: Iterable[Task], *, reader: Reader, lookup: Lookup) -> Iterator[Group | Rows | Finished]:
        """See `Engine.run`. Images with the same bytes are embedded once a group, or not if their row exists."""
        given = list(tasks)
        if not given:
            return
        items = [{"task": number, "content": pickle.dumps(task)} for number, task in enumerate(given)]
        function: Any = _read  # Ray's annotation knows no functions with more arguments
        with _cluster(self._workers):
            read = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                function, batch_size=1, batch_format="pyarrow", fn_kwargs={"reader": reader}, num_cpus=_SHARE
            )
            results = read.map_batches(
                _Embedder,
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=self._workers),
                fn_constructor_kwargs=self._settings,
                num_cpus=_SHARE,
                num_gpus=1 if self._settings["device"] == "cuda" else None,
            )
            yield from _steps(results.iter_batches(batch_size=None, batch_format="pyarrow"), given, lookup=lookup)


@contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """Start Ray if need be, and then stop it at the end."""
    ours = not ray.is_initialized()
    if ours:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
        if "RAY_ADDRESS" not in os.environ:
            options |= {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, workers)}
        ray.init(**options)
    context = DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        if ours:
            ray.shutdown()


# Rows travel as pickles: of the groups of a task, and its `_End`. An actor puts the `Rows` of a group beside it.


def _row(task: int, content: Group | _End, beside: Any = None) -> pa.Table:
    return pa.table({"task": [task], "content": pa.array([pickle.dumps((content, beside))], pa.large_binary())})


def _read(rows: pa.Table, *, reader: Reader) -> Iterator[pa.Table]:
    """Read a task; the hashes beside a group are of images that the index has a vector of."""
    number, task = rows["task"][0].as_py(), pickle.loads(rows["content"][0].as_py())
    known = {known.hash for known in task.known.values()}
    count, complete = 0, True
    for group in read_groups(task, reader):
        count += 1
        complete = complete and not any(bad.kind == "shard" for bad in group.bad)
        yield _row(number, group, known.intersection(record.hash for record in group.records))
    yield _row(number, _End(count, complete))


class _Embedder:
    """An actor's model, for the images of groups."""

    def __init__(self, *, folder: str, device: str, batch: int, thumbnail: int) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
        self._encoder, self._batch = RecordEncoder(Encoder(folder, device=device), thumbnail=thumbnail), batch

    def __call__(self, row: pa.Table) -> pa.Table:
        """A group with the rows of its images; `None` stands for results that the index has."""
        group, known = pickle.loads(row["content"][0].as_py())
        if isinstance(group, _End):
            return row
        fresh = list({record.hash: record for record in group.records if record.hash not in known}.values())
        results: dict[str, Encoded | Bad] = {}
        for start in range(0, len(fresh), self._batch):
            part = fresh[start : start + self._batch]
            done = self._encoder.finish(part, [self._encoder.start(record) for record in part])
            results |= zip([record.hash for record in part], done, strict=True)
        records = []
        for record in group.records:
            result = results.get(record.hash)
            if isinstance(result, Bad):
                group.bad.append(record.bad(result.reason))
            else:
                records.append(record)
        encoded: list[Any] = [results.get(record.hash) for record in records]
        num_encoded = sum(not isinstance(result, Bad) for result in results.values())
        rows = Rows(records, encoded, self._encoder.captions(records), num_encoded)
        return _row(row["task"][0].as_py(), group, rows)


def _steps(tables: Iterable[pa.Table], tasks: list[Task], *, lookup: Lookup) -> Iterator[Group | Rows | Finished]:
    """Turn Ray's rows, in whatever order they come, into the steps of an engine."""
    arrived: Counter[int] = Counter()
    ends: dict[int, _End] = {}
    for table in tables:
        for task, data in zip(table["task"].to_pylist(), table["content"].to_pylist(), strict=True):
            content, rows = pickle.loads(data)
            if isinstance(content, _End):
                ends[task] = content
            else:
                arrived[task] += 1
                yield content
                known = lookup([r.hash for r, result in zip(rows.records, rows.encoded, strict=True) if result is None])
                filled = [result or known[r.hash] for r, result in zip(rows.records, rows.encoded, strict=True)]
                if filled:
                    yield rows._replace(encoded=filled)
            shard = tasks[task].shard
            if shard is not None and task in ends and arrived[task] == ends[task].groups:
                yield Finished(shard, ends[task].complete)
