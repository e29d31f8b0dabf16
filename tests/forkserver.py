"""Processes for tests, forked from a server that has imported torch and vlmo once: each starts in milliseconds.

`run_processes` runs a function in a gloo group, `run_command` runs `vlmo ...`, and `start` gives a test a process that
it may pause, signal or kill. Functions travel by name: they stand at the top of a module under tests/.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE_S = 240.0  # on a busy machine

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preloaded"])


class Process(ForkServerProcess):
    """A process that runs a function; with `pid`, `exitcode`, `is_alive`, `join` and `kill` of multiprocessing."""

    folder: Path

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(self.pid, number)

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Return the exit code, the negative number of a signal that ended it; one that takes too long is killed."""
        self.join(timeout)
        if self.exitcode is None:
            self.kill()
            self.join()
            raise TimeoutError(f"after {timeout:g} s:\n{self.stdout}\n{self.stderr}")
        return self.exitcode


def start(
    function: Callable[..., Any],
    *args: Any,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    **kwargs: Any,
) -> Process:
    """Start `function(*args, **kwargs)` in a process with this process's environment and `env`, in folder `cwd`."""
    folder = Path(tempfile.mkdtemp(prefix="process-"))
    surroundings = folder, os.environ | dict(env or {}), str(cwd or Path.cwd())
    process = Process(target=_run, args=(*surroundings, function, args, kwargs))
    _start(process)
    process.folder = folder
    weakref.finalize(process, shutil.rmtree, folder, ignore_errors=True)
    return process


def _start(process: Process) -> None:
    # The server is started with the path of its parent, from which it imports.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        process.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _run(
    folder: Path,
    env: dict[str, str],
    cwd: str,
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    torch.set_num_threads(1)
    function(*args, **kwargs)


def start_command(*arguments: str | Path, world_size: int = 1, **options: Any) -> Process:
    """Start `vlmo ARGUMENTS`, under torchrun if `world_size` is above 1; options as for `start`."""
    words = list(map(str, arguments))
    if world_size > 1:
        return start(_agent, _command, [words], {}, world_size=world_size, **options)
    return start(_command, words, **options)


def _command(arguments: list[str]) -> None:
    from vlmo.cli import main

    sys.argv = ["vlmo", *arguments]
    main(arguments)


def run_command(
    *arguments: str | Path, timeout: float = PATIENCE_S, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `vlmo ARGUMENTS` to its end, like `subprocess.run` with captured output."""
    process = start_command(*arguments, **options)
    return subprocess.CompletedProcess(
        arguments, process.wait(timeout), process.stdout, process.stderr
    )


def group_environments(world_size: int, *, port: int | None = None) -> list[dict[str, str]]:
    """Return the environment of each process of a new group, as torchrun would set it; process 0 keeps the store."""
    if port is None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def start_group(
    function: Callable[..., Any], *args: Any, world_size: int = 2, **options: Any
) -> list[Process]:
    """Start a function in processes that torchrun might have started; nothing joins them to a group."""
    return [start(function, *args, env=env, **options) for env in group_environments(world_size)]


def _agent(function: Callable[..., Any], args: Any, kwargs: Any, *, world_size: int) -> None:
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    config = LaunchConfig(
        *(1, 1, world_size),
        run_id="tests",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    launch_agent(config, _worker, [function, args, kwargs])


def _worker(function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    function(*args, **kwargs)


def run_processes(function: Callable[..., Any], *args: Any, world_size: int = 2) -> list[Any]:
    """Return the results of `function(*args)` on each of `world_size` processes of one gloo group, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            start(_member, folder, rank, world_size, function, args) for rank in range(world_size)
        ]
        finish(processes)
        return [
            torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(world_size)
        ]


def _member(
    folder: str, rank: int, world_size: int, function: Callable[..., Any], args: Sequence[Any]
) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    try:
        torch.save(function(*args), Path(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


def finish(processes: Sequence[Process], *, timeout: float = PATIENCE_S) -> None:
    """Wait until all have ended with 0; the first that fails ends the others, and its errors are shown."""
    deadline = time.monotonic() + timeout
    try:
        while any(process.exitcode is None for process in processes):
            multiprocessing.connection.wait(
                [process.sentinel for process in processes if process.is_alive()], 1.0
            )
            failed = [process for process in processes if process.exitcode not in {None, 0}]
            assert not failed, "\n".join(
                f"exit code {each.exitcode}:\n{each.stderr}" for each in failed
            )
            assert time.monotonic() < deadline, "\n".join(process.stderr for process in processes)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
