"""Which shards a run reads: patterns to lists, made once for a run and kept beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import fsspec
from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem

from vlmo import distributed
from vlmo.data.sampler import order, sample_seed
from vlmo.folder import write_file

SHARD_SUFFIXES = (".tar", ".parquet")
LIST_FILE = "shards.json"

_MAGIC = frozenset("*?[")


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
        """The pieces that lane `lane` of `lanes` reads in `epoch`, in this order.

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


def list_shards(pattern: str) -> tuple[str, ...]:
    """Shards that a pattern names, sorted.

    Args:
        pattern: A path or an fsspec URL of .tar or .parquet files, with braces ({00000..00331}, {a,b}) and wildcards
            (*, ?, [0-9], **), or a folder. What braces name is not looked for: a shard that is missing is found out
            when it is to be read, and goes to the quarantine.

    Raises:
        ValueError: Nothing matches, or something other than a shard does.
    """
    urls = _alternatives(pattern)
    files = _file_system(urls[0], pattern=pattern)  # one for all: there may be a hundred thousand of them
    found = [shard for url in urls for shard in _matches(url, files, pattern=pattern)]
    others = [shard for shard in found if not shard.endswith(SHARD_SUFFIXES)]
    if others:
        raise ValueError(f"streams: {pattern} names {others[0]}; shards end with {' or '.join(SHARD_SUFFIXES)}")
    return tuple(sorted(found))


def open_sources(patterns: Sequence[str], *, weights: Sequence[float], folder: Path) -> list[Source]:
    """A source for each pattern; the lists are kept in `folder`, and read there when the run goes on.

    So a shard that vanishes or arrives between two starts changes nobody's order. Lists of other patterns, from a start
    that came to nothing, are made anew. All processes call this; the main one writes.

    Raises:
        ValueError: A pattern names nothing, or two name the same shard.
    """
    path = folder / LIST_FILE
    if distributed.is_main() and (not path.is_file() or _read_lists(path)["patterns"] != list(patterns)):
        lists = [list_shards(pattern) for pattern in patterns]
        _check_once(lists)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({"patterns": list(patterns), "shards": lists}, indent=1))
    distributed.barrier()
    lists = _read_lists(path)["shards"]
    return [Source(tuple(shards), weight) for shards, weight in zip(lists, weights or [1.0] * len(lists), strict=True)]


def _read_lists(path: Path) -> dict[str, list]:
    return json.loads(path.read_text(encoding="utf-8"))


def _alternatives(pattern: str) -> list[str]:
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"streams: {pattern}: its braces do not match ({error})") from error


def _matches(url: str, files: fsspec.AbstractFileSystem, *, pattern: str) -> list[str]:
    path = str(files._strip_protocol(url))
    try:
        if not _MAGIC.isdisjoint(path):
            paths = files.glob(path)
        else:
            paths = [path] if path.endswith(SHARD_SUFFIXES) else _below(files, path)
    except (OSError, ValueError) as error:
        raise ValueError(f"streams: {pattern} cannot be listed: {error}") from error
    if not paths:
        raise ValueError(f"streams: {pattern} matches nothing; give shards that are there (.tar or .parquet)")
    is_local = isinstance(files, LocalFileSystem)
    return [str(path) if is_local else files.unstrip_protocol(path) for path in paths]


def _file_system(url: str, *, pattern: str) -> fsspec.AbstractFileSystem:
    try:
        return fsspec.core.url_to_fs(url)[0]
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"streams: {pattern} cannot be listed: {error}") from error


def _below(files: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Tar files below a folder, or else parquet files: beside tars, img2dataset leaves parquet without pictures."""
    return files.glob(f"{folder}/**/*.tar") or files.glob(f"{folder}/**/*.parquet")


def _check_once(lists: Sequence[Sequence[str]]) -> None:
    seen: set[str] = set()
    for shard in (shard for shards in lists for shard in shards):
        if shard in seen:
            raise ValueError(f"streams: {shard} is named twice; each shard belongs to one pattern, and once")
        seen.add(shard)
