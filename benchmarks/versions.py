"""Commands of this checkout beside those of another one, by turns.

    git worktree add /tmp/before v0.1.0
    python benchmarks/versions.py --other /tmp/before --out versions.json

Both run in this environment, so the other checkout needs packages that are installed. A ratio above 1 says that this
checkout is faster.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from busy_machine import commands, seconds_of
from surroundings import surroundings, write_result

_HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Options:
    """Runs each command with both checkouts by turns."""

    other: Path
    """Root of the other checkout."""
    turns: int = 3
    """Runs of each command; the median counts."""
    steps: int = 100
    """Steps of each training."""
    out: Path | None = None
    """JSON file for the result."""


def compared(folder: Path, *, steps: int) -> dict[str, list[str]]:
    """The compared commands by name: trainings of each kind, an index, evaluations."""
    known = commands(folder, steps=steps)
    images = str(folder / "images")
    of_steps = ["--trainer.max-steps", str(steps), "--run-dir", "OUT"]
    return {
        "tokenizer": ["train", "shapes-tokenizer", *of_steps],
        "stage 2": ["train", "shapes-stage2", "--init", "None", *of_steps],
        "stage 3": known["train"],
        "finetune": known["finetune"],
        "questions": ["train", "shapes-questions", "--init", "None", *of_steps],
        "index": known["index"],
        "evaluate": [
            "evaluate",
            "vlmo-small",
            "--data",
            images,
            "--split",
            "train",
            "--rerank",
            "2",
            "--out",
            "OUT",
        ],
    }


def compare(options: Options) -> dict[str, Any]:
    """Seconds by command and checkout, and the speed of this one by that of the other."""
    sources = {"this": _HERE, "other": options.other.resolve()}
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in compared(Path(folder), steps=options.steps).items():
            seconds: dict[str, list[float]] = {version: [] for version in sources}
            for turn in range(options.turns + 1):
                for version, root in sources.items():
                    spent = seconds_of(command, plain | {"PYTHONPATH": str(root / "src")})
                    if turn:  # the first fills caches
                        seconds[version].append(spent)
            median = {version: statistics.median(runs) for version, runs in seconds.items()}
            found[name] = {"seconds": seconds, "speed_by_other": median["other"] / median["this"]}
            print(name, json.dumps(found[name]), flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints its result as JSON."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments)
    result = surroundings("versions.py", arguments, packages=("vlmo", "torch"))
    git = ["git", "-C", str(options.other), "rev-parse", "HEAD"]
    result["other_commit"] = subprocess.run(
        git, check=True, capture_output=True, text=True
    ).stdout.strip()
    result["commands"] = compare(options)
    write_result(result, options.out)


if __name__ == "__main__":
    main()
