"""What the machine does to a run, told in one line that says where the run stands and what to do."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from vlmo.distributed import rank
from vlmo.training.checkpoint import StateStore
from vlmo.training.errors import NO_ROOM, READ_ONLY, TrainingError
from vlmo.training.parallel import undisturbed
from vlmo.training.watchdog import Watchdog, is_lost_contact


@contextlib.contextmanager
def explained_faults(
    place: Callable[[], str], *, run_dir: Path, states: StateStore, watchdog: Watchdog
) -> Iterator[None]:
    """A context that turns faults of the machine into TrainingError; other errors pass.

    Args:
        place: Which run this is, and where it stands.
        states: Finishes a state that is being written, so that the line can name it.
        watchdog: Knows which processes are gone.
    """
    try:
        yield
    except (TrainingError, BrokenPipeError):
        raise
    except (OSError, EOFError, RuntimeError) as error:
        with undisturbed():
            fault = _lost_contact(watchdog) if is_lost_contact(error) else _of_this_machine(error, run_dir, states)
            if fault is None:
                raise
            # What the stopped frames hold is dropped: a loader left alive raises again at the end of each worker.
            traceback.clear_frames(error.__traceback__)
        raise TrainingError(f"{place()}: {fault}; {where_it_stands(states)}") from error


def where_it_stands(states: StateStore) -> str:
    """What is saved, for the end of a line that tells why a run ends."""
    saved = max(states.folder.glob("step_????????"), default=None)
    stands = f"the last saved state is {saved}, and" if saved else "nothing was saved yet;"
    return f"{stands} the same command goes on"


@contextlib.contextmanager
def explained_data(states: StateStore) -> Iterator[None]:
    """A context that adds to a ValueError where the run stands, once a state that is being written is whole."""
    try:
        yield
    except ValueError as error:
        with undisturbed(), contextlib.suppress(TrainingError, RuntimeError, OSError):
            states.wait()
        raise ValueError(f"{str(error).rstrip('.')}; {where_it_stands(states)}") from error


@contextlib.contextmanager
def explained_start(title: str, *, watchdog: Watchdog) -> Iterator[None]:
    """A context that turns the loss of another process, before the first step, into TrainingError."""
    try:
        yield
    except RuntimeError as error:
        with undisturbed():
            fault = _lost_contact(watchdog) if is_lost_contact(error) else None
        if fault is None:
            raise
        raise TrainingError(f"{title}: {fault} before the first step; the same command starts again") from error


def _lost_contact(watchdog: Watchdog) -> str | None:
    gone = ", ".join(map(str, watchdog.missing()))
    said = f"process {rank()} has lost process {gone}, which has ended or was killed (its own output may say why)"
    return said if gone else None


def _of_this_machine(error: OSError | EOFError | RuntimeError, run_dir: Path, states: StateStore) -> str | None:
    with contextlib.suppress(TrainingError, RuntimeError, OSError):
        states.wait()
    return describe_fault(error, run_dir=run_dir)


def describe_fault(error: OSError | EOFError | RuntimeError, *, run_dir: Path) -> str | None:
    """What the machine did to a run and what to do about it, in one phrase; None for errors of another kind."""
    if worker := re.search(
        r"DataLoader worker \(pid.*\) (?:is )?(killed by signal: \w+|exited unexpectedly)", str(error)
    ):
        return (
            f"a worker that prepares batches is gone ({worker[1]}), most often because memory ran out: give the machine"
            " more, or lower loader.num_workers"
        )
    if not isinstance(error, OSError):
        return None
    if error.errno in NO_ROOM:
        return f"no room to write in {run_dir} ({error}); free space there"
    if error.errno in READ_ONLY:
        return f"{error.filename or run_dir} may not be written or read ({error}); give this user the right to"
    return f"the system reports: {error}"
