"""Commands alone and beside busy loops, with the waiting of threads that `vlmo` chooses and with others.

    python benchmarks/busy_machine.py --turns 3 --out benchmarks/results/busy-machine.json

The variants take turns. `default` is what GNU OpenMP does by itself: 300,000 rounds before a thread sleeps.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from surroundings import surroundings, write_result
from vlmo.data.sources import decode_image, open_source

VARIANTS = {
    "default": {"GOMP_SPINCOUNT": "300000"},
    "chosen": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
LOADS = {"alone": (0, "default"), "beside two busy loops": (2, "passive")}
"""Busy loops, and the variant that `chosen` is compared with."""
_IMAGES = 2000


@dataclass(frozen=True)
class Options:
    """Runs each command by turns, alone and beside two busy loops."""

    turns: int = 3
    """Runs of each command, variant and load; the median counts."""
    commands: tuple[str, ...] = ("train", "finetune", "index", "fast")
    """Those that are run."""
    steps: int = 60
    """Training steps of `train` and `finetune`."""
    out: Path | None = None
    """JSON file for the result."""


def commands(folder: Path, *, steps: int) -> dict[str, list[str]]:
    """The measured commands by name; `OUT` stands for a new folder."""
    images = folder / "images"
    images.mkdir()
    rows = open_source("emoji-pairs").select(range(_IMAGES))
    with (images / "metadata.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            decode_image(row["image"]).save(images / f"{number:04}.png")
            file.write(
                json.dumps({"file_name": f"{number:04}.png", "captions": row["captions"]}) + "\n"
            )
    train = [
        "train",
        "shapes-stage3",
        "--init",
        "None",
        "--trainer.max-steps",
        str(steps),
        "--run-dir",
        "OUT",
    ]
    finetune = [
        "finetune",
        "vlmo-small",
        "--data",
        str(images),
        "--steps",
        str(steps),
        "--output-dir",
        "OUT",
    ]
    return {
        "train": train,
        "finetune": finetune,
        "index": ["index", "vlmo-small", str(images), "--out", "OUT", "--engine", "torch"],
        "fast": ["quickstart", "--fast", "--run-dir", "OUT"],
    }


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that compute without end."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(1)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def seconds_of(command: Sequence[str], environment: dict[str, str]) -> float:
    """Seconds of a command of `vlmo`."""
    with tempfile.TemporaryDirectory() as folder:
        given = [each.replace("OUT", f"{folder}/out") for each in command]
        began = time.monotonic()
        program = [sys.executable, "-m", "vlmo.cli", *given]
        subprocess.run(program, env=environment, check=True, capture_output=True)
        return time.monotonic() - began


def compare(options: Options) -> dict[str, Any]:
    """Seconds by command, load and variant, and the speed of `chosen` by that of the other variant."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        known = commands(Path(folder), steps=options.steps)
        for name in options.commands:
            command = known[name]
            seconds_of(command, plain)  # fills caches
            for load, (count, other) in LOADS.items():
                seconds: dict[str, list[float]] = {other: [], "chosen": []}
                for _ in range(options.turns):
                    for variant, runs in seconds.items():
                        with busy_loops(count):
                            runs.append(seconds_of(command, plain | VARIANTS[variant]))
                speed = statistics.median(seconds[other]) / statistics.median(seconds["chosen"])
                found.setdefault(name, {})[load] = {"seconds": seconds, f"speed_by_{other}": speed}
                print(name, load, json.dumps(found[name][load]), flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints its result as JSON."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments)
    result = surroundings("busy_machine.py", arguments, packages=("vlmo", "torch"))
    result["commands"] = compare(options)
    write_result(result, options.out)


if __name__ == "__main__":
    main()
