"""Lanes: independent, endless rows of samples, each with a cursor of a few numbers.

A run has a fixed number of lanes, whoever reads them: processes and workers only divide them. In every epoch each shard
belongs to one lane. A lane reads its shards one after another in blocks, and gives the samples of a block in the order
of a hash of (seed, epoch, sample). The hash is what makes the cursor exact: "the block from here to there, after this
hash" names what is left of it, whatever became of the other samples.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlmo import distributed
from vlmo.data.examples import Example
from vlmo.data.listing import list_shards
from vlmo.data.quarantine import Bad
from vlmo.data.sampler import order, sample_seed
from vlmo.data.saved import naming_damage
from vlmo.data.stream.records import Offset, Record, Sample, read_shard, sample_id
from vlmo.folder.atomic import write_file

LIST_FILE = "shards.json"

# Epochs, shards that cannot be read, and bad records, without a good one between them, after which a lane gives up: a
# network that is down must not cost an epoch. A lane of one shard may meet a missing one in several epochs.
_BARREN_EPOCHS = 16
_BARREN_SHARDS = 32
_BARREN_RECORDS = 10_000


class Piece(NamedTuple):
    """Every `parts`-th record of a shard, from number `part` on."""

    shard: str
    part: int
    parts: int


@dataclass(frozen=True)
class Source:
    """Shards that are read in one mixture's share."""

    shards: tuple[str, ...]
    """Paths or URLs."""
    weight: float = 1.0
    """Share of the samples, relative to the other sources'."""

    def of_lane(self, lane: int, *, lanes: int, epoch: int, seed: int) -> list[Piece]:
        """Return the pieces that lane `lane` of `lanes` reads in `epoch`, in this order.

        A piece is a whole shard where there are enough of them. Each epoch deals all pieces anew, so that over the
        epochs every lane gets as many as the others.
        """
        parts = -(-lanes // len(self.shards))
        num_pieces = parts * len(self.shards)
        permutation = order(num_pieces, seed=sample_seed(seed, epoch=0, index=0, purpose="shards"), epoch=epoch)
        first = (lane - epoch * (num_pieces % lanes)) % lanes
        return [
            Piece(self.shards[number // parts], number % parts, parts) for number in permutation[first::lanes].tolist()
        ]


def open_sources(patterns: Sequence[str], *, weights: Sequence[float], folder: Path) -> list[Source]:
    """Make a source of each pattern; the lists are kept in `folder`, and read there when the run goes on.

    So a shard that vanishes or arrives between two starts changes nobody's order. Lists of other patterns, from a start
    that came to nothing, are made anew. All processes call this; the main one writes.

    Raises:
        ValueError: A pattern names nothing, or two name the same shard.
    """
    path = folder / LIST_FILE
    if distributed.is_main() and (not path.is_file() or _read_list(path)[0] != list(patterns)):
        seen: set[str] = set()
        lists = [list_shards(pattern) for pattern in patterns]
        for shard in itertools.chain(*lists):
            if shard in seen:
                raise ValueError(f"streams: {shard} is named twice; each shard belongs to one pattern, and once")
            seen.add(shard)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({"patterns": list(patterns), "shards": lists}, indent=1))
    distributed.barrier()
    _, lists = _read_list(path)
    return [Source(tuple(shards), weight) for shards, weight in zip(lists, weights or [1.0] * len(lists), strict=True)]


def _read_list(path: Path) -> tuple[list[str], list[list[str]]]:
    with naming_damage(path, advice="remove it, so that the shards are listed anew"):
        kept = json.loads(path.read_text(encoding="utf-8"))
        return list(kept["patterns"]), list(map(list, kept["shards"]))


class Place(NamedTuple):
    """The next record that a lane's source reads."""

    epoch: int = 0
    shard: int = 0
    """Number among the lane's pieces of the epoch."""
    index: int = 0
    byte: int = 0


class _Order(NamedTuple):
    """The position of a sample in its block."""

    key: int
    shard: int
    index: int


class _Read(NamedTuple):
    """A record as it came out of its shard, and the place of the one after it."""

    place: Place
    record: Record
    after: Place


class Cursor(NamedTuple):
    """Progress of a lane in a source."""

    start: Place = Place()
    """First record of its block."""
    end: Place | None = None
    """The record after the block; None where the block has not been begun."""
    after: _Order | None = None
    """The last sample of the block that was given; None if none was."""

    def to_json(self) -> list[list[int] | None]:
        """Return lists, ready for JSON."""
        return [None if part is None else list(part) for part in self]

    @classmethod
    def from_json(cls, parts: Sequence[Sequence[int] | None]) -> Cursor:
        """Restore what `to_json` gave."""
        places: Any = [part and kind(*part) for kind, part in zip((Place, Place, _Order), parts, strict=True)]
        return cls(*places)


class Stream:
    """Endless records of one lane's share of one source, (epoch, record) each.

    Arguments are as in `Lane`; `block` records are shuffled with each other and kept in memory; reading goes on from
    `cursor`.
    """

    def __init__(
        self,
        source: Source,
        *,
        lane: int,
        lanes: int,
        seed: int,
        block: int,
        cursor: Cursor,
        images: bool = True,
    ) -> None:
        self._source, self._lane, self._lanes, self._seed = source, lane, lanes, seed
        self._size, self._images = block, images
        self._reading = self._read(cursor.start)
        self._held: _Read | None = None
        self._cursor = Cursor(cursor.start, cursor.start)
        self._entries: deque[tuple[_Order, _Read]] = deque()
        self._coming: list[_Read] = []
        if cursor.end is not None:
            self._resume(cursor, end=cursor.end)

    def __next__(self) -> tuple[int, Record]:
        while not self._entries:
            while self._read_ahead():
                continue
            assert self._cursor.end is not None
            self._begin_block(self._cursor.end, self._coming[-1].after)
        place, read = self._entries.popleft()
        self._cursor = self._cursor._replace(after=place)
        self._read_ahead()
        return read.place.epoch, read.record

    def __iter__(self) -> Stream:
        return self

    @property
    def cursor(self) -> Cursor:
        """Progress; goes on after what was given last."""
        if self._entries or self._cursor.end is None:
            return self._cursor
        return Cursor(self._cursor.end)

    def _begin_block(self, start: Place, end: Place) -> None:
        self._entries = deque(sorted((self._order(read), read) for read in self._coming))
        self._cursor = Cursor(start, end)
        self._coming = []

    def _resume(self, cursor: Cursor, *, end: Place) -> None:
        """Read the block of the cursor again, and leave out what has been given."""
        while (read := self._peek()).place[:3] < end[:3]:
            self._coming.append(read)
            self._held = None
        self._begin_block(cursor.start, end)
        self._cursor = cursor
        while cursor.after is not None and self._entries and self._entries[0][0] <= cursor.after:
            self._entries.popleft()

    def _read_ahead(self) -> bool:
        """Read one more record of the block that comes next, so that reading keeps pace; False if it is complete."""
        if len(self._coming) >= self._size:
            return False
        read = self._peek()
        if self._coming and read.place.epoch != self._coming[0].place.epoch:
            return False  # blocks end with their epoch
        self._coming.append(read)
        self._held = None
        return True

    def _peek(self) -> _Read:
        if self._held is None:
            self._held = next(self._reading)
        return self._held

    def _order(self, read: _Read) -> _Order:
        number = sample_id(read.record.shard, read.record.index)
        key = sample_seed(self._seed, epoch=read.place.epoch, index=number, purpose="order")
        return _Order(key, read.place.shard, read.place.index)

    def _read(self, start: Place) -> Iterator[_Read]:
        barren = 0
        while barren < _BARREN_EPOCHS:
            found = False
            pieces = self._source.of_lane(self._lane, lanes=self._lanes, epoch=start.epoch, seed=self._seed)
            for number in range(start.shard, len(pieces)):
                offset = Offset(start.index, start.byte) if number == start.shard else Offset()
                shard, part, parts = pieces[number]
                for record, after in read_shard(shard, start=offset, images=self._images):
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


class Lane:
    """Endless good samples of a lane; for each one a seeded choice by weight says from which source.

    A source that runs out begins its next epoch, so the weights hold for ever; small sources are seen more often.

    Args:
        lane: Number of the lane, of `lanes`.
        shuffle: Samples that are shuffled with each other, over all sources of this lane.
        read: Makes an example of (sample, epoch), or raises ValueError with the reason why not.
        state: An earlier `state`, to go on from.
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
        images: bool = True,
        state: dict[str, Any] | None = None,
    ) -> None:
        state = state or {"drawn": 0, "bad": 0, "streams": [Cursor().to_json()] * len(sources)}
        total = sum(source.weight for source in sources)
        shares = [source.weight / total for source in sources]
        self._lane, self._seed, self._read = lane, seed, read
        self._until = list(itertools.accumulate(shares))
        self._num_good, self._num_bad = state["drawn"], state["bad"]
        self._streams = [
            Stream(
                source,
                lane=lane,
                lanes=lanes,
                seed=sample_seed(seed, epoch=0, index=number, purpose="source"),
                block=max(1, round(shuffle * share)),
                images=images,
                cursor=Cursor.from_json(cursor),
            )
            for number, (source, share, cursor) in enumerate(zip(sources, shares, state["streams"], strict=True))
        ]

    def next_example(self, bad: list[Bad]) -> Example:
        """Return the next good sample; bad ones before it go to `bad`, ValueError if there are far too many."""
        chance = sample_seed(self._seed, epoch=self._lane, index=self._num_good, purpose="mixture") / 2**63
        source = min(bisect.bisect_right(self._until, chance), len(self._until) - 1)
        begun: int | None = None
        lost_shards = 0
        for passed, (epoch, record) in enumerate(self._streams[source], start=1):
            begun = epoch if begun is None else begun
            if not isinstance(record, Bad):
                try:
                    example = self._read(record, epoch)
                except (ValueError, MemoryError) as error:
                    record = Bad("row", record.shard, record.index, record.key, str(error) or type(error).__name__)
                else:
                    self._num_good += 1
                    return example
            bad.append(record)
            self._num_bad += record.kind == "row"
            lost_shards += record.kind == "shard"
            if epoch >= begun + _BARREN_EPOCHS or lost_shards >= _BARREN_SHARDS or passed >= _BARREN_RECORDS:
                raise ValueError(
                    f"streams: lane {self._lane} finds nothing that can be used, in {passed} records; the last one is "
                    f"in {record.shard}: {record.reason}"
                )
        raise AssertionError("streams are endless")

    @property
    def state(self) -> dict[str, Any]:
        """Progress, ready for JSON; goes on after what was given last."""
        cursors = [stream.cursor.to_json() for stream in self._streams]
        return {"drawn": self._num_good, "bad": self._num_bad, "streams": cursors}
