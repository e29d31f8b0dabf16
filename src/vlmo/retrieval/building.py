"""Builds an index, goes on with one that was interrupted, or brings one up to date."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from rich.console import Console

from vlmo.folder.atomic import LOCK_FILE, lock_folder, write_file
from vlmo.lazy import install_command
from vlmo.progress import Progress
from vlmo.retrieval.approximate import Recall, make_approximate
from vlmo.retrieval.encoder import BATCH, Encoder
from vlmo.retrieval.engines import EngineChoice, Precision
from vlmo.retrieval.executor import Executor, local_executor
from vlmo.retrieval.index import INDEX_FILE, VERSION, read_facts
from vlmo.retrieval.metadata import MetadataTable
from vlmo.retrieval.sources import Found, Reader, as_origin, find, was_deleted
from vlmo.retrieval.store import Store
from vlmo.retrieval.update import Update

_LOOKUPS_FROM = 20_000
"""Images from which on the table's columns of ids and hashes are indexed."""
APPROXIMATE_FROM = 50_000
"""Images from which on an approximate index is built beside the exact search."""
_LISTED_EVERY = 1000
"""Listed files between two updates of the progress."""


@dataclass(frozen=True)
class BuildReport:
    """Result of a run.

    Attributes:
        images: Number of images that the index holds now.
        captions: Number of captions.
        encoded: Images that went through the model.
        reused: New or changed images whose bytes the index had a vector of.
        unchanged: Images that were left as they are.
        deleted: Images that are gone.
        bad: Lines in the quarantine.
        seconds: Duration of the whole run.
        recall: Recall of the approximate index; None without one.
        unmatched: A sentence about names in tables of metadata that no image has; None: every name has one.
    """

    images: int
    captions: int
    encoded: int
    reused: int
    unchanged: int
    deleted: int
    bad: int
    seconds: float
    recall: Recall | None
    unmatched: str | None = None


