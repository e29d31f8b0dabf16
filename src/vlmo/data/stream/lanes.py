"""Lanes: independent, endless rows of samples, each with a cursor of a few numbers.

A run has a fixed number of lanes, whoever reads them: processes and workers only divide them. In every epoch each shard
belongs to one lane. A lane reads its shards one after another in blocks, and gives the samples of a block in the order
of a hash of (seed, epoch, sample). The hash is what makes the cursor exact: "the block from here to there, after this
hash" names what is left of it, whatever became of the other samples.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vlmo.data.collate import Example
from vlmo.data.sampler import sample_seed
from vlmo.data.stream.records import Bad, Offset, Record, Sample, read_shard, sample_id
from vlmo.data.stream.shards import Source

# Epochs, shards that cannot be read, and bad records, without a good one between them, after which a lane gives up: a
# network that is down must not cost an epoch. A lane of one shard may meet a missing one in several epochs.
_BARREN_EPOCHS = 16
_BARREN_SHARDS = 32
_BARREN_RECORDS = 10_000


class Place(NamedTuple):
    """What a lane's source reads next."""

    epoch: int = 0
    shard: int = 0
    """Number among the lane's pieces of the epoch."""
    index: int = 0
    byte: int = 0


_FIRST = Place()


class _Order(NamedTuple):
    """Where a sample stands in its block."""

    key: int
    shard: int
    index: int


class _Entry(NamedTuple):
    order: _Order
    place: Place
    record: Record


@dataclass(frozen=True)
class Cursor:
    """How far a lane has come in a source.

    Attributes:
        start: Where its block begins.
        end: Where the block ends; None where it has not been begun.
        after: The last sample of it that was given; None if none was.
    """

    start: Place = _FIRST
    end: Place | None = None
    after: _Order | None = None

    def to_json(self) -> list[list[int] | None]:
        """Ready for JSON."""
        return [None if part is None else list(part) for part in (self.start, self.end, self.after)]

    @classmethod
    def from_json(cls, parts: Sequence[Sequence[int] | None]) -> Cursor:
        """What `to_json` gave."""
        start, end, after = parts
        assert start is not None
        return cls(Place(*start), None if end is None else Place(*end), None if after is None else _Order(*after))


class Stream:
    """Endless records of one lane's share of one source, (epoch, record) each.

    Args:
        lane: Number of the lane, of `lanes`.
        block: Records that are shuffled with each other, and kept in memory.
        pictures: Whether the pictures are wanted.
        cursor: Where to go on.
    """

    def __init__(
        self,
        source: Source,
        *,
        lane: int,
        lanes: int,
        seed: int,
        block: int,
        pictures: bool = True,
        cursor: Cursor = Cursor(),
    ) -> None:
        self._source, self._lane, self._lanes, self._seed = source, lane, lanes, seed
        self._size, self._pictures = block, pictures
        self._reading = self._read(cursor.start)
        self._held: _Read | None = None
        self._cursor = Cursor(cursor.start, cursor.start)
        self._entries: deque[_Entry] = deque()
        self._coming: list[_Read] = []
        self._is_whole = False
        if cursor.end is not None:
            self._resume(cursor)

    def __next__(self) -> tuple[int, Record]:
        while not self._entries:
            self._begin_block()
        entry = self._entries.popleft()
        self._cursor = dataclasses.replace(self._cursor, after=entry.order)
        self._read_ahead()
        return entry.place.epoch, entry.record

    def __iter__(self) -> Stream:
        return self

    @property
    def cursor(self) -> Cursor:
        """Goes on after what was given last."""
        if self._entries or self._cursor.end is None:
            return self._cursor
        return Cursor(self._cursor.end)

    def _begin_block(self) -> None:
        while not self._is_whole:
            self._read_ahead()
        start = self._cursor.end
        assert start is not None
        self._take(start, self._coming[-1].after)

    def _take(self, start: Place, end: Place) -> None:
        self._entries = deque(sorted(self._entry(read) for read in self._coming))
        self._cursor = Cursor(start, end)
        self._coming, self._is_whole = [], False

    def _resume(self, cursor: Cursor) -> None:
        """The block of the cursor, as far as it has not been given."""
        assert cursor.end is not None
        while (read := self._peek()).place[:3] < cursor.end[:3]:
            self._coming.append(read)
            self._held = None
        self._take(cursor.start, cursor.end)
        self._cursor = cursor
        while cursor.after is not None and self._entries and self._entries[0].order <= cursor.after:
            self._entries.popleft()

    def _read_ahead(self) -> None:
        """One more record of the block that comes next: reading keeps pace with what is given."""
        if self._is_whole:
            return
        read = self._peek()
        if self._coming and read.place.epoch != self._coming[0].place.epoch:
            self._is_whole = True  # blocks end with their epoch
            return
        self._coming.append(read)
        self._held = None
        self._is_whole = len(self._coming) >= self._size

    def _peek(self) -> _Read:
        if self._held is None:
            self._held = next(self._reading)
        return self._held

    def _entry(self, read: _Read) -> _Entry:
        place, record = read.place, read.record
        number = sample_id(record.shard, record.index)
        key = sample_seed(self._seed, epoch=place.epoch, index=number, purpose="order")
        return _Entry(_Order(key, place.shard, place.index), place, record)

    def _read(self, start: Place) -> Iterator[_Read]:
        barren = 0
        while barren < _BARREN_EPOCHS:
            found = False
            pieces = self._source.of_lane(self._lane, lanes=self._lanes, epoch=start.epoch, seed=self._seed)
            for number in range(start.shard, len(pieces)):
                offset = Offset(start.index, start.byte) if number == start.shard else Offset()
                shard, part, parts = pieces[number]
                for record, after in read_shard(shard, start=offset, pictures=self._pictures):
                    if record.index % parts != part:
                        continue
                    found = True
                    place = Place(start.epoch, number, record.index)
                    next_place = Place(start.epoch, number + 1) if after is None else Place(start.epoch, number, *after)
                    yield _Read(place, record, next_place)
            barren = 0 if found else barren + 1
            start = Place(start.epoch + 1)
        raise ValueError(
            f"streams: lane {self._lane} of {self._lanes} finds no record in its share of {len(self._source.shards)} "
            f"shards, such as {self._source.shards[0]}; use fewer lanes (streams.lanes) or more data"
        )


