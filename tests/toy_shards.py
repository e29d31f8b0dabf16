"""Shards of small pictures with captions."""

import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlmo.data.decoding import image_bytes


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return image_bytes(Image.fromarray(pixels), "PNG")


def tar_bytes(keys: list[str], *, broken: frozenset[str] = frozenset()) -> bytes:
    """A tar of webdataset's layout; the pictures of `broken` keys are cut off."""
    members = {}
    for key in keys:
        image = picture(zlib.crc32(key.encode()))
        members[f"{key}.png"] = image[:40] if key in broken else image
        members[f"{key}.txt"] = f"a picture of thing {key}".encode()
        members[f"{key}.json"] = json.dumps({"caption": "not read, as there is a text"}).encode()
    return pack(members)


def pack(members: dict[str, bytes], **options: str) -> bytes:
    """A tar of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_tars(
    folder: Path, counts: list[int], *, broken: frozenset[str] = frozenset(), name: str = ""
) -> list[Path]:
    """A tar for each count; keys are SHARD-NUMBER."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard, count in enumerate(counts):
        paths.append(folder / f"{name}{shard:05d}.tar")
        paths[-1].write_bytes(
            tar_bytes([f"{name}{shard}-{number}" for number in range(count)], broken=broken)
        )
    return paths


def write_parquet(path: Path, keys: list[str], *, row_group_size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "jpg": [picture(number) for number in range(len(keys))],
            "caption": [f"a picture of thing {key}" for key in keys],
            "key": keys,
        }
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return path