def build_index(
    model: str | Path | Encoder,
    inputs: Sequence[str | Path] = (),
    *,
    out: str | Path,
    store_bytes: bool | None = None,
    metadata: str | Path | None = None,
    forget: Sequence[str | Path] = (),
    batch: int = BATCH,
    approximate_from: int = APPROXIMATE_FROM,
    executor: Literal["local", "ray"] = "local",
    workers: int = 2,
    dim: int | None = None,
    engine: EngineChoice = "torch",
    precision: Precision = "float32",
    device: str | None = None,
    console: Console | None = None,
) -> BuildReport:
    """Make the folder `out` an index of all images in `inputs`, and in the inputs of earlier runs.

    Images that the index has already are not embedded again: after a crash, and when files were added, changed or
    removed. Bad images leave a line in `quarantine.jsonl`.

    Args:
        model: Model folder, or an `Encoder` of one.
        inputs: Folders, image files, videos, .tar and .parquet files, folders that `datasets` saved, or patterns and
            URIs of these.
        out: Folder of the index, on this machine's disk.
        store_bytes: Keep the bytes of image files in the index; those of shards and key frames are kept in any case.
            None: as in the last run, and not in the first one.
        metadata: Table of captions and columns for files, by their names. None: that of the last run; without one,
            `captions.csv` and the like in the folders themselves.
        forget: Inputs of earlier runs whose images leave the index, or the table of metadata that they were given.
        batch: Images that go through the model at a time.
        approximate_from: Number of images from which on an approximate index is built beside the exact search.
        executor: Embed in this process, or in actors of Ray Data.
        workers: Number of these actors.
        dim: Size of the vectors, as for `Encoder`, if a folder is given. None: as in the first run; there all.
        engine: As for `Encoder`, if a folder is given; so are precision and device.
        precision: float32 or int8.
        device: None takes a GPU if there is one and the engine is torch.
        console: Console for the progress, as a bar, or as a line every ten seconds where it is no terminal; None shows
            nothing.

    Raises:
        ValueError: Nothing to index, something that cannot be read, an index of another model or size of vectors,
            or a number below 1.
    """
    for name, value in (("batch", batch), ("approximate_from", approximate_from), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give a number from 1 up")
    start, folder = time.perf_counter(), Path(out).expanduser()
    earlier = _facts_of(folder)
    remembered = _remembered(earlier, store_bytes=store_bytes, metadata=metadata, forget=forget)
    table = None if remembered["metadata"] is None else MetadataTable(Path(remembered["metadata"]))
    origins = _origins(earlier, inputs, forget)
    made_with = {} if earlier is None else earlier["model"]
    if isinstance(model, Encoder):
        encoder = model
    else:
        dim = made_with.get("dim") if dim is None else dim
        encoder = Encoder(model, dim=dim, engine=engine, precision=precision, device=device)
    if made_with and (made_with["fingerprint"], made_with["dim"]) != (encoder.fingerprint, encoder.dim):
        raise ValueError(
            f"{folder} was made with another model or size of vectors ({made_with['folder']}, fingerprint "
            f"{made_with['fingerprint'][:8]}, {made_with['dim']} dimensions) than {encoder.folder} "
            f"({encoder.fingerprint[:8]}, {encoder.dim}); name a new folder"
        )
    with _listing(folder) as listing:
        before = () if earlier is None else earlier["inputs"]
        with Progress(console) as progress:
            size = sum(_list(origin, listing, before=before, progress=progress) for origin in origins)
        with lock_folder(folder, work="writing this index"), _leaving_nothing(folder, is_new=earlier is None):
            facts: dict[str, Any] = {
                **(earlier or {"created": _now(), "pictures": 0, "captions": 0, "approximate": None}),
                "version": VERSION,
                "model": {
                    "folder": str(encoder.folder.absolute()),
                    "fingerprint": encoder.fingerprint,
                    "dim": encoder.dim,
                },
                "metric": "cosine",
                "inputs": origins,
                "told": remembered,
                "complete": False,
            }
            write_file(folder / INDEX_FILE, json.dumps(facts, indent=1))
            store = Store(folder, dim=encoder.dim)
            reader = Reader(remembered["store_bytes"], table)
            with Progress(console, in_bytes=True) as progress:
                update = Update(store, reader=reader, size=size, progress=progress)
                listing.seek(0)
                found = (Found(**json.loads(line)) for line in listing)
                counts = update.run(_executor(executor, encoder, batch=batch, workers=workers), found)
            images = store.images.count_rows()
            store.optimize(lookups=images >= _LOOKUPS_FROM, alone="updated" not in facts)
            approximate = make_approximate(store, least=approximate_from, before=facts["approximate"], console=console)
            captions = store.captions.count_rows()
            facts |= {
                "complete": True,
                "pictures": images,
                "captions": captions,
                "updated": _now(),
                "approximate": None if approximate is None else asdict(approximate),
            }
            write_file(folder / INDEX_FILE, json.dumps(facts, indent=1))
    return BuildReport(
        images=images,
        captions=captions,
        **counts,
        seconds=time.perf_counter() - start,
        recall=None if approximate is None else approximate.recall,
        unmatched=reader.unmatched(),
    )


@contextmanager
def _leaving_nothing(folder: Path, *, is_new: bool) -> Iterator[None]:
    """Remove the folder of a new index after an error before its first images are in it; not after an interruption."""
    try:
        yield
    except Exception:
        if is_new and not any(folder.glob("*.lance/data/*")) and not any(folder.glob("pending/*.arrow")):  # `Journal`
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _listing(folder: Path) -> Iterator[IO[str]]:
    """Yield a temporary file for the list of inputs, as lists of millions need no memory there."""
    try:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
            yield file
    except OSError as error:
        if error.filename is None:  # a full disk
            error.filename = f"{folder}, whose list of inputs is in {tempfile.gettempdir()}"
        raise


def _facts_of(folder: Path) -> dict[str, Any] | None:
    """Contents of the index file; None of a folder that is missing or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir() or not (folder / INDEX_FILE).is_file():
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {LOCK_FILE, f"{INDEX_FILE}.aside"}:
            return None  # a start that was cut off
        raise ValueError(f"{folder} holds something else than an index; name a new folder")
    return read_facts(folder)


def _remembered(
    facts: dict[str, Any] | None,
    *,
    store_bytes: bool | None,
    metadata: str | Path | None,
    forget: Sequence[str | Path],
) -> dict[str, Any]:
    """Settings that stay in force for later runs until they are given anew."""
    remembered: dict[str, Any] = {
        "metadata": None,
        "store_bytes": False,
        **({} if facts is None else facts.get("told", {})),
    }
    if store_bytes is not None:
        remembered["store_bytes"] = store_bytes
    if metadata is not None:
        remembered["metadata"] = as_origin(str(metadata))
    elif remembered["metadata"] in [as_origin(str(given)) for given in forget]:
        remembered["metadata"] = None
    elif remembered["metadata"] is not None and not Path(remembered["metadata"]).is_file():
        raise ValueError(
            f"{remembered['metadata']}, this index's table of metadata, is gone; give --metadata with its new place, "
            f"or take it out with --remove {remembered['metadata']}"
        )
    return remembered


def _origins(facts: dict[str, Any] | None, inputs: Sequence[str | Path], forget: Sequence[str | Path]) -> list[str]:
    before = [] if facts is None else facts["inputs"]
    table = None if facts is None else facts.get("told", {}).get("metadata")
    dropped = [origin for given in forget if (origin := as_origin(str(given))) != table]
    if unknown := [origin for origin in dropped if origin not in before]:
        raise ValueError(f"{unknown[0]} is no input of this index; its inputs are {', '.join(before) or 'none'}")
    kept = [origin for origin in before if origin not in dropped]
    origins = list(dict.fromkeys([*kept, *(as_origin(str(given)) for given in inputs)]))
    if not origins and not forget:
        raise ValueError("there is nothing to index; give folders, images, videos, .tar or .parquet files")
    return origins


def _list(origin: str, listing: IO[str], *, before: Collection[str], progress: Progress) -> int:
    """Write everything in an input to a file, a line each; return its size in bytes."""
    if origin in before and was_deleted(origin):
        return 0
    size = number = 0
    try:
        for number, found in enumerate(find(origin), start=1):
            listing.write(json.dumps(asdict(found)) + "\n")
            size += found.size
            if number % _LISTED_EVERY == 0:
                progress.update(f"listing {origin}", number, None)
    except ValueError as error:
        if origin not in before:
            raise
        raise ValueError(f"{error}. The index has images of it; --remove {origin} takes them out") from error
    if not number:
        raise ValueError(
            f"{origin} holds no image, video, .tar or .parquet file; an input that is empty on purpose is taken out of "
            "an index with --remove"
        )
    return size


def _executor(name: Literal["local", "ray"], encoder: Encoder, *, batch: int, workers: int) -> Executor:
    if name == "local":
        return local_executor(encoder, batch=batch)
    try:
        from vlmo.retrieval.ray_executor import ray_executor
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}. Ray needs more packages: {install_command('ray')}") from error
    return ray_executor(encoder, batch=batch, workers=workers)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
