"""Runs all parts of a set, in several processes, and goes on where an interrupted run was."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from datasets.utils import tqdm
from filelock import FileLock, Timeout

from vlmo.data.prepare.assembly import LAYOUT, assemble, check_target, open_prepared
from vlmo.data.prepare.checking import Rules, Tally, check_part
from vlmo.data.prepare.parts import Part, Preparer, SetOnDisk
from vlmo.data.prepare.summary import Summary

_LOCK_FILE = ".lock"
_AHEAD = 2
"""Parts for each process that are listed before they are needed."""


def prepare_set(preparer: Preparer, *, root: Path, out: Path, num_proc: int) -> Summary:
    """See `vlmo.data.prepare.prepare`.

    Raises:
        ValueError: As there; or `num_proc` is below 1.
    """
    if num_proc < 1:
        raise ValueError(f"num_proc {num_proc} must be at least 1")
    root, out = Path(root).expanduser().absolute(), Path(out).expanduser().absolute()
    unfinished = out.with_name(f"{out.name}.unfinished")
    if (before := open_prepared(out, name=preparer.NAME, root=root)) is not None:
        if unfinished.exists():  # the run before was killed at its very end, or is there now
            with contextlib.suppress(ValueError), _alone(unfinished, out=out):
                pass
        return before
    check_target(out, root=root)
    found = preparer.open_set(root)
    with _alone(unfinished, out=out):
        if (before := open_prepared(out, name=preparer.NAME, root=root)) is not None:
            return before  # another run ended while the lists were read
        return _prepare(found, preparer=preparer, root=root, out=out, unfinished=unfinished, num_proc=num_proc)


def _prepare(
    found: SetOnDisk, *, preparer: Preparer, root: Path, out: Path, unfinished: Path, num_proc: int
) -> Summary:
    rules = Rules(
        name=preparer.NAME,
        features=found.features,
        needs_image=found.needs_image,
        needs_caption=found.needs_caption,
    )
    checked: list[tuple[Path, dict[str, Tally]]] = []
    with tqdm(desc=preparer.NAME, unit=" rows", total=found.num_rows) as bar:
        for folder, tallies in _run(found.parts, rules=rules, unfinished=unfinished, num_proc=num_proc):
            checked.append((folder, tallies))
            bar.update(sum(tally.read for tally in tallies.values()))
    return assemble(checked, preparer=preparer, found=found, root=root, out=out)


@contextlib.contextmanager
def _alone(unfinished: Path, *, out: Path) -> Iterator[None]:
    """Keeps other runs away from `unfinished` while this one works in it; once `out` is whole, it is removed.

    The system lets go of the lock when a process ends, whatever ends it. The lock's file goes with the folder only when
    `out` is there: whoever gets the lock of a file that is gone finds the prepared folder.

    Raises:
        ValueError: Another run has it.
    """
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(unfinished / _LOCK_FILE, timeout=0).acquire()
    except Timeout as error:
        raise ValueError(
            f"another run is preparing {out}; wait until it has ended, or choose another folder for --out"
        ) from error
    with lock:
        try:
            yield
        except BaseException:
            if [entry.name for entry in unfinished.iterdir()] == [_LOCK_FILE]:
                shutil.rmtree(unfinished)  # no part to keep
            raise
        shutil.rmtree(unfinished)


def _run(
    parts: Iterable[Part], *, rules: Rules, unfinished: Path, num_proc: int
) -> Iterator[tuple[Path, dict[str, Tally]]]:
    """Folder and counts of each part, in their order."""
    named = ((unfinished / f"{number:06}-{_digest(part, rules)}", part) for number, part in enumerate(parts))
    if num_proc == 1:
        for folder, part in named:
            yield folder, check_part(part, rules=rules, folder=folder)
        return
    with _pool(num_proc) as pool:
        waiting: collections.deque[tuple[Path, concurrent.futures.Future[dict[str, Tally]]]] = collections.deque()
        for folder, part in named:
            waiting.append((folder, pool.submit(check_part, part, rules=rules, folder=folder)))
            if len(waiting) > _AHEAD * num_proc:
                first, future = waiting.popleft()
                yield first, future.result()
        for folder, future in waiting:
            yield folder, future.result()


def _digest(part: Part, rules: Rules) -> str:
    """Tells whether a part that an earlier run has left is the same one, looked at in the same way."""
    facts = f"{LAYOUT} {rules.name} {rules.features.keys()} {rules.needs_image} {rules.needs_caption} {part.key}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


@contextlib.contextmanager
def _pool(num_proc: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    # Arrow and progress bars have threads, which a process forked from here would inherit in an unknown state. A server
    # without them imports everything once for all.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload([check_part.__module__])
    pool = concurrent.futures.ProcessPoolExecutor(num_proc, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise OSError(
            "a process ended without a word, most often for want of memory. Finished parts are kept: run the same "
            f"again, with fewer processes than {num_proc}. (In a script, call `prepare` below "
            "`if __name__ == '__main__':`.)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: after `kill -9`, nobody else tells it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's affair
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("only for a process that multiprocessing has started")
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
