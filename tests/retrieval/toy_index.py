"""A tiny model, images for it in every form that an index reads, and an index of them."""

import csv
import io
import json
import os
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tests.integrations.toy_gallery import CAPTIONS, drawings
from tests.toy_shards import pack

from vlmo.retrieval import BuildReport, Encoder, build_index

NUM = len(CAPTIONS)
# Half of them in a folder of their own, with letters and blanks that need care.
NAMES = [f"{'sub/' if number % 2 else ''}ünïcode {number:02d}.png" for number in range(NUM)]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(folder: Path, *, table: bool = True, numbers: range = range(NUM)) -> Path:
    """Drawings as files, with captions and two columns beside them."""
    (folder / "sub").mkdir(parents=True)
    for number in numbers:
        (folder / NAMES[number]).write_bytes(encoded(drawings()[number]))
    if table:
        write_table(folder / "captions.csv", numbers=numbers)
    return folder


@contextmanager
def nested_folders(
    folder: Path,
    *,
    name: str = "d",
    depth: int = 1200,
    image: bytes = b"",
    at: Collection[int] = (),
) -> Iterator[None]:
    """Folders in each other, with an image in some; what removes pytest's folders is recursive, so rm does it."""
    place = os.open(folder, os.O_RDONLY)
    for number in range(depth):
        os.mkdir(name, dir_fd=place)
        inner = os.open(name, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
        if number in at:
            with open(os.open("x.png", os.O_WRONLY | os.O_CREAT, dir_fd=place), "wb") as file:  # noqa: PTH123
                file.write(image)
    os.close(place)
    try:
        yield
    finally:
        subprocess.run(["rm", "-rf", folder / name], check=True)


def write_table(path: Path, *, numbers: range = range(NUM), year: int = 2000) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption", "Year", "kind"])
        for number in numbers:
            kind = CAPTIONS[number][0].split()[-1]
            for caption in CAPTIONS[number]:
                rows.writerow([NAMES[number], caption, year + number, kind])
    return path


def write_tar(path: Path, *, numbers: range = range(NUM)) -> Path:
    """The layout of img2dataset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = {}
    for number in numbers:
        key, caption = f"{number:05d}", CAPTIONS[number][0]
        about = {"caption": caption, "key": key, "year": 2000 + number, "exif": {"a": 1}}
        members[f"{key}.png"] = encoded(drawings()[number])
        members[f"{key}.txt"] = caption.encode()
        members[f"{key}.json"] = json.dumps(about).encode()
    path.write_bytes(pack(members))
    return path


def write_parquet(path: Path, *, paths: bool = False, numbers: range = range(NUM)) -> Path:
    """Bytes, or paths that count from the file's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [encoded(drawings()[number]) for number in numbers]
    if paths:
        images = [f"files/{number}.png" for number in numbers]
        (path.parent / "files").mkdir()
        for number in numbers:
            (path.parent / "files" / f"{number}.png").write_bytes(encoded(drawings()[number]))
    columns = {"image": images, "captions": [CAPTIONS[number] for number in numbers]}
    columns["score"] = [number / 2 for number in numbers]
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def build(model: Encoder | Path, *inputs: Path | str, out: Path, **settings) -> BuildReport:
    return build_index(model, inputs, out=out, batch=8, **settings)


def rows(out: Path) -> dict[str, dict]:
    """The table by path, as LanceDB itself reads it."""
    found = lancedb.connect(out).open_table("images").to_arrow().to_pylist()
    return {row["path"]: row for row in found}
