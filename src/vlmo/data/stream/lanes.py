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
from typing import Any

from vlmo import distributed
from vlmo.data.examples import Example
from vlmo.data.listing import list_shards
from vlmo.data.rows import Bad, naming_damage
from vlmo.data.sampler import order, sample_seed
from vlmo.data.stream.records import Offset, Record, Sample, read_shard, sample_id
from vlmo.folder.atomic import write_file

LIST_FILE = "shards.json"

_MAX_EMPTY_EPOCHS = 16  # without a good record
# Shards that cannot be read, and bad records, without a good one between them, after which a lane gives up: a network
# that is down must not cost an epoch.
_MAX_LOST_SHARDS = 32
_MAX_BAD_RECORDS = 10_000

Position = tuple[int, int, int, int]
"""Epoch, number among the lane's pieces of the epoch, and `Offset` in the shard, of a record."""
Cursor = tuple[Position, Position | None, tuple[int, int, int] | None]
"""First record of a block; the record after it (once the block is begun); hash, piece and index of what came last."""
START: Cursor = ((0, 0, 0, 0), None, None)


@dataclass(frozen=True)
class Source:
    """Shards (paths or URLs) that are read in one mixture's share, and this share relative to the other sources'."""

    shards: tuple[str, ...]
    weight: float = 1.0

    def of_lane(self, lane: int, *, lanes: int, epoch: int, seed: int) -> list[tuple[str, int, int]]:
        """Return the pieces that lane `lane` of `lanes` reads in `epoch`, in this order.

        A piece (shard, part, parts) is every `parts`-th record of a shard, from number `part` on; a whole shard where
        there are enough of them. Each epoch deals all pieces anew, so that over the epochs every lane gets as many as
        the others.
        """
        parts = -(-lanes // len(self.shards))
        num_pieces = parts * len(self.shards)
        permutation = order(num_pieces, seed=sample_seed(seed, epoch=0, index=0, purpose="shards"), epoch=epoch)
        first = (lane - epoch * (num_pieces % lanes)) % lanes
        return [(self.shards[number // parts], number % parts, parts) for number in permutation[first::lanes].tolist()]


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


def read_stream(
    source: Source, *, lane: int, lanes: int, seed: int, block: int, cursor: Cursor = START, images: bool = True
) -> Iterator[tuple[int, Record, Cursor]]:
    """Yield without end the records of one lane's share, each with its epoch and the cursor after it.

    Arguments are as in `Lane`; `block` records are shuffled with each other and kept in memory.
    """
    start, end, given = cursor
    reading = _read(source, start, lane=lane, lanes=lanes, seed=seed, images=images)
    coming: list[tuple[Position, Record, Position]] = []
    epoch_has_ended = False

    def read_ahead() -> bool:
        """Read one more record of the block that comes next, so that reading keeps pace; False if it is complete."""
        nonlocal epoch_has_ended
        if len(coming) >= block or (coming and epoch_has_ended):
            return False
        found = next(reading)
        epoch_has_ended = found is None
        if found is not None:
            coming.append(found)
        return True

    while True:
        if end is None:
            while read_ahead():
                continue
            own, coming, epoch_has_ended = coming, [], False
            end = own[-1][2]
        else:  # the block of the cursor is read again
            own = []
            while not coming:
                if (read := next(reading)) is not None:
                    (own if read[0][:3] < end[:3] else coming).append(read)
        found = []
        for (epoch, piece, index, _), record, _ in own:
            number = sample_id(record.shard, index)
            key = (sample_seed(seed, epoch=epoch, index=number, purpose="order"), piece, index)
            if given is None or key > given:
                found.append((key, epoch, record))
        entries = deque(sorted(found))  # no two keys are equal
        del own, found
        while entries:
            key, epoch, record = entries.popleft()
            read_ahead()
            yield epoch, record, (start, end, key) if entries else (end, None, None)
        start, end, given = end, None, None


def _read(
    source: Source, start: Position, *, lane: int, lanes: int, seed: int, images: bool
) -> Iterator[tuple[Position, Record, Position] | None]:
    """Yield without end each record of the lane, from `start` on, with the position after it; None ends an epoch."""
    empty = 0
    for epoch in itertools.count(start[0]):
        found = False
        for number, (shard, part, parts) in enumerate(source.of_lane(lane, lanes=lanes, epoch=epoch, seed=seed)):
            if (epoch, number) < start[:2]:
                continue
            offset = Offset(*start[2:]) if (epoch, number) == start[:2] else Offset()
            for record, after in read_shard(shard, start=offset, images=images):
                if record.index % parts == part:
                    found = True
                    following = (epoch, number + 1, 0, 0) if after is None else (epoch, number, *after)
                    yield (epoch, number, record.index, 0), record, following
        yield None
        empty = 0 if found else empty + 1
        if empty >= _MAX_EMPTY_EPOCHS:
            raise ValueError(
                f"streams: lane {lane} of {lanes} finds no record in its share of {len(source.shards)} shards, such as "
                f"{source.shards[0]}; use fewer lanes (streams.lanes) or more data"
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
        state = state or {"drawn": 0, "bad": 0, "streams": [START] * len(sources)}
        total = sum(source.weight for source in sources)
        shares = [source.weight / total for source in sources]
        self._lane, self._seed, self._read = lane, seed, read
        self._until = list(itertools.accumulate(shares))
        self._num_good, self._num_bad = state["drawn"], state["bad"]
        self._cursors: list[Any] = [tuple(part and tuple(part) for part in cursor) for cursor in state["streams"]]
        self._streams = [
            read_stream(
                source,
                lane=lane,
                lanes=lanes,
                seed=sample_seed(seed, epoch=0, index=number, purpose="source"),
                block=max(1, round(shuffle * share)),
                cursor=cursor,
                images=images,
            )
            for number, (source, share, cursor) in enumerate(zip(sources, shares, self._cursors, strict=True))
        ]

    def next_example(self, bad: list[Bad]) -> Example:
        """Return the next good sample; bad ones before it go to `bad`, ValueError if there are far too many."""
        chance = sample_seed(self._seed, epoch=self._lane, index=self._num_good, purpose="mixture") / 2**63
        source = min(bisect.bisect_right(self._until, chance), len(self._until) - 1)
        lost_shards, begun = 0, None
        for passed in itertools.count(1):
            epoch, record, self._cursors[source] = next(self._streams[source])
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
            useless = epoch >= begun + _MAX_EMPTY_EPOCHS
            if useless or lost_shards >= _MAX_LOST_SHARDS or passed >= _MAX_BAD_RECORDS:
                raise ValueError(
                    f"streams: lane {self._lane} finds nothing that can be used, in {passed} records; the last one is "
                    f"in {record.shard}: {record.reason}"
                )
        raise AssertionError("streams are endless")

    @property
    def state(self) -> dict[str, Any]:
        """Progress, ready for JSON; goes on after what was given last."""
        return {"drawn": self._num_good, "bad": self._num_bad, "streams": list(self._cursors)}