class _Read(NamedTuple):
    place: Place
    record: Record
    after: Place


class Lane:
    """Endless good samples of a lane: for each, a seeded draw by weight says from which source.

    A source that runs out begins its next epoch, so the weights hold for ever; small sources are seen more often.

    Args:
        read: Makes an example of (sample, epoch), or raises ValueError with the reason why not.
        shuffle: Samples that are shuffled with each other, over all sources of this lane.
        state: What `state` gave, to go on from.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        lane: int,
        lanes: int,
        seed: int,
        shuffle: int,
        read: Callable[[Sample, int], Example],
        pictures: bool = True,
        state: dict[str, Any] | None = None,
    ) -> None:
        state = state or {"drawn": 0, "bad": 0, "streams": [Cursor().to_json()] * len(sources)}
        total = sum(source.weight for source in sources)
        shares = [source.weight / total for source in sources]
        self._lane, self._seed, self._read = lane, seed, read
        self._until = list(itertools.accumulate(shares))
        self._drawn, self._bad = state["drawn"], state["bad"]
        self._streams = [
            Stream(
                source,
                lane=lane,
                lanes=lanes,
                seed=sample_seed(seed, epoch=0, index=number, purpose="source"),
                block=max(1, round(shuffle * share)),
                pictures=pictures,
                cursor=Cursor.from_json(cursor),
            )
            for number, (source, share, cursor) in enumerate(zip(sources, shares, state["streams"], strict=True))
        ]

    def draw(self, bad: list[Bad]) -> Example:
        """The next good sample; what was passed over on the way is appended to `bad`.

        Raises:
            ValueError: Many shards, thousands of records, or several epochs hold no good sample.
        """
        stream = self._streams[self._draw_source()]
        begun: int | None = None
        lost_shards = 0
        for passed, (epoch, record) in enumerate(stream, start=1):
            begun = epoch if begun is None else begun
            found = self._example(record, epoch)
            if not isinstance(found, Bad):
                self._drawn += 1
                return found
            bad.append(found)
            self._bad += found.kind == "row"
            lost_shards += found.kind == "shard"
            if epoch >= begun + _BARREN_EPOCHS or lost_shards >= _BARREN_SHARDS or passed >= _BARREN_RECORDS:
                raise ValueError(
                    f"streams: lane {self._lane} finds nothing that can be used, in {passed} records; the last one is "
                    f"in {found.shard}: {found.reason}"
                )
        raise AssertionError("streams are endless")

    @property
    def state(self) -> dict[str, Any]:
        """Goes on after what was drawn last; ready for JSON."""
        cursors = [stream.cursor.to_json() for stream in self._streams]
        return {"drawn": self._drawn, "bad": self._bad, "streams": cursors}

    def _draw_source(self) -> int:
        if len(self._streams) == 1:
            return 0
        chance = sample_seed(self._seed, epoch=self._lane, index=self._drawn, purpose="mixture") / 2**63
        return min(bisect.bisect_right(self._until, chance), len(self._until) - 1)

    def _example(self, record: Record, epoch: int) -> Example | Bad:
        if isinstance(record, Bad):
            return record
        try:
            return self._read(record, epoch)
        except ValueError as error:
            return Bad("row", record.shard, record.index, record.key, str(error))
