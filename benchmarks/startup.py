"""Seconds until `import vlmo`, the command line's help and a search are done, in fresh processes.

    python benchmarks/startup.py --out benchmarks/results/startup.json

Each command runs `--runs` times by turns, after one turn that fills the caches of files; a figure is the median.
`cpu_seconds` is what the process itself worked. An interpreter that does nothing is measured beside them.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from surroundings import surroundings, write_result

_HELP = "from vlmo.cli import main; main({})"
PACKAGES = ("vlmo", "tyro", "rich", "torch", "transformers", "lancedb", "onnxruntime", "openvino")
INDEX, NUM_IMAGES = "INDEX", 100
ENGINES = ("torch", "onnx", "openvino")
COMMANDS = {
    "nothing": "pass",
    "import vlmo": "import vlmo",
    **{
        line: _HELP.format(line.split()[1:])
        for line in ("vlmo --help", "vlmo --version", "vlmo train shapes-stage3 --help", "vlmo import --help")
    },
    # Among `NUM_IMAGES` drawings with `vlmo-small`, reranked.
    **{
        f"vlmo search --engine {engine}": _HELP.format(["search", INDEX, "a red apple", "--engine", engine])
        for engine in ENGINES
    },
}
BARS = {
    "import vlmo": 0.3,
    "vlmo --help": 0.5,
    "vlmo train shapes-stage3 --help": 3.0,
    **{f"vlmo search --engine {engine}": 2.5 for engine in ENGINES},
}


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


def make_index(folder: Path) -> Path:
    """Index of drawings."""
    from vlmo.data.sources import open_source
    from vlmo.retrieval import Encoder, build_index

    rows = open_source("emoji-pairs", split="test")
    for place in range(NUM_IMAGES):
        image = rows[place]["image"]["bytes"]
        (folder / f"{place}.png").write_bytes(image)
    build_index(Encoder("vlmo-small"), [folder], out=folder / "index")
    return folder / "index"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures and writes the result."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = tyro.cli(Options, args=arguments, description=__doc__)
    load = os.getloadavg()[0]
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as name:
        index = make_index(Path(name)) if any(INDEX in code for code in COMMANDS.values()) else ""
        for turn in range(1 + options.runs):
            for line, code in COMMANDS.items():
                once = seconds(code.replace(INDEX, str(index)))
                if turn > 0:
                    runs[line].append(once)
    result: dict[str, Any] = {
        "surroundings": surroundings("startup.py", arguments, packages=PACKAGES) | {"load_average": load},
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
        print(f"{name:<31} {figures['seconds']:.3f} s ({figures['cpu_seconds']:.3f} s of work)")
    write_result(result, options.out)
    return result


if __name__ == "__main__":
    main()
