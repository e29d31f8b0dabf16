"""Endless batches out of streams, made in worker processes, with a cursor that goes on exactly.

A run has a fixed number of lanes, whoever reads them: processes and workers only divide them. In an epoch a shard
belongs to one lane. A lane reads its shards one after another in blocks, and gives the samples of a block in the order
of a hash of (seed, epoch, sample). The hash is what makes the cursor exact: "the block from here to there, after this
hash" names what is left of it, whatever became of the other samples.
"""

from __future__ import annotations

import bisect
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils.data import IterableDataset, get_worker_info

from vlmo import distributed
from vlmo.data.config import StreamConfig, validate_lanes
from vlmo.data.examples import Example, StreamExamples, merge
from vlmo.data.listing import list_shards
from vlmo.data.loader import LoaderConfig, add_step, start_workers
from vlmo.data.rows import Bad, QuarantineFile, naming_damage
from vlmo.data.sampler import order, sample_seed
from vlmo.data.stream.records import BEGIN, Offset, Record, Sample, read_shard, sample_id
from vlmo.folder.atomic import write_file
from vlmo.types import Batch

logger = logging.getLogger(__name__)

LIST_FILE = "shards.json"

_MAX_EMPTY_EPOCHS = 16  # without a record
# Without a good record between them, after which a lane gives up: a network that is down must not cost an epoch.
_MAX_LOST_SHARDS = 32
_MAX_BAD_RECORDS = 10_000
# Samples of a process before the share of bad ones among them says anything.
_ENOUGH = 10_000


class Position(NamedTuple):
    """Place of a record among all that a lane reads: epoch, piece of the epoch, and `Offset` in the piece's shard."""

    epoch: int = 0
    piece: int = 0
    index: int = 0
    byte: int = 0


class Cursor(NamedTuple):
    """Place in a stream: `last` is hash, piece and index of the record that came last out of a shuffled block."""

    start: Position = Position()
    end: Position | None = None  # the record after the block, once the block is begun
    last: tuple[int, int, int] | None = None


StoredRecord: TypeAlias = tuple[Position, Record, Position]
"""A record, its position and the one after it."""
Entry: TypeAlias = tuple[tuple[int, int, int], int, Record]
"""A record of a block with its key (hash, piece, index), which tells the order, and its epoch."""
START = Cursor()
LaneState: TypeAlias = dict[str, Any]
"""Progress of a lane: samples "drawn", "bad" ones, and the cursors of its "streams"."""
LaneStates: TypeAlias = dict[str, LaneState]
"""States of lanes by their numbers, as text: ready for JSON."""


