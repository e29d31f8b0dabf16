"""What the attacks share: options, promises that were kept or broken, and the file that says so."""

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from benchmarks.surroundings import surroundings, write_result

from vlmo.progress import Progress


@dataclass(frozen=True)
class Options:
    """Options of an attack."""

    scale: float = 1.0
    """Share of the full attack."""
    seed: int | None = None
    """Seed of what is random; by default another one in each attack."""
    out: Path | None = None
    """JSON file for the result."""


class Attack:
    """Promises of one target, with what was measured.

    Args:
        name: Name of the script.
        arguments: Its arguments.
        packages: Packages whose versions belong into the result.
    """

    def __init__(self, name: str, arguments: Sequence[str], *, packages: Sequence[str]) -> None:
        self._result: dict[str, Any] = surroundings(name, arguments, packages=packages)
        command = " ".join(["python -m", f"attacks.{name}", *arguments])
        self._result |= {"command": command, "load_average": os.getloadavg()[0]}
        self._promises: dict[str, Any] = {}
        self.progress = Progress.on_stderr()
        self.choose = random.Random()

    def promise(self, name: str, *, kept: bool, **measured: Any) -> None:
        """Note a promise, and print it with what was measured."""
        self._promises[name] = {"kept": kept, **measured}
        print(f"{'kept  ' if kept else 'BROKEN'} {name}: {json.dumps(measured)}", flush=True)

    def end(self, out: Path | None) -> None:
        """Write the result; exit with 1 if a promise was broken, or none was tested."""
        broken = [name for name, promise in self._promises.items() if not promise["kept"]]
        write_result(self._result | {"promises": self._promises, "broken": broken}, out)
        if broken or not self._promises:
            raise SystemExit(1)


def run_attack(
    run: Callable[[Attack, Path, float], None],
    *,
    name: str,
    description: str | None,
    packages: Sequence[str],
    arguments: Sequence[str] | None,
) -> None:
    """Run a script: `run` gets the attack, an empty folder and the scale."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments, description=description)
    attack = Attack(name, arguments, packages=packages)
    attack.choose.seed(options.seed)
    with tempfile.TemporaryDirectory() as folder, attack.progress:
        run(attack, Path(folder), options.scale)
    attack.end(options.out)
