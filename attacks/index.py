"""Attack `vlmo index` with kills at random moments, two writers at once, and a disk that is full from a moment on.

    python -m attacks.index --out attacks/results/index.json              # a hundred kills
    python -m attacks.index --scale 0.05                                  # a trial

Run it from the repository's folder. Each index that was harmed must end with the rows of one that was not, and a kill
may cost one batch, as each is written at once here. Exits with 1 if a promise is broken.
"""

import io
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from attacks.common import Attack, run_attack
from tests.forkserver import Process, start
from tests.integrations.toy_gallery import trained_folder
from tests.retrieval.toy_index import NUM, rows, write_folder, write_tar

BATCH = 2
PAUSE_S = 0.1
"""In each batch: a moment at random is then most often in one."""
CLOSE = 1e-5  # of vectors: batches of other sizes add up in another order
SOON_S = 240.0
ROOMS = (0, 10, 1000, 4000, 20_000)
"""Bytes beyond which no file grows on a full disk."""


class Terminal(io.TextIOBase):
    """Standard output that a full disk does not stop, as that of a terminal."""

    def write(self, text: str) -> int:
        """Write with the limit on files lifted."""
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit[1], limit[1]))
        os.write(2, text.encode())
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        return len(text)


def build_and_log(model: Path, images: list[Path], out: Path, log: Path, pause_s: float) -> None:
    """Run `vlmo index` in batches of two, and log the hash of each image that goes through the model."""
    from vlmo import cli
    from vlmo.retrieval import building, embedding

    embed, building._WRITTEN_EVERY_S = embedding.embed_decoded, 0

    def logged(encoder, read, known, decoding):
        time.sleep(pause_s)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (limit[1], limit[1])
        )  # the log is on another disk
        with log.open("a") as file:
            file.write("".join(digest + "\n" for digest in decoding))
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        return embed(encoder, read, known, decoding)

    embedding.embed_decoded = logged
    sys.stdout = sys.stderr = Terminal()
    cli.main(
        ["index", str(model), *map(str, images), "--out", str(out), "--batch-size", str(BATCH)]
    )


class Target:
    """A model, images, and the rows of an index of them that nothing harmed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, half = folder, trained_folder(folder / "model"), NUM // 2
        self.images = [write_folder(folder / "images", numbers=range(half))]
        self.images.append(write_tar(folder / "images.tar", numbers=range(half, NUM)))
        start(time.sleep, 0).wait()  # the first process takes longer
        began = time.monotonic()
        process = self.build("whole")
        assert process.wait(SOON_S) == 0, process.stderr
        self.seconds = time.monotonic() - began
        self.expected = rows(folder / "whole")

    def build(self, name: str, *, pause_s: float = PAUSE_S) -> Process:
        """Start a process that builds the index `name`, or goes on with it."""
        log = self.folder / f"{name}.log"
        return start(build_and_log, self.model, self.images, self.folder / name, log, pause_s)

    def encoded(self, name: str) -> Counter[str]:
        """Return how often each image went through the model."""
        log = self.folder / f"{name}.log"
        return Counter(log.read_text().splitlines() if log.exists() else [])

    def faults(self, name: str, *, kills: int) -> list[str]:
        """Finish an index; return what is wrong with it after so many kills."""
        process = self.build(name, pause_s=0)
        if process.wait(SOON_S) != 0:
            return [f"{name}: {process.stderr[-500:]}"]
        found, twice = rows(self.folder / name), self.encoded(name).total() - NUM
        faults = (
            [f"{name}: {twice} images encoded twice after {kills} kills"]
            if twice > kills * BATCH
            else []
        )
        if found.keys() != self.expected.keys():
            return [*faults, f"{name}: {len(found)} rows"]
        for path, row in found.items():
            same = all(
                row[column] == value
                for column, value in self.expected[path].items()
                if column != "vector"
            )
            if not same or not np.allclose(
                row["vector"], self.expected[path]["vector"], rtol=0, atol=CLOSE
            ):
                faults.append(f"{name}: another row of {path}")
        if left := [path.name for path in (self.folder / name).iterdir() if "aside" in path.name]:
            faults.append(f"{name}: {left} are left")
        return faults


def attack_with_kills(attack: Attack, target: Target, *, kills: int) -> None:
    """Kill builds at random moments, some times each, until all have ended."""
    done, moments, faults, runs = 0, Counter[str](), [], 0
    while done < kills:
        runs, of_run, name = runs + 1, 0, f"killed-{runs}"
        for _ in range(attack.choose.randint(1, 4)):
            process = target.build(name)
            process.join(attack.choose.uniform(0, target.seconds))
            if process.is_alive():
                process.kill()
                of_run += 1
                whole = target.encoded(name).total() >= NUM
                moments[
                    "writing" if whole else "encoding" if target.encoded(name) else "starting"
                ] += 1
            process.join()
            attack.progress.update("kills", done + of_run, kills)
        faults += target.faults(name, kills=of_run)
        done += of_run
    attack.promise(
        "kills", kept=not faults, kills=done, runs=runs, moments=dict(moments), faults=faults[:5]
    )


def attack_with_two_writers(attack: Attack, target: Target, *, pairs: int) -> None:
    """Start two builds of one index a little apart: one is refused in a line, the index is whole."""
    faults = []
    for number in range(pairs):
        name = f"two-{number}"
        first = target.build(name)
        time.sleep(attack.choose.uniform(0, target.seconds / 2))
        second = target.build(name)
        codes = sorted((first.wait(SOON_S), second.wait(SOON_S)))
        said = [
            each.stderr
            for each in (first, second)
            if "another process is writing this index" in each.stderr
        ]
        if codes != [0, 2] * (len(said) == 1) and codes != [0, 0]:
            faults.append(f"{name}: {codes} {first.stderr[-300:]} {second.stderr[-300:]}")
        faults += target.faults(name, kills=0)
        attack.progress.update("two writers", number + 1, pairs)
    attack.promise("two writers", kept=not faults, pairs=pairs, faults=faults[:5])


def attack_with_full_disks(attack: Attack, target: Target, *, disks: int) -> None:
    """From a random moment on no file grows beyond some bytes: one line names the place, and the next run goes on."""
    faults, ended = [], Counter[str]()
    for number in range(disks):
        name, room = f"full-{number}", ROOMS[number % len(ROOMS)]
        process = target.build(name)
        process.join(attack.choose.uniform(0, target.seconds))
        if process.is_alive():
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        code = process.wait(SOON_S)
        ended[str(code)] += 1
        if (
            code not in {0, 2}
            or "Traceback" in process.stderr
            or (code == 2 and name not in process.stderr)
        ):
            faults.append(f"{name}: {code} after {process.stderr[-500:]}")
        faults += target.faults(name, kills=1)
        attack.progress.update("full disks", number + 1, disks)
    attack.promise(
        "full disk", kept=not faults, disks=disks, exit_codes=dict(ended), faults=faults[:5]
    )


def run(attack: Attack, folder: Path, scale: float) -> None:
    """Attack indexes with 100 kills, 20 pairs of writers and 50 full disks."""
    target = Target(folder)
    attack_with_kills(attack, target, kills=max(round(100 * scale), 2))
    attack_with_two_writers(attack, target, pairs=max(round(20 * scale), 1))
    attack_with_full_disks(attack, target, disks=max(round(50 * scale), 1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack, print what was kept and broken, and write it with `--out`."""
    run_attack(
        run,
        name="index",
        description=__doc__,
        packages=("vlmo", "torch", "lancedb"),
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