@dataclass(frozen=True)
class Source:
    """Shards (paths or URLs) that are read in one mixture's share, and this share relative to the other sources'."""

    shards: tuple[str, ...]
    weight: float = 1.0

    def of_lane(
        self, lane: int, *, lanes: int, epoch: int, seed: int
    ) -> list[tuple[str, int, int]]:
        """Return the pieces that lane `lane` of `lanes` reads in `epoch`, in this order.

        A piece (shard, part, parts) has the records of a shard whose number modulo `parts` is `part`; it is a whole
        shard if there are enough of them. Every epoch deals all pieces anew, so that over the epochs all lanes get
        equally many.
        """
        # Enough pieces for all lanes, where there are fewer shards than lanes.
        parts = -(-lanes // len(self.shards))
        num_pieces = parts * len(self.shards)
        # The same for all lanes, so that together they read all pieces once.
        shards_seed = sample_seed(seed, epoch=0, index=0, purpose="shards")
        # A new order every epoch, and the same on every machine.
        permutation = order(num_pieces, seed=shards_seed, epoch=epoch)
        # Which lanes get one piece more moves on with the epochs.
        first = (lane - epoch * (num_pieces % lanes)) % lanes
        return [
            (self.shards[number // parts], number % parts, parts)
            for number in permutation[first::lanes].tolist()
        ]


def open_sources(
    patterns: Sequence[str], *, weights: Sequence[float], folder: Path
) -> list[Source]:
    """Make sources of patterns; the lists are kept in `folder`, and read there when the run goes on.

    So a shard that vanishes or arrives between two starts changes nobody's order. Lists of other patterns, from a start
    that came to nothing, are made anew. All processes call this; the main one writes.

    Raises:
        ValueError: A pattern names nothing, or two name the same shard.
    """
    path = folder / LIST_FILE
    if distributed.is_main() and (not path.is_file() or _read_list(path)[0] != list(patterns)):
        lists = [list_shards(pattern) for pattern in patterns]
        for shard, count in Counter(itertools.chain.from_iterable(lists)).items():
            if count > 1:
                raise ValueError(
                    f"streams: {shard} is named twice; each shard belongs to one pattern, and once"
                )
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({"patterns": list(patterns), "shards": lists}, indent=1))
    distributed.barrier()
    _, lists = _read_list(path)
    return list(map(Source, map(tuple, lists), weights or [1.0] * len(lists)))


def _read_list(path: Path) -> tuple[list[str], list[list[str]]]:
    with naming_damage(path, advice="remove it, so that the shards are listed anew"):
        kept = json.loads(path.read_text(encoding="utf-8"))
        return list(kept["patterns"]), list(map(list, kept["shards"]))


def read_stream(
    source: Source,
    *,
    lane: int,
    lanes: int,
    seed: int,
    block: int,
    cursor: Cursor = START,
    images: bool = True,
) -> Iterator[tuple[int, Record, Cursor]]:
    """Yield without end the records of one lane's share, with their epoch and the cursor after it.

    Arguments are as in `Lane`; `block` records are shuffled with each other and kept in memory.
    """
    start = Position(*cursor[0])
    end = Position(*cursor[1]) if cursor[1] else None
    last = tuple(cursor[2]) if cursor[2] else None
    read = partial(_read, source, lane=lane, lanes=lanes, seed=seed, images=images)
    stored = read(start)
    while True:
        entries, after = _read_block(stored, end, size=block, seed=seed)
        after = after or start
        # The block of the cursor was read again, and the first record after it.
        if end is not None:
            stored = read(end)
        # The list is in reverse, so that a record leaves memory as soon as it is used.
        while entries:
            key, epoch, record = entries.pop()
            # What came before the cursor in this block is left out, by its key alone.
            if last is None or key > last:
                is_whole = not entries
                yield epoch, record, Cursor(after) if is_whole else Cursor(start, after, key)
        start = after
        end = None
        last = None


def _read_block(
    stored: Iterator[StoredRecord | None], end: Position | None, *, size: int, seed: int
) -> tuple[list[Entry], Position | None]:
    """Read `size` records, fewer at the end of an epoch, or those up to `end`.

    Return them with the last in their order first, and the position after them, None if there are none.
    """
    entries: list[Entry] = []
    after = end
    for item in stored:
        # A block ends early with its epoch: samples of two epochs are never mixed.
        if item is None and entries:
            break
        if item is None:
            continue
        position, record, following = item
        # A tar's byte is not known of a record that a cursor names as the next one.
        if end is not None and position[:3] >= end[:3]:
            break
        number = sample_id(record.shard, position.index)
        order_key = sample_seed(seed, epoch=position.epoch, index=number, purpose="order")
        # The piece and the index only tell apart records whose hashes are equal.
        entries.append(((order_key, position.piece, position.index), position.epoch, record))
        after = end or following
        if end is None and len(entries) == size:
            break
    # No two keys are equal.
    entries.sort(reverse=True)
    return entries, after


def _read(
    source: Source, start: Position, *, lane: int, lanes: int, seed: int, images: bool
) -> Iterator[StoredRecord | None]:
    """Yield without end the records of the lane, from `start` on, with the position after them; None ends an epoch."""
    empty_epochs = 0
    for epoch in itertools.count(start.epoch):
        empty_epochs += 1
        pieces = source.of_lane(lane, lanes=lanes, epoch=epoch, seed=seed)
        for number, (shard, part, parts) in enumerate(pieces):
            piece = (epoch, number)
            if piece < start[:2]:
                continue
            # Within the piece of the cursor, tars go on from a byte, other shards from a record.
            offset = Offset(*start[2:]) if piece == start[:2] else BEGIN
            for record, after in read_shard(shard, start=offset, images=images):
                if record.index % parts == part:
                    empty_epochs = 0
                    following = Position(epoch, number + 1)
                    if after is not None:
                        following = Position(epoch, number, *after)
                    yield Position(epoch, number, record.index), record, following
        yield None
        if empty_epochs >= _MAX_EMPTY_EPOCHS:
            raise ValueError(
                f"streams: lane {lane} of {lanes} finds no record in its share of {len(source.shards)} shards, such as "
                f"{source.shards[0]}; use fewer lanes (streams.lanes) or more data"
            )


class Lane:
    """Endless good samples of a lane; a seeded choice by weight says from which source the next one comes.

    A source that runs out begins its next epoch, so the weights hold for ever; small sources are seen more often.

    Args:
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
        state: LaneState | None = None,
    ) -> None:
        self._lane = lane
        self._seed = seed
        self._read = read
        state = state or {"drawn": 0, "bad": 0, "streams": [START] * len(sources)}
        self._num_good = state["drawn"]
        self._num_bad = state["bad"]
        # A copy: the saved state stays as it was.
        self._cursors = list(state["streams"])
        total = sum(source.weight for source in sources)
        shares = [source.weight / total for source in sources]
        self._until = list(itertools.accumulate(shares))
        self._streams = [
            read_stream(
                source,
                lane=lane,
                lanes=lanes,
                seed=sample_seed(seed, epoch=0, index=number, purpose="source"),
                # All sources' blocks together hold `shuffle` samples in memory.
                block=max(1, round(shuffle * shares[number])),
                cursor=self._cursors[number],
                images=images,
            )
            for number, source in enumerate(sources)
        ]

    def next_example(self, bad: list[Bad]) -> Example:
        """Return the next good sample; bad ones before it go to `bad`, ValueError if there are far too many."""
        mixture = sample_seed(self._seed, epoch=self._lane, index=self._num_good, purpose="mixture")
        # The sum of the shares may be a little below 1.
        source = min(bisect.bisect_right(self._until, mixture / 2**63), len(self._until) - 1)
        lost_shards = 0
        passed = 0
        while lost_shards < _MAX_LOST_SHARDS and passed < _MAX_BAD_RECORDS:
            epoch, record, self._cursors[source] = next(self._streams[source])
            if isinstance(record, Sample):
                try:
                    example = self._read(record, epoch)
                except (ValueError, MemoryError) as error:
                    record = record.bad(str(error) or type(error).__name__)
                else:
                    self._num_good += 1
                    return example
            bad.append(record)
            passed += 1
            lost_shards += record.kind == "shard"
            self._num_bad += record.kind == "row"
        raise ValueError(
            f"streams: lane {self._lane} finds nothing that can be used, in {passed} records; the last one is in "
            f"{bad[-1].shard}: {bad[-1].reason}"
        )

    @property
    def state(self) -> LaneState:
        """Progress, ready for JSON; goes on after what was given last."""
        return {"drawn": self._num_good, "bad": self._num_bad, "streams": list(self._cursors)}


class StreamLoader:
    """Micro-batches of steps out of streams.

    The samples of a step depend on (sources, configuration, seed) alone: not on the workers, the processes, or where
    the run was cut off. A row of the global batch comes from the lane that its number says; processes and micro-steps
    have lanes of their own. The next sample of a lane stands in for one that cannot be used, so the step number does
    not tell how far the lanes are: `cursor` does.

    Args:
        quarantine: File for bad records of this process; those of further processes have their rank in the name.
        max_bad_share: Share of bad samples above which the run ends, once there were enough to tell.
        rank: Number of this process of `world_size`; None asks the process group for either.

    Raises:
        ValueError: The batch cannot be cut evenly.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        examples: StreamExamples,
        *,
        config: StreamConfig,
        loader: LoaderConfig,
        seed: int,
        quarantine: Path,
        max_bad_share: float = 1.0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._sources = sources
        self._examples = examples
        self._config = config
        self._loader = loader
        self._seed = seed
        self._max_bad_share = max_bad_share
        self._lost_shards = 0
        rank = distributed.rank() if rank is None else rank
        world_size = distributed.world_size() if world_size is None else world_size
        validate_lanes(config, loader=loader, processes=world_size)
        self._quarantine = QuarantineFile(
            quarantine.with_suffix(f".{rank}{quarantine.suffix}") if rank else quarantine
        )
        # Lanes of one micro-step in this process; they are cut evenly, as `validate_lanes` has checked.
        count = config.lanes // (world_size * loader.accumulation)
        # As `micro_batches` cuts a global batch: a micro-step's lanes in the order of ranks.
        starts = [(micro * world_size + rank) * count for micro in range(loader.accumulation)]
        # This process's lanes, by micro-step.
        self._lanes = [range(start, start + count) for start in starts]
        self._step = 0
        self._states = LaneStates()

    def __call__(self, start_step: int) -> Iterator[list[Batch]]:
        """Yield without end the micro-batches of step `start_step`, which is 0 or that of `go_on_from`, and so on.

        Workers start at the first `next` and live until the iterator is closed or dropped.

        Raises:
            ValueError: No sample can be used any more, or too many are bad.
        """
        if start_step != self._step:
            raise ValueError(
                f"start_step is {start_step}, but the cursor of this stream is that of {self._step}"
            )
        # A lane cannot be cut, so there are at most as many workers at work as lanes.
        num_workers = self._loader.num_workers
        num_lanes = len(self._lanes[0])
        num_parts = min(max(1, num_workers), num_lanes)
        if num_workers > num_lanes:
            logger.warning(
                "streams: %d of %d workers of this process have no lane to read; raise "
                "data.streams.lanes (%d) or lower loader.num-workers to %d",
                num_workers - num_lanes,
                num_workers,
                self._config.lanes,
                num_lanes,
            )
        reader = _LaneReader(
            self._lanes,
            num_parts,
            self._loader.global_batch_size // self._config.lanes,
            partial(self._open, states=self._states),
            self._examples.collate,
        )
        parts = start_workers(reader, num_workers=min(num_workers, num_parts))
        for step in itertools.count(start_step):
            # A copy: the cursor moves on when the whole step is there.
            states = dict(self._states)
            batches = []
            for micro in range(self._loader.accumulation):
                batch: Any = self._next_batch(itertools.islice(parts, num_parts), states)
                number = step * self._loader.accumulation + micro
                batches.append(add_step(batch, step=step, micro_step=number, seed=self._seed))
            bad = sum(state["bad"] for state in states.values())
            samples = bad + sum(state["drawn"] for state in states.values())
            if samples >= _ENOUGH and bad > self._max_bad_share * samples:
                raise ValueError(
                    f"streams: {bad} of {samples} samples are bad, a larger share than {self._max_bad_share}; their"
                    " reasons are in the quarantine file: repair the data, or allow a larger share (max_bad_share)"
                )
            self._step = step + 1
            self._states = states
            yield batches

    def _next_batch(self, parts: Iterator[Any], states: LaneStates) -> Batch:
        """Return the batch of the parts that workers made of it, and bring `states` up to date."""
        batches = []
        for part in parts:
            if isinstance(part, str):
                raise ValueError(part)
            batches.append(part["batch"])
            states |= part["lanes"]
            self._note_bad(part["bad"])
        batch: Any = merge(batches, pad_token_id=self._examples.pad_token_id)
        if torch.cuda.is_available():
            # Pinned memory is copied to the GPU while it computes.
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch

    def cursor(self, step: int) -> LaneStates:
        """Return the states of this process's lanes after the first `step` steps; `step` is that of the newest item."""
        assert step == self._step
        return self._states

    def go_on_from(self, step: int, cursor: LaneStates) -> None:
        """Set the start: cursors of all processes after `step` steps, as one; ValueError for those of other streams."""
        lanes = list(map(str, itertools.chain.from_iterable(self._lanes)))
        missing = set(lanes) - cursor.keys()
        if missing:
            raise ValueError(
                f"the saved cursor has no lane {min(missing)}: it is of a run with other streams"
            )
        self._step = step
        self._states = {lane: cursor[lane] for lane in lanes}

    def _open(self, number: int, *, states: LaneStates) -> Lane:
        return Lane(
            self._sources,
            lane=number,
            lanes=self._config.lanes,
            seed=self._seed,
            shuffle=-(-self._config.shuffle // self._config.lanes),
            read=self._examples,
            images=self._examples.contents.transform is not None,
            state=states.get(str(number)),
        )

    def _note_bad(self, bad: Sequence[Bad]) -> None:
        """Add to the quarantine; log the first shard that cannot be read to its end, the second, the fourth, ..."""
        self._quarantine.add(bad)
        for record in bad:
            self._lost_shards += record.kind == "shard"
            if record.kind == "shard" and self._lost_shards.bit_count() == 1:
                warning = "streams: %s: %s; %d such so far in this process, all named in the quarantine file"
                logger.warning(warning, record.shard, record.reason, self._lost_shards)


@dataclass(eq=False)
class _LaneReader(IterableDataset):
    """Yields, in a worker, micro-step by micro-step the samples of its lanes, or as a string why there are none."""

    lanes: Sequence[Sequence[int]]
    num_parts: int
    rows: int
    open: Callable[[int], Lane]
    collate: Callable[[list[Example]], Batch]

    def __iter__(self) -> Iterator[dict[str, Any] | str]:
        worker = get_worker_info()
        part = 0 if worker is None else worker.id
        try:
            lanes = []
            for numbers in self.lanes:
                # A contiguous share, so that the order of rows does not tell how many workers there are.
                first = len(numbers) * part // self.num_parts
                end = len(numbers) * (part + 1) // self.num_parts
                lanes.append({str(number): self.open(number) for number in numbers[first:end]})
            for micro_lanes in itertools.cycle(lanes):
                bad: list[Bad] = []
                examples = []
                for lane in micro_lanes.values():
                    examples += [lane.next_example(bad) for _ in range(self.rows)]
                states = {name: lane.state for name, lane in micro_lanes.items()}
                yield {"batch": self.collate(examples), "lanes": states, "bad": bad}
        # An error raised in a worker would arrive with its traceback; its text is what the user needs.
        except (ValueError, OSError) as error:
            yield str(error)
