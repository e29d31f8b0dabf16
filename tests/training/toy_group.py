"""The toy run in several gloo processes that tests can pause, stop and kill at a chosen moment."""

import contextlib
import itertools
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from tests import forkserver
from tests.forkserver import PATIENCE_S
from tests.killing import wait_until
from tests.rights import ordinary_rights
from tests.training import toy_run
from tests.training.toy_run import Settings, make_trainer

from vlmo.data.loader import LoaderConfig, RowLoader
from vlmo.data.sampler import global_batch
from vlmo.training import TrainerConfig, TrainingError, launch
from vlmo.types import Batch


@dataclass(frozen=True)
class Pause:
    """The place where a process stops and waits for the test.

    Attributes:
        rank: Its process; None: whichever gets there.
        moment: Before there is a trainer, in reading a batch, in a forward, in an evaluation, or just before a training
            state gets its name.
        step: The step that is read, trained, evaluated or saved; they count from 1.
    """

    rank: int | None
    moment: Literal["start", "batch", "forward", "evaluation", "save"]
    step: int = 0


@dataclass
class Group:
    """Processes of one run."""

    folder: Path
    processes: list[forkserver.Process]
    store: dist.TCPStore

    def wait_for_pause(self) -> None:
        wait_until(
            (self.folder / "paused").exists,
            within_s=PATIENCE_S,
            meanwhile=lambda: all(process.is_alive() for process in self.processes),
        )

    def go_on(self) -> None:
        (self.folder / "paused").unlink()

    def codes(self, *, within_s: float) -> list[int | None]:
        """Exit codes; None for a process that still lives after that time."""
        deadline = time.monotonic() + within_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def output(self, rank: int) -> str:
        return self.processes[rank].stdout + self.processes[rank].stderr

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def start(folder: Path, *, world_size: int = 2, **arguments: Any) -> Group:
    """Starts processes that train in `folder`/run, with arguments of `_train`; this one keeps their store."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "paused").unlink(missing_ok=True)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    processes = [
        forkserver.start(_process, folder, env=env | own, **arguments)
        for own in forkserver.group_environments(world_size, port=store.port)
    ]
    return Group(folder, processes, store)


def _process(folder: Path, **arguments: Any) -> None:
    try:
        _train(folder, **arguments)
    except (ValueError, OSError, TrainingError) as error:  # as the command line does
        os.write(2, f"vlmo: {error}\n".encode())
        os._exit(1 if isinstance(error, TrainingError) else 2)
    os._exit(0)


def _train(
    folder: Path,
    *,
    config: TrainerConfig,
    pause: Pause | None = None,
    hang_seconds: float = 60.0,
    ordinary: bool = False,
    num_workers: int | None = None,
    kills_worker_in_step: int | None = None,
) -> None:
    """Trains; if `ordinary`, without root's right to write anywhere; with `num_workers`, by the real loader."""
    rank = int(os.environ["RANK"])
    if pause is not None and pause.rank in {None, rank}:
        _arm(folder, pause)
    evaluations = itertools.count(1)

    def evaluate(_: Any) -> dict[str, float]:
        if pause == Pause(rank, "evaluation", step=next(evaluations) * config.eval_every):
            _stop_here(folder)
        return {"toy/one": 1.0}

    load = (
        None
        if num_workers is None
        else _loader(num_workers=num_workers, kills_in_step=kills_worker_in_step)
    )
    rights = ordinary_rights() if ordinary else contextlib.nullcontext()
    with rights, launch("cpu", hang_seconds=hang_seconds):
        if pause is not None and pause.moment == "start" and pause.rank == rank:
            _stop_here(folder)
        trainer = make_trainer(folder / "run", load=load, config=config, evaluate=evaluate)
        trainer.fit()


class Rows:
    """Rows of which one has its worker killed, as the system does when memory runs out."""

    trap: int | None = None

    def __len__(self) -> int:
        return 128

    def __getitem__(self, key: tuple[int, int]) -> int:
        if key[1] == self.trap:
            os.kill(os.getpid(), signal.SIGKILL)
        return key[1]

    def collate(self, examples: list[int]) -> Batch:
        rows = torch.tensor(examples)
        return Batch(pixel_values=torch.sin(rows[:, None] + torch.arange(4.0)), sample_ids=rows)


def _loader(*, num_workers: int, kills_in_step: int | None) -> RowLoader:
    rows = Rows()
    loader = RowLoader(
        rows, config=LoaderConfig(global_batch_size=8, num_workers=num_workers), seed=0
    )
    if kills_in_step is not None:
        rows.trap = global_batch(kills_in_step - 1, num_samples=len(rows), batch_size=8, seed=0)[0][
            1
        ]
    return loader


def _stop_here(folder: Path) -> None:
    (folder / "paused").touch()
    wait_until(lambda: not (folder / "paused").exists(), within_s=PATIENCE_S)


def _arm(folder: Path, pause: Pause) -> None:
    """Makes this process stop at its pause."""
    if pause.moment == "save":

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "os.rename" and str(arguments[1]).endswith(f"state/step_{pause.step:08d}"):
                _stop_here(folder)

        sys.addaudithook(watch)
    elif pause.moment == "forward":
        forward = toy_run.Objective.forward

        def paused_forward(self: toy_run.Objective, batch: Any) -> Any:
            if int(batch["step_seed"]) == pause.step - 1:
                _stop_here(folder)
            return forward(self, batch)

        toy_run.Objective.forward = paused_forward
    elif pause.moment == "batch":
        make_loader = toy_run.make_loader

        def paused_loader(settings: Settings) -> Any:
            def load(start_step: int) -> Any:
                for step, batch in enumerate(make_loader(settings)(start_step), start_step + 1):
                    if step == pause.step:
                        _stop_here(folder)
                    yield batch

            return load

        toy_run.make_loader = paused_loader
