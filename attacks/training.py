"""Attack training with kills at random moments and with a disk that is full from each write on.

    python -m attacks.training --out attacks/results/training.json        # a hundred kills, a full disk at each write
    python -m attacks.training --scale 0.05                               # a trial

Run it from the repository's folder. The run is small; trainer, states and process group are those of every training.
Each run that was harmed must end with the bits of one that was not. Exits with 1 if a promise is broken.
"""

import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from attacks.common import Attack, run_attack
from safetensors.torch import load_file
from tests import forkserver
from tests.killing import wait_until
from tests.training import toy_group
from tests.training.toy_group import Pause
from tests.training.toy_run import make_trainer, saved_tensors

from vlmo.training import TrainerConfig, TrainingError, read_metrics

STEPS = 12
CONFIG = TrainerConfig(max_steps=STEPS, log_every=1, save_every=2, eval_every=3)
SOON_S, LEFT_ALONE_S = 240.0, 90.0
PARTS = ("metrics", "state", "model")
Moment = Literal["forward", "save", "evaluation", "any"]
MOMENTS: tuple[Moment, ...] = ("forward", "save", "evaluation", "any")


def outcome(folder: Path) -> tuple[Any, ...]:
    """Return all that a run leaves: its metrics without times, the last state, and the weights."""
    timing = {"seconds", "samples_per_s"}
    lines = [
        {name: value for name, value in line.items() if name not in timing}
        for line in read_metrics(folder / "run")
    ]
    state = saved_tensors(folder / "run" / "state" / f"step_{STEPS:08d}")
    return lines, state, load_file(folder / "run" / "model" / "model.safetensors")


def is_equal(a: Any, b: Any) -> bool:
    """Return True if all values are equal, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_equal, a, b))
    return a == b


def killed_once(folder: Path, choose: random.Random, *, world_size: int, moment: Moment) -> bool:
    """Start or go on with a run and kill one of its processes; return False if it had nothing left to do there."""
    saved = max(
        (int(path.name[5:]) for path in (folder / "run" / "state").glob("step_????????")), default=0
    )
    if saved == STEPS:
        return False
    victim = choose.randrange(world_size)
    step = {
        "forward": choose.randint(saved + 1, min(saved + 4, STEPS)),
        "evaluation": CONFIG.eval_every,
    }.get(moment)
    pause = None
    if moment != "any":
        step = step or min(saved + choose.choice((2, 4)), STEPS)
        pause = Pause(None if moment == "save" else victim, moment, step)
    group = toy_group.start(folder, world_size=world_size, config=CONFIG, pause=pause)
    try:
        if pause is None:
            time.sleep(choose.uniform(0, 1.0))
        else:
            wait_until(
                lambda: (
                    (folder / "paused").exists()
                    or not all(each.is_alive() for each in group.processes)
                ),
                within_s=SOON_S,
            )
        hit = group.processes[victim].is_alive()
        group.processes[victim].send_signal(signal.SIGKILL)
        with suppress(OSError):
            group.go_on()
        group.codes(
            within_s=LEFT_ALONE_S
        )  # the others end by themselves, but not while the group is formed
        return hit and group.processes[victim].exitcode == -signal.SIGKILL
    finally:
        group.end()


def attack_with_kills(attack: Attack, folder: Path, *, kills: int) -> None:
    """Kill runs of one process and of two again and again, until they have ended all the same."""
    for world_size in (1, 2):
        whole = folder / f"whole-{world_size}"
        assert set(
            toy_group.start(whole, world_size=world_size, config=CONFIG).codes(within_s=SOON_S)
        ) == {0}
        expected, moments, runs, differing = outcome(whole), Counter[str](), 0, []
        wanted = max(kills // 2, 2)
        while moments.total() < wanted:
            runs, run = runs + 1, folder / f"killed-{world_size}-{runs}"
            for _ in range(attack.choose.randint(2, 5)):
                moment = MOMENTS[(moments.total() + runs) % len(MOMENTS)]
                moments[moment] += killed_once(
                    run, attack.choose, world_size=world_size, moment=moment
                )
                attack.progress.update(f"kills of {world_size} processes", moments.total(), wanted)
            group = toy_group.start(run, world_size=world_size, config=CONFIG)
            codes = group.codes(within_s=SOON_S)
            found = outcome(run) if set(codes) == {0} else (None,) * len(expected)
            if unlike := [
                name
                for name, *both in zip(PARTS, found, expected, strict=True)
                if not is_equal(*both)
            ]:
                differing.append(
                    {"codes": codes, "unlike": unlike, "output": group.output(0)[-500:]}
                )
        name = f"kills of {world_size} {'processes' if world_size > 1 else 'process'}"
        attack.promise(
            name, kept=not differing, kills=dict(moments), runs=runs, differing=differing
        )


def train_until_the_disk_is_full(folder: Path, write: int, room: int) -> None:
    """Train; from the given write on the system refuses to let any file grow beyond `room` bytes."""
    opened = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal opened
        if event == "open" and str(arguments[0]).startswith(str(folder / "run")):
            writes = (
                arguments[2] & (os.O_WRONLY | os.O_RDWR) if isinstance(arguments[2], int) else False
            )
            opened += bool(writes)
            if writes and opened == write:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    sys.addaudithook(watch)
    code = 0
    try:
        make_trainer(folder / "run", config=CONFIG, evaluate=lambda _: {"toy/one": 1.0}).fit()
    except (ValueError, OSError, TrainingError) as error:  # what the command line tells in a line
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.write(2, f"vlmo: {type(error).__name__}: {error}\n".encode())
        code = 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.write(1, str(opened).encode())
    os._exit(code)


def attack_with_full_disks(attack: Attack, folder: Path, *, share: float) -> None:
    """Fill the disk at each write of a run in turn, then make room and go on."""
    process = forkserver.start(train_until_the_disk_is_full, folder / "roomy", 0, 0)
    assert process.wait(SOON_S) == 0, process.stderr
    writes, expected = int(process.stdout), outcome(folder / "roomy")
    wrong, number = [], max(round(share * writes), 2)
    for done in range(1, number + 1):
        write, room = 1 + (done - 1) * writes // number, (0, 100, 1000)[done % 3]
        run = folder / f"full-{write}"
        process = forkserver.start(train_until_the_disk_is_full, run, write, room)
        code = process.wait(SOON_S)
        said = process.stderr[-400:]
        if code not in {0, 1} or "Traceback" in said or (code == 1 and str(run) not in said):
            wrong.append(f"write {write}, {room} bytes: {code}: {said}")
        process = forkserver.start(train_until_the_disk_is_full, run, 0, 0)
        if process.wait(SOON_S) != 0 or not is_equal(outcome(run), expected):
            wrong.append(
                f"after write {write}, {room} bytes: another outcome {process.stderr[-400:]}"
            )
        attack.progress.update("full disks", done, number)
    attack.promise("full disk", kept=not wrong, writes=writes, tried=number, wrong=wrong[:5])


def run(attack: Attack, folder: Path, scale: float) -> None:
    """Attack runs with 100 kills, half of them in groups of two processes, and a full disk at each write."""
    attack_with_kills(attack, folder, kills=round(100 * scale))
    attack_with_full_disks(attack, folder, share=min(scale, 1.0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack, print what was kept and broken, and write it with `--out`."""
    run_attack(
        run, name="training", description=__doc__, packages=("vlmo", "torch"), arguments=arguments
    )


if __name__ == "__main__":
    main()
