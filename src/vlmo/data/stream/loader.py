"""Endless batches out of streams, made in worker processes, with a cursor that goes on exactly."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vlmo import distributed
from vlmo.data.examples import Example, StreamExamples, merge
from vlmo.data.loader import LoaderConfig, start_workers
from vlmo.data.rows import Bad, QuarantineFile
from vlmo.data.sampler import batch_seed
from vlmo.data.stream.lanes import Lane, Source
from vlmo.types import Batch

logger = logging.getLogger(__name__)

_ENOUGH = 10_000  # samples that a process has met before the share of bad ones among them says anything
_KEPT = 4  # cursors of steps gone by: the trainer asks for that of the newest one

LaneStates = dict[str, Any]
"""State of each lane by its number, as text: ready for JSON."""


@dataclass(frozen=True)
class StreamConfig:
    """Shards that are read as streams, and their mixture."""

    patterns: tuple[str, ...] = ()
    """Tar shards or parquet files: paths, wildcards, braces, folders or fsspec URLs. Each pattern is a source."""
    weights: tuple[float, ...] = ()
    """Shares of the sources among the samples, relative to each other; equal ones if none are given."""
    lanes: int = 8
    """Rows of shards that are read side by side; a multiple of processes x accumulation. Where a source has
    fewer shards, several lanes read one, and give some of its samples each."""
    shuffle: int = 4096
    """Samples that are kept in memory and shuffled, over all processes."""

    def __post_init__(self) -> None:
        """Raise ValueError if a number is below 1, or the weights do not fit the patterns."""
        if self.lanes < 1 or self.shuffle < 1:
            raise ValueError(f"streams: lanes is {self.lanes} and shuffle {self.shuffle}; give 1 or more")
        if self.weights and (len(self.weights) != len(self.patterns) or min(self.weights) <= 0):
            raise ValueError(
                f"streams: weights are {self.weights} for {len(self.patterns)} patterns; give a number above 0 for each"
            )


class StreamLoader:
    """Micro-batches of each step out of streams.

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
        self._sources, self._examples, self._config, self._loader = sources, examples, config, loader
        self._seed, self._max_bad_share = seed, max_bad_share
        self._rank = distributed.rank() if rank is None else rank
        world_size = distributed.world_size() if world_size is None else world_size
        validate_lanes(config, loader=loader, processes=world_size)
        if self._rank:
            quarantine = quarantine.with_suffix(f".{self._rank}{quarantine.suffix}")
        self._quarantine = QuarantineFile(quarantine)
        self._lost_shards = 0
        self._cursors: dict[int, LaneStates] = {0: {}}
        count = config.lanes // (world_size * loader.accumulation)
        starts = [(micro * world_size + self._rank) * count for micro in range(loader.accumulation)]
        # This process's lanes, by micro-step.
        self._lanes = [range(start, start + count) for start in starts]

    def __call__(self, start_step: int) -> Iterator[list[Batch]]:
        """Yield without end the micro-batches of step `start_step`, which is 0 or that of `go_on_from`, and so on.

        Workers start at the first `next` and live until the iterator is closed or dropped.

        Raises:
            ValueError: No sample can be used any more, or too many are bad.
        """
        if start_step not in self._cursors:
            raise ValueError(
                f"start_step is {start_step}: a stream goes on where a cursor says, and there is none for it"
            )
        accumulation, states = self._loader.accumulation, self._cursors[start_step]
        num_parts = min(max(1, self._loader.num_workers), len(self._lanes[0]))
        rows = self._loader.global_batch_size // self._config.lanes
        reader = _LaneReader(self._lanes, num_parts, rows, partial(self._open, states=states), self._examples.collate)
        parts = start_workers(reader, num_workers=min(self._loader.num_workers, num_parts))
        for step in itertools.count(start_step):
            batches = []
            for micro in range(accumulation):
                found: list[dict[str, Any]] = []
                for part in itertools.islice(parts, num_parts):
                    if isinstance(part, str):
                        raise ValueError(part)
                    found.append(part)
                    states = states | part["lanes"]
                    self._note_bad(part["bad"])
                batch = merge([part["batch"] for part in found], pad_token_id=self._examples.pad_token_id)
                if torch.cuda.is_available():
                    tensors = cast(dict[str, Tensor], batch)
                    batch = cast(Batch, {name: tensor.pin_memory() for name, tensor in tensors.items()})
                batch["step_seed"] = torch.tensor(batch_seed(self._seed, micro_step=step * accumulation + micro))
                batches.append(batch)
            bad, good = (sum(state[name] for state in states.values()) for name in ("bad", "drawn"))
            if bad + good >= _ENOUGH and bad > self._max_bad_share * (bad + good):
                raise ValueError(
                    f"streams: {bad} of {bad + good} samples are bad, a larger share than {self._max_bad_share}; their"
                    " reasons are in the quarantine file: repair the data, or allow a larger share (max_bad_share)"
                )
            self._cursors = {k: v for k, v in self._cursors.items() if k > step + 1 - _KEPT} | {step + 1: states}
            yield batches

    def cursor(self, step: int) -> LaneStates:
        """Return the states of this process's lanes after the first `step` steps; `step` is that of the newest item."""
        return self._cursors[step]

    def go_on_from(self, step: int, cursor: LaneStates) -> None:
        """Set the start: cursors of all processes after `step` steps, as one; ValueError for those of other streams."""
        own = {str(lane) for lanes in self._lanes for lane in lanes}
        if missing := own - cursor.keys():
            raise ValueError(f"the saved cursor has no lane {min(missing)}: it is of a run with other streams")
        self._cursors = {step: {lane: cursor[lane] for lane in sorted(own, key=int)}}

    def _open(self, number: int, *, states: LaneStates) -> Lane:
        return Lane(
            self._sources,
            lane=number,
            lanes=self._config.lanes,
            seed=self._seed,
            shuffle=-(-self._config.shuffle // self._config.lanes),
            read=self._examples,
            images=self._examples.transform is not None,
            state=states.get(str(number)),
        )

    def _note_bad(self, bad: Sequence[Bad]) -> None:
        """Add to the quarantine; log the first shard that cannot be read to its end, the second, the fourth, ..."""
        self._quarantine.add(bad)
        for record in bad:
            self._lost_shards += record.kind == "shard"
            if record.kind == "shard" and self._lost_shards.bit_count() == 1:
                warning = "streams: %s: %s; %d such so far in this process, each named in the quarantine file"
                logger.warning(warning, record.shard, record.reason, self._lost_shards)


@dataclass(eq=False)
class _LaneReader(IterableDataset):
    """Yields, in a worker, for each micro-step the samples of its lanes, or the reason why there are none.

    A reason is handed over as a string, as in `vlmo.data.loader`.
    """

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
            for micro in self.lanes:
                # A contiguous share, so that the order of rows does not tell how many workers there are.
                first, end = (len(micro) * number // self.num_parts for number in (part, part + 1))
                lanes.append({number: self.open(number) for number in micro[first:end]})
            for of_micro in itertools.cycle(lanes):
                bad: list[Bad] = []
                examples = [lane.next_example(bad) for lane in of_micro.values() for _ in range(self.rows)]
                yield {
                    "batch": self.collate(examples),
                    "lanes": {str(number): lane.state for number, lane in of_micro.items()},
                    "bad": bad,
                }
        except (ValueError, OSError) as error:
            yield str(error)


def validate_lanes(config: StreamConfig, *, loader: LoaderConfig, processes: int) -> None:
    """Raise ValueError unless lanes can be divided over processes and micro-steps, and rows of a batch over lanes."""
    pieces, lanes, size = processes * loader.accumulation, config.lanes, loader.global_batch_size
    if lanes % pieces:
        raise ValueError(
            f"streams.lanes is {lanes}, not a multiple of {processes} processes x {loader.accumulation} micro-steps: "
            f"change it to a multiple of {pieces}"
        )
    if size % lanes:
        raise ValueError(f"global_batch_size is {size}, not a multiple of {lanes} lanes (streams.lanes): change one")
