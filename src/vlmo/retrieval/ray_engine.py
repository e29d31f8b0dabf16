"""Embeds pictures with Ray Data, on this machine or on a cluster, for an index.

Tasks are read wherever there is room, and what they read streams through actors that hold a model each, to this
process, which alone writes the tables. Every machine must see the model folder and the inputs at the same places.
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
from jaxtyping import Float32
from numpy import ndarray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from vlmo.data.stream.records import Bad
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.pictures import Looks, Picture, PictureEncoder, as_table
from vlmo.retrieval.reading import Reader
from vlmo.retrieval.tasks import Group, Sink, Task, read_groups

_READ, _EMBEDDED, _AGAIN, _REFUSED = "read", "embedded", "again", "refused"
_UNCHANGED, _BAD, _END = "unchanged", "bad", "end"
"""What a row is: a picture to embed; one that was; one whose bytes the index has a vector of; one that cannot be
decoded. Or else an id, what could not be read, and, once a task, its `_End`."""

_SCHEMA = pa.schema([("mark", pa.string()), ("task", pa.int64()), ("size", pa.int64()), ("content", pa.large_binary())])
_SHARE = 0.5
"""CPUs that a reading task or an actor asks for, so that both find room on a machine of two."""


class _Made(NamedTuple):
    """A picture with what a model has made of it; of one that the index knows, captions only."""

    picture: Picture
    looks: Looks | None
    captions: Float32[ndarray, "caption dim"]


class _End(NamedTuple):
    """How many rows of a task are written, and whether it could be read to its end."""

    pictures: int
    whole: bool


class RayEngine:
    """Some actors of a Ray cluster, each with the model.

    The cluster is the one that this process has joined, that `RAY_ADDRESS` names, or a new one on this machine.

    Args:
        encoder: The model, whose folder the actors read.
        workers: Number of actors.
        batch: Pictures that go through a model at a time.
        thumbnail: Longest side of thumbnails, in pixels.

    Raises:
        ValueError: There is no worker.
    """

    def __init__(self, encoder: Encoder, *, workers: int, batch: int, thumbnail: int) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; give a number from 1 up")
        self._dim, self._workers, self._batch = encoder.dim, workers, batch
        self._settings = {
            "folder": str(encoder.folder.absolute()),
            "device": encoder.device.type,
            "thumbnail": thumbnail,
        }

    def run(self, tasks: Iterable[Task], *, reader: Reader, sink: Sink) -> None:
        """Works on all tasks. Pictures with the same bytes are embedded once a batch, or not if their row is there."""
        given = list(tasks)
        if not given:
            return
        with _cluster(self._workers):
            progress = _Progress(given, sink=sink, dim=self._dim)
            for rows in self._results(given, reader).iter_batches(batch_size=None, batch_format="pyarrow"):
                progress.take(rows)

    def _results(self, tasks: list[Task], reader: Reader) -> Dataset:
        items = [{"task": number, "content": pickle.dumps(task)} for number, task in enumerate(tasks)]
        function: Any = _read  # Ray's annotation knows no functions with more arguments
        read = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            function, batch_size=1, batch_format="pyarrow", fn_kwargs={"reader": reader}, num_cpus=_SHARE
        )
        return read.map_batches(
            _Embedder,
            batch_size=self._batch,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=self._workers),
            fn_constructor_kwargs=self._settings,
            num_cpus=_SHARE,
            num_gpus=1 if self._settings["device"] == "cuda" else None,
        )


@contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """Ray, begun here if need be, and then ended here."""
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


def _read(rows: pa.Table, *, reader: Reader) -> Iterator[pa.Table]:
    """The rows of a task, a table for each group of pictures."""
    number, task = rows["task"][0].as_py(), pickle.loads(rows["content"][0].as_py())
    hashes = {known.hash for known in task.known.values()}
    count, whole = 0, True
    for group in read_groups(task, reader):
        pictures = [(_AGAIN if each.hash in hashes else _READ, len(each.data), each) for each in group.pictures]
        rest = [(_UNCHANGED, 0, each) for each in group.unchanged] + [(_BAD, 0, each) for each in group.bad]
        count += len(pictures)
        whole = whole and not any(bad.kind == "shard" for bad in group.bad)
        yield _table([(mark, number, size, content) for mark, size, content in [*pictures, *rest]])
    yield _table([(_END, number, 0, _End(count, whole))])


class _Embedder:
    """An actor's model, for the pictures among the rows; other rows pass."""

    def __init__(self, *, folder: str, device: str, thumbnail: int) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
        self._encoder = PictureEncoder(Encoder(folder, device=device), thumbnail=thumbnail)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The same rows, pictures made ready for the table."""
        given = [(row["mark"], row["task"], row["size"], pickle.loads(row["content"])) for row in rows.to_pylist()]
        fresh = {content.hash: content for mark, _, _, content in given if mark == _READ}
        pictures = [content for mark, _, _, content in given if mark in {_READ, _AGAIN}]
        looks = self._encoder.finish(list(fresh.values()), self._encoder.start(list(fresh.values())))
        made = dict(zip(fresh, looks, strict=True))
        captions = iter(self._encoder.captions(pictures))
        return _table([self._row(row, made, captions) for row in given])

    def _row(
        self, row: tuple[str, int, int, Any], made: dict[str, Looks | Bad], captions: Iterator[Any]
    ) -> tuple[str, int, int, Any]:
        mark, task, size, content = row
        if mark == _AGAIN:
            return mark, task, size, _Made(content, None, next(captions))
        if mark != _READ:
            return row
        looks, vectors = made[content.hash], next(captions)
        if isinstance(looks, Bad):
            return _REFUSED, task, size, content.bad(looks.reason)
        return _EMBEDDED, task, size, _Made(content, looks, vectors)


def _table(rows: list[tuple[str, int, int, Any]]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    columns[3] = [pickle.dumps(content) for content in columns[3]]
    return pa.table(dict(zip(_SCHEMA.names, columns, strict=True)), schema=_SCHEMA)


class _Progress:
    """Hands what comes back to the sink, and knows when all rows of a task have come, in whatever order."""

    def __init__(self, tasks: list[Task], *, sink: Sink, dim: int) -> None:
        self._tasks, self._sink, self._dim = tasks, sink, dim
        self._come: Counter[int] = Counter()
        self._ends: dict[int, _End] = {}

    def take(self, rows: pa.Table) -> None:
        """Some rows."""
        group, made = Group([], [], [], 0), []
        for row in rows.to_pylist():
            mark, content = row["mark"], pickle.loads(row["content"])
            group = group._replace(size=group.size + row["size"])
            if mark in {_EMBEDDED, _AGAIN}:
                made.append(content)
            elif mark == _UNCHANGED:
                group.unchanged.append(content)
            elif mark in {_BAD, _REFUSED}:
                group.bad.append(content)
            else:
                self._ends[row["task"]] = content
            self._come[row["task"]] += mark in {_EMBEDDED, _AGAIN, _REFUSED}
        self._sink.take(group)
        self._write(made)
        for number in [number for number, end in self._ends.items() if self._come[number] >= end.pictures]:
            self._sink.finish(self._tasks[number], whole=self._ends.pop(number).whole)

    def _write(self, made: list[_Made]) -> None:
        if not made:
            return
        there = self._sink.looks([each.picture.hash for each in made if each.looks is None])
        looks = [there[each.picture.hash] if each.looks is None else each.looks for each in made]
        pictures = [each.picture for each in made]
        self._sink.write(
            as_table(pictures, looks, [each.captions for each in made], dim=self._dim),
            looks=looks,
            encoded=sum(each.looks is not None for each in made),
            fresh=not any(picture.replaces for picture in pictures),
        )
