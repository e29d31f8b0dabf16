"""What an engine is handed, and what it hands back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import pyarrow as pa

from vlmo.data.stream.records import Bad
from vlmo.retrieval.pictures import Looks, Picture
from vlmo.retrieval.places import Found, picture_id
from vlmo.retrieval.reading import Reader
from vlmo.retrieval.store import Known

_GROUP, _GROUP_BYTES = 256, 64 << 20
"""Pictures, and bytes of pictures, that are in memory at a time, not yet decoded."""


@dataclass(frozen=True)
class Task:
    """Files that are new or changed, or one shard or saved data set that is.

    Attributes:
        found: What is to be read.
        known: What the table says of the pictures in it, by their ids.
    """

    found: Sequence[Found]
    known: Mapping[str, Known] = field(default_factory=dict)

    @property
    def shard(self) -> Found | None:
        """The shard; None of files."""
        first = self.found[0]
        return None if first.kind == "file" else first


class Group(NamedTuple):
    """Some pictures of a task.

    Attributes:
        pictures: What must be written; `replaces` says which of them the table has an older row of.
        unchanged: Ids of those that need not.
        bad: What cannot be read.
        size: Bytes that were read.
    """

    pictures: list[Picture]
    unchanged: list[str]
    bad: list[Bad]
    size: int


def read_groups(task: Task, reader: Reader) -> Iterator[Group]:
    """The pictures of a task, a few hundred at a time."""
    shard = task.shard
    read = _read_files(task.found, reader) if shard is None else reader.records(shard)
    group = Group([], [], [], 0)
    for picture in read:
        if isinstance(picture, Bad):
            group.bad.append(picture)
            continue
        known = task.known.get(picture.id)
        if known == (picture.stamp, picture.hash):
            group.unchanged.append(picture.id)
        else:
            group.pictures.append(replace(picture, replaces=known is not None))
        group = group._replace(size=group.size + len(picture.data))
        if len(group.pictures) >= _GROUP or group.size >= _GROUP_BYTES or len(group.unchanged) >= 16 * _GROUP:
            yield group
            group = Group([], [], [], 0)
    yield group


def _read_files(files: Sequence[Found], reader: Reader) -> Iterator[Picture | Bad]:
    """A few at a time, by their sizes."""
    waiting: list[Found] = []
    for found in files:
        waiting.append(found)
        if sum(each.size for each in waiting) >= _GROUP_BYTES or len(waiting) >= _GROUP // 4:
            yield from reader.files(waiting)
            waiting = []
    yield from reader.files(waiting)


def task_ids(files: Iterable[Found]) -> list[str]:
    """Ids of the pictures of files."""
    return [picture_id(found.place) for found in files]


class Sink(Protocol):
    """Where an engine's results go."""

    def looks(self, hashes: Sequence[str]) -> dict[str, Looks]:
        """What the index has of pictures with these bytes."""
        ...

    def take(self, group: Group) -> None:
        """Hears of what is unchanged or bad, and how far reading came; not of the group's pictures."""
        ...

    def refuse(self, bad: Bad) -> None:
        """Hears of a picture that cannot be decoded."""
        ...

    def write(self, rows: pa.Table, *, looks: Sequence[Looks], encoded: int, fresh: bool) -> None:
        """Takes rows as `as_table` makes them, of which so many went through the model."""
        ...

    def finish(self, task: Task, *, whole: bool) -> None:
        """Hears that all rows of a task were written, and whether it could be read to its end."""
        ...


class Engine(Protocol):
    """What embeds pictures."""

    def run(self, tasks: Iterable[Task], *, reader: Reader, sink: Sink) -> None:
        """Works on all tasks."""
        ...
