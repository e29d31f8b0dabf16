"""Embeds pictures in this process, for an index."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from vlmo.data.stream.records import Bad
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.pictures import Looks, Picture, PictureEncoder, as_table
from vlmo.retrieval.reading import Reader
from vlmo.retrieval.tasks import Sink, Task, read_groups

_WAITING = 2
"""Batches that are decoded, or being decoded, while the model works on another."""


@dataclass
class _Batch:
    """Pictures that are being decoded, and others with the same bytes as one of them."""

    pictures: list[Picture] = field(default_factory=list)
    started: list[Future[Any]] = field(default_factory=list)
    twins: dict[str, list[Picture]] = field(default_factory=dict)


class LocalEngine:
    """One model in this process.

    Args:
        encoder: The model.
        batch: Pictures that go through it at a time.
        thumbnail: Longest side of thumbnails, in pixels.
    """

    def __init__(self, encoder: Encoder, *, batch: int, thumbnail: int) -> None:
        self._encoder = PictureEncoder(encoder, thumbnail=thumbnail)
        self._dim, self._size = encoder.dim, batch

    def run(self, tasks: Iterable[Task], *, reader: Reader, sink: Sink) -> None:
        """Works on all tasks; a picture whose bytes the index has, or that is on its way, is not embedded again."""
        batches: deque[_Batch] = deque([_Batch()])
        for task in tasks:
            whole = True
            for group in read_groups(task, reader):
                sink.take(group)
                whole = whole and not any(bad.kind == "shard" for bad in group.bad)
                self._add(group.pictures, batches, sink=sink)
            if task.shard is not None:
                self._drain(batches, sink=sink)
            sink.finish(task, whole=whole)
        self._drain(batches, sink=sink)

    def _add(self, pictures: list[Picture], batches: deque[_Batch], *, sink: Sink) -> None:
        there = sink.looks([picture.hash for picture in pictures])
        again = []
        for picture in pictures:
            if picture.hash in there:
                again.append(picture)
                continue
            if twin := next((batch for batch in batches if picture.hash in batch.twins), None):
                twin.twins[picture.hash].append(picture)
                continue
            last = batches[-1]
            last.pictures.append(picture)
            last.started += self._encoder.start([picture])
            last.twins[picture.hash] = []
            if len(last.pictures) >= self._size:
                batches.append(_Batch())
                if len(batches) > _WAITING:
                    there |= self._embed(batches.popleft(), sink=sink)
        self._write(again, [there[picture.hash] for picture in again], sink=sink, encoded=0)

    def _drain(self, batches: deque[_Batch], *, sink: Sink) -> None:
        while batches:
            self._embed(batches.popleft(), sink=sink)
        batches.append(_Batch())

    def _embed(self, batch: _Batch, *, sink: Sink) -> dict[str, Looks]:
        """What the model made of the batch, by the hashes of the pictures."""
        if not batch.pictures:
            return {}
        pictures: list[Picture] = []
        looks: list[Looks] = []
        encoded = 0
        results = self._encoder.finish(batch.pictures, batch.started)
        for picture, result in zip(batch.pictures, results, strict=True):
            same = [picture, *batch.twins[picture.hash]]
            if isinstance(result, Bad):
                for each in same:
                    sink.refuse(each.bad(result.reason) if each is not picture else result)
                continue
            encoded += 1
            pictures += same
            looks += [result] * len(same)
        self._write(pictures, looks, sink=sink, encoded=encoded)
        return {picture.hash: found for picture, found in zip(pictures, looks, strict=True)}

    def _write(self, pictures: list[Picture], looks: list[Looks], *, sink: Sink, encoded: int) -> None:
        if pictures:
            captions = self._encoder.captions(pictures)
            rows = as_table(pictures, looks, captions, dim=self._dim)
            sink.write(rows, looks=looks, encoded=encoded, fresh=not any(picture.replaces for picture in pictures))
