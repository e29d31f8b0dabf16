"""Attack index, training and `vlmo data prepare` with shards and folders that are made to harm them.

    python -m attacks.data --out attacks/results/data.json                # all kinds, 1000 damaged shards
    python -m attacks.data --scale 0.01                                   # a trial

Run it from the repository's folder. Beside what is hostile stand good records and files: all of these must be read,
soon and without a traceback. Exits with 1 if a promise is broken.
"""

import io
import json
import os
import random
import resource
import tarfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from attacks.common import Attack, run_attack
from attacks.hostile import REFUSED, encoded
from datasets import Dataset, DatasetDict
from tests.forkserver import start, start_command
from tests.integrations.toy_gallery import trained_folder
from tests.retrieval.toy_index import rows
from tests.toy_shards import tar_bytes, write_parquet

from vlmo.data.decoding import decode_image
from vlmo.data.stream.records import Bad, read_saved, read_shard

SOON_S, SLOWEST_S = 120.0, 5.0
"""Time for all that is hostile, and for a damaged shard."""
GOOD = "good"
"""Begins the keys and names of what must be read."""

# --------------------------------------------------------------------------------------------------------------- shards


def member(name: str, data: bytes, **facts: str) -> bytes:
    """Return a member of a tar file, behind a header of these facts."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    facts = {key.replace("__", "."): value for key, value in facts.items()}
    head = (
        tarfile.TarInfo._create_pax_generic_header(facts, tarfile.XHDTYPE, "utf-8")
        if facts
        else b""
    )
    return head + info.tobuf() + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def sparse(pieces: int, size: int) -> bytes:
    """Return an image that consists of so many empty pieces."""
    listed = f"{pieces}\n" + "".join(f"{8 * piece}\n0\n" for piece in range(pieces))
    facts = {
        "GNU__sparse__major": "1",
        "GNU__sparse__minor": "0",
        "GNU__sparse__realsize": str(size),
    }
    return member("sparse.png", listed.encode(), **facts)


def _parquet(**columns: list) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


_PATHS = (
    "/etc/passwd",
    "../secret.png",
    "a/../../b.png",
    "a\0b.png",
    "file:///etc/passwd",
    "zip://a.png::b.zip",
    "",
)
TARS: dict[str, Callable[[], bytes]] = {
    "sparse members": lambda: sparse(3000, 1 << 27) + sparse(10**6, 1 << 30),
    "a sparse map of nonsense": lambda: member(
        "map.png",
        bytes(10**7),
        GNU__sparse__major="1",
        GNU__sparse__minor="0",
        GNU__sparse__realsize="9",
    ),
    "deep and odd json": lambda: (
        member("a.json", b"[" * 10**6) + member("b.json", b'{"caption": {"x": [1]}}')
    ),
    "a thousand facts and captions": lambda: member(
        "a.json",
        json.dumps({"caption": ["x"] * 10**5} | {f"f{n}": n for n in range(1000)}).encode(),
    ),
    "names that lead elsewhere": lambda: (
        member("../../up.png", b"x") + member("/etc/root.png", b"x", path="\x1b[2J/..")
    ),
    "hostile images": lambda: b"".join(
        member(f"{number}.png", make()) for number, make in enumerate(REFUSED.values())
    ),
}
TABLES: dict[str, Callable[[], bytes]] = {
    "paths that lead elsewhere": lambda: _parquet(
        image=[{"bytes": None, "path": path} for path in _PATHS]
        + [{"bytes": encoded(), "path": None}],
        caption=["x"] * len(_PATHS) + ["good"],
        key=[str(number) for number in range(len(_PATHS))] + [GOOD],
    ),
    "columns of other types": lambda: _parquet(
        image=[encoded(), b""], caption=[{"x": 1}, {"x": 2}], key=["a", "b"]
    ),
}


def write_shards(folder: Path) -> Path:
    """Write all shards; around what is hostile in a tar stands a good record."""
    folder.mkdir()
    for number, make in enumerate(TARS.values()):
        first, last = (tar_bytes([f"{GOOD}-{number}-{side}"]) for side in "ab")
        first = first.rstrip(b"\0")  # without the blocks of its end
        (folder / f"{number:05d}.tar").write_bytes(
            first + bytes(-len(first) % tarfile.BLOCKSIZE) + make() + last
        )
    for number, make in enumerate(TABLES.values()):
        (folder / f"table-{number}.parquet").write_bytes(make())
    os.mkfifo(folder / "pipe.tar")
    return folder


# -------------------------------------------------------------------------------------------------------------- folders


def write_folder(folder: Path) -> Path:
    """Write images, links, pipes and saved sets."""
    (folder / "deep").mkdir(parents=True)
    for name in ("good.png", "deep/good.jpg", f"{GOOD}\x1b[2J\n.png"):
        (folder / name).write_bytes(encoded(kind="JPEG" if name.endswith("jpg") else "PNG"))
    for number, make in enumerate(REFUSED.values()):
        (folder / f"refused {number}.png").write_bytes(make())
    with (folder / "endless.png").open("wb") as file:
        file.truncate(1 << 40)
    os.mkfifo(folder / "pipe.png")
    for name, target in {
        "zero.png": "/dev/zero",
        "loop.png": "loop.png",
        "loop": ".",
        "a-deep": "deep",
    }.items():
        (folder / name).symlink_to(target)
    for number, content in enumerate(
        (b"{", b"[" * 10**5, b'{"splits": ["../set 0"]}', b'{"splits": 7}', b"\xff")
    ):
        cell = {"image": {"bytes": encoded(), "path": None}, "captions": ["x"], "image_id": "a"}
        DatasetDict({"train": Dataset.from_list([cell])}).save_to_disk(folder / f"set {number}")
        name = "dataset_dict.json" if number % 2 == 0 else "train/state.json"
        (folder / f"set {number}" / name).write_bytes(content)
    return folder


# -------------------------------------------------------------------------------------------------------------- attacks


def attack_index(
    attack: Attack, folder: Path, model: Path, inputs: Sequence[Path], *, good: int
) -> None:
    """Index all of it: the good images are found, each hostile one has its line."""
    began = time.monotonic()
    process = start_command("index", model, *inputs, "--out", folder / "index", "--engine", "torch")
    code, seconds = process.wait(2 * SOON_S), time.monotonic() - began
    places = [path for path in rows(folder / "index") if GOOD in path] if code == 0 else []
    said = process.stderr + process.stdout
    ugly = [word for word in ("Traceback", "Warning", "\x1b[2J") if word in said]
    kept = code == 0 and len(places) == good and not ugly and seconds < SOON_S
    attack.promise(
        "index",
        kept=kept,
        seconds=round(seconds, 1),
        good=len(places),
        end="" if kept else said[-300:],
    )


def attack_prepare(attack: Attack, folder: Path, shards: Path) -> None:
    """Prepare the shards: it ends with a folder, or with a line that says how many records are bad."""
    began, out = time.monotonic(), folder / "prepared"
    process = start_command(
        "data", "prepare", "conceptual_captions", "--root", shards, "--out", out
    )
    code, seconds = process.wait(2 * SOON_S), time.monotonic() - began
    kept = code in {0, 2} and "Traceback" not in process.stderr and seconds < SOON_S
    attack.promise(
        "prepare",
        kept=kept,
        code=code,
        seconds=round(seconds, 1),
        end="" if kept else process.stderr[-300:],
    )


def read_all(places: list[Path], report: Path) -> None:
    """Read shards and saved sets as training does; write how many good records there were."""
    good, slowest = 0, 0.0
    for place in places:
        began = time.process_time()
        for record in (
            read_saved(place) if place.is_dir() else (each for each, _ in read_shard(str(place)))
        ):
            if isinstance(record, Bad) or record.image is None:
                continue
            with suppress(ValueError):
                decode_image({"bytes": record.image, "path": record.key})
                good += record.key.startswith(GOOD)
        slowest = max(slowest, time.process_time() - began)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report.write_text(
        json.dumps({"good": good, "slowest_s": round(slowest, 3), "peak_mb": most // 1024})
    )


def attack_reading(
    attack: Attack, name: str, places: list[Path], report: Path, *, good: int, slowest_s: float
) -> None:
    """Read places in a process, which nothing in them ends."""
    process = start(read_all, places, report)
    code = process.wait(SOON_S + len(places))
    found = json.loads(report.read_text()) if code == 0 else {"end": process.stderr[-300:]}
    kept = code == 0 and found["good"] >= good and found["slowest_s"] < slowest_s
    attack.promise(name, kept=kept, read=len(places), **found)


def damaged_shards(folder: Path, *, number: int, choose: random.Random) -> list[Path]:
    """Write shards of which some bytes at random were overwritten."""
    folder.mkdir()
    table = write_parquet(folder / "whole.parquet", ["a", "b"]).read_bytes()
    places = []
    for count in range(number):
        suffix, whole = choose.choice(((".tar", tar_bytes(["a", "b"])), (".parquet", table)))
        data = bytearray(whole)
        for _ in range(choose.choice((1, 4, 16))):
            data[choose.randrange(len(data))] = choose.randrange(256)
        places.append(folder / f"{count:05d}{suffix}")
        places[-1].write_bytes(data)
    return places


def run(attack: Attack, folder: Path, scale: float) -> None:
    """Attack with all kinds of shards and folders, and 1000 damaged shards."""
    shards, images = write_shards(folder / "shards"), write_folder(folder / "images")
    good = 2 * len(TARS) + 1
    places = [*sorted(shards.iterdir()), *sorted(images.glob("set *"))]
    attack_reading(attack, "training", places, folder / "report", good=good, slowest_s=SOON_S)
    attack_index(
        attack, folder, trained_folder(folder / "model", steps=1), [shards, images], good=good + 3
    )
    attack_prepare(attack, folder, shards)
    damaged = damaged_shards(
        folder / "damaged", number=max(round(1000 * scale), 5), choose=attack.choose
    )
    attack_reading(
        attack, "damaged shards", damaged, folder / "report 2", good=0, slowest_s=SLOWEST_S
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack, print what was kept and broken, and write it with `--out`."""
    run_attack(
        run,
        name="data",
        description=__doc__,
        packages=("vlmo", "pillow", "pyarrow"),
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
