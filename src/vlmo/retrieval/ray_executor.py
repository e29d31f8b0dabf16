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
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from vlmo.retrieval.executor import Executor, Finished, Group, Lookup, RecordEncoder, Rows, Step, Task, read_groups
from vlmo.retrieval.sources import Reader

if TYPE_CHECKING:
    from vlmo.retrieval.encoder import Encoder

_SHARE = 0.5
"""CPUs that a reading task or an actor asks for, so that both find room on a machine of two."""


def ray_executor(encoder: Encoder, *, batch: int, workers: int) -> Executor:
    """Return the executor of some actors of a Ray cluster, each with the model.

    The cluster is the one that this process has joined, that `RAY_ADDRESS` names, or a new one on this machine. Images
    with the same bytes are embedded once a group, or not if their row exists.

    Args:
        encoder: The model, whose folder the actors read.
        batch: Images that go through a model at a time.
        workers: Number of actors.
    """
    device = encoder.device.partition(":")[0]
    settings = {"dim": encoder.dim, "engine": encoder.engine, "precision": encoder.precision, "device": device}

    def run(tasks: Iterable[Task], reader: Reader, lookup: Lookup) -> Iterator[Step]:
        given = list(tasks)
        if not given:
            return
        items = [{"task": number, "content": pickle.dumps(task)} for number, task in enumerate(given)]
        function: Any = _read  # Ray's annotation knows no functions with more arguments
        with _cluster(workers):
            read = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                function, batch_size=1, batch_format="pyarrow", fn_kwargs={"reader": reader}, num_cpus=_SHARE
            )
            results = read.map_batches(
                _Embedder,
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=workers),
                fn_constructor_kwargs={"folder": str(encoder.folder.absolute()), "batch": batch, **settings},
                num_cpus=_SHARE,
                num_gpus=1 if device == "cuda" else None,
            )
            yield from _steps(results.iter_batches(batch_size=None, batch_format="pyarrow"), given, lookup)

    return run


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


# Rows travel as pickles. A reader sends each group of a task with the hashes that the index knows, and then the number
# of groups. An actor sends the steps of each group.


def _row(task: int, content: Any) -> pa.Table:
    return pa.table({"task": [task], "content": pa.array([pickle.dumps(content)], pa.large_binary())})


def _read(rows: pa.Table, *, reader: Reader) -> Iterator[pa.Table]:
    """Read a task."""
    number, task = rows["task"][0].as_py(), pickle.loads(rows["content"][0].as_py())
    known = {known.hash for known in task.known.values()}
    count = 0
    for group in read_groups(task, reader):
        count += 1
        yield _row(number, (group, known.intersection(record.hash for record in group.records)))
    yield _row(number, count)


class _Embedder:
    """An actor's model, for the images of groups."""

    def __init__(self, *, folder: str, batch: int, **settings: Any) -> None:
        import torch

        from vlmo.retrieval.encoder import Encoder

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
        self._encoder = RecordEncoder(Encoder(folder, **settings), batch=batch)

    def __call__(self, row: pa.Table) -> pa.Table:
        """Return a group with the rows of its images; `None` stands for results that the index has."""
        content = pickle.loads(row["content"][0].as_py())
        if isinstance(content, int):
            return row
        group, known = content
        started = self._encoder.start(record for record in group.records if record.hash not in known)
        results: Any = dict.fromkeys(known)
        steps = [group._replace(records=[]), *self._encoder.embed(group.records, started, results=results)]
        return _row(row["task"][0].as_py(), steps)


def _steps(tables: Iterable[pa.Table], tasks: Sequence[Task], lookup: Lookup) -> Iterator[Step]:
    """Turn Ray's rows, in whatever order they come, into the steps of an executor."""
    arrived: Counter[int] = Counter()
    ends: dict[int, int] = {}
    for table in tables:
        for task, data in zip(table["task"].to_pylist(), table["content"].to_pylist(), strict=True):
            content: int | list[Group | Rows] = pickle.loads(data)
            if isinstance(content, int):
                ends[task] = content
            else:
                arrived[task] += 1
                for step in content:
                    yield _filled(step, lookup) if isinstance(step, Rows) else step
            shard = tasks[task].shard
            if shard is not None and arrived[task] == ends.get(task):
                yield Finished(shard)


def _filled(rows: Rows, lookup: Lookup) -> Rows:
    """Return the rows with the results that the index has."""
    pairs = list(zip(rows.records, rows.encoded, strict=True))
    known = lookup([record.hash for record, result in pairs if result is None])
    return rows._replace(encoded=[result or known[record.hash] for record, result in pairs])
