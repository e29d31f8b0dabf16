"""Embeds images with Ray Data, on this machine or on a cluster.

Tasks are read wherever there is room, and their images stream through actors that hold a model each, to this process,
which alone writes the tables. Every machine must see the model folder and the inputs at the same places.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import pyarrow as pa
import ray
import torch
from jaxtyping import Float32
from numpy import ndarray
from ray.data import ActorPoolStrategy, DataContext

from vlmo.data.stream.records import Bad
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.engine import Encoded, Finished, Group, Lookup, RecordEncoder, Rows, Task, read_groups
from vlmo.retrieval.sources import Reader, Record

_SHARE = 0.5
"""CPUs that a reading task or an actor asks for, so that both find room on a machine of two."""


class _Made(NamedTuple):
    """An image with its results; `encoded` is None if the index has a vector of the same bytes."""

    record: Record
    encoded: Encoded | None
    captions: Float32[ndarray, "caption dim"] | None


class _End(NamedTuple):
    """Number of rows of a task, and true if it could be read to its end."""

    rows: int
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
        self._workers, self._batch = workers, batch
        self._settings = {
            "folder": str(encoder.folder.absolute()),
            "device": encoder.device.type,
            "thumbnail": thumbnail,
        }

    def run(self, tasks: Iterable[Task], *, reader: Reader, lookup: Lookup) -> Iterator[Group | Rows | Finished]:
        """See `Engine.run`. Images with the same bytes are embedded once a batch, or not if their row exists."""
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
                batch_size=self._batch,
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


# Rows travel as pickles: of a `Record` to embed, a `_Made`, the id of an unchanged image, a `Bad`, the `Group` of the
# bytes that were read, and once a task its `_End`.


def _table(task: int, contents: Sequence[Any]) -> pa.Table:
    return pa.table({"task": [task] * len(contents), "content": _pickled(contents)})


def _pickled(contents: Iterable[Any]) -> pa.Array:
    return pa.array([pickle.dumps(content) for content in contents], pa.large_binary())


def _read(rows: pa.Table, *, reader: Reader) -> Iterator[pa.Table]:
    """The rows of a task, a table for each group of images."""
    number, task = rows["task"][0].as_py(), pickle.loads(rows["content"][0].as_py())
    known = {known.hash for known in task.known.values()}
    count, complete = 0, True
    for group in read_groups(task, reader):
        records = [_Made(each, None, None) if each.hash in known else each for each in group.records]
        table = _table(number, [*records, *group.unchanged, *group.bad, Group([], [], [], group.size)])
        count += len(table)
        complete = complete and not any(bad.kind == "shard" for bad in group.bad)
        yield table
    yield _table(number, [_End(count, complete)])


class _Embedder:
    """An actor's model, for the images among the rows; other rows pass."""

    def __init__(self, *, folder: str, device: str, thumbnail: int) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
        self._encoder = RecordEncoder(Encoder(folder, device=device), thumbnail=thumbnail)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The same rows, with the results of images."""
        contents = [pickle.loads(content) for content in rows["content"].to_pylist()]
        fresh = {each.hash: each for each in contents if isinstance(each, Record)}
        results = self._encoder.finish(list(fresh.values()), [self._encoder.start(each) for each in fresh.values()])
        made = dict(zip(fresh, results, strict=True))
        images = [each.record if isinstance(each, _Made) else each for each in contents]
        captions = iter(self._encoder.captions([each for each in images if isinstance(each, Record)]))
        for row, content in enumerate(contents):
            if isinstance(content, _Made):
                contents[row] = content._replace(captions=next(captions))
            elif isinstance(content, Record):
                result, vectors = made[content.hash], next(captions)
                refused = isinstance(result, Bad)
                contents[row] = content.bad(result.reason) if refused else _Made(content, result, vectors)
        return rows.set_column(1, "content", _pickled(contents))


def _steps(tables: Iterable[pa.Table], tasks: list[Task], *, lookup: Lookup) -> Iterator[Group | Rows | Finished]:
    """Turn Ray's rows, in whatever order they come, into the steps of an engine."""
    arrived: Counter[int] = Counter()
    ends: dict[int, _End] = {}
    for table in tables:
        made: list[_Made] = []
        group = Group([], [], [], 0)
        for task, data in zip(table["task"].to_pylist(), table["content"].to_pylist(), strict=True):
            content = pickle.loads(data)
            arrived[task] += 1
            if isinstance(content, _End):
                arrived[task] -= 1
                ends[task] = content
            elif isinstance(content, Group):
                group = group._replace(size=group.size + content.size)
            elif isinstance(content, _Made):
                made.append(content)
            else:
                (group.bad if isinstance(content, Bad) else group.unchanged).append(content)
        yield group
        if made:
            known = lookup([each.record.hash for each in made if each.encoded is None])
            yield Rows(
                [each.record for each in made],
                [each.encoded or known[each.record.hash] for each in made],
                [cast("Any", each.captions) for each in made],
                sum(each.encoded is not None for each in made),
            )
        for number in [number for number, end in ends.items() if arrived[number] >= end.rows]:
            complete, shard = ends.pop(number).complete, tasks[number].shard
            if shard is not None:
                yield Finished(shard, complete)
