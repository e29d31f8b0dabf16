"""Seconds until `import vlmo` and the command line's help are done, in fresh processes.

    python benchmarks/startup.py --out benchmarks/results/startup.json

Each command runs `--runs` times by turns, after one turn that fills the caches of files; a figure is the median.
`cpu_seconds` is what the process itself worked. An interpreter that does nothing is measured beside them.
"""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from surroundings import surroundings, write_result

_HELP = "from vlmo.cli import main; main({})"
COMMANDS = {
    "nothing": "pass",
    "import vlmo": "import vlmo",
    **{
        line: _HELP.format(line.split()[1:])
        for line in ("vlmo --help", "vlmo --version", "vlmo train shapes-stage3 --help", "vlmo import --help")
    },
}
BARS = {"import vlmo": 0.3, "vlmo --help": 0.5, "vlmo train shapes-stage3 --help": 5.0}


@dataclass(frozen=True)
class Options:
    """Times the start."""

    runs: int = 9
    """Runs of each command."""
    out: Path | None = None
    """JSON file for the result."""


def seconds(code: str) -> tuple[float, float]:
    """Wall time of a fresh interpreter that runs `code`, and the time that it worked itself."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, os.times()
    own = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, own


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures and writes the result."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = tyro.cli(Options, args=arguments, description=__doc__)
    load = os.getloadavg()[0]
    for code in COMMANDS.values():
        seconds(code)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(options.runs):
        for name, code in COMMANDS.items():
            runs[name].append(seconds(code))
    result: dict[str, Any] = {
        "surroundings": surroundings("startup.py", arguments, packages=["vlmo", "tyro", "rich"])
        | {"load_average": load},
        "commands": {
            name: {
                "seconds": round(statistics.median(wall for wall, _ in own), 3),
                "cpu_seconds": round(statistics.median(cpu for _, cpu in own), 3),
                "bar_seconds": BARS.get(name),
            }
            for name, own in runs.items()
        },
    }
    for name, figures in result["commands"].items():
        print(f"{name:<22} {figures['seconds']:.3f} s ({figures['cpu_seconds']:.3f} s of work)")
    write_result(result, options.out)
    return result


if __name__ == "__main__":
    main()
