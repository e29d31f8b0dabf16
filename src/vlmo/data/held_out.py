"""The test split of people's own data without a column `split`: chosen by what images are, not by their names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute
from datasets import Dataset

from vlmo.data.decoding import open_piece
from vlmo.data.rows import column
from vlmo.data.schema import hash_share

_compute: Any = pyarrow.compute  # its functions are made when it is imported

_TEST_IMAGES = 50
"""Fewest images of a test split: of fewer, one is more than two points of a metric. Small sets give a fifth."""
_PIECE = 1 << 14  # bytes
_BATCH = 1000


def is_held_out(dataset: Dataset, *, test_share: float) -> list[bool]:
    """Return True for each row of the test split.

    A hash of the image's file, or of the captions of a row without an image, decides: whatever the format, the order
    and the names, the same rows are chosen, and rows of equal images stay together. About `test_share` of the images
    are chosen, if above 0 at least `_TEST_IMAGES` or a fifth, whichever is less; of two or more at least one is, and
    one is not.
    """
    # A hash in place of a shuffle: the order of the rows does not count.
    shares = [hash_share(key) for key in _content_keys(dataset)]
    images = sorted(set(shares))
    if not test_share or len(images) < 2:
        return [False] * len(shares)
    wanted = min(_TEST_IMAGES, max(1, len(images) // 5))
    return [share <= images[wanted - 1] or share < min(test_share, images[-1]) for share in shares]


def _content_keys(dataset: Dataset) -> list[str]:
    """Return a text for each row; those of rows that show equal images, or have equal captions alone, are equal."""
    names: list[str] = column(dataset, "image_id")
    # A row a sentence, named by its first image.
    if "second_image" in dataset.column_names:
        names = [name.rpartition("#")[0] or name for name in names]
    captions = column(dataset, "captions")
    keys: dict[str, str] = {}
    row = 0
    images = cast(Dataset, dataset.select_columns(["image"])).with_format("arrow")
    for batch in cast("Iterable[pa.Table]", images.iter(batch_size=_BATCH)):
        files = _compute.struct_field(batch["image"], "bytes")
        paths = _compute.struct_field(batch["image"], "path").to_pylist()
        for file, path in zip(files, paths, strict=True):
            name = names[row]
            if name not in keys:
                has_image = file.is_valid or path is not None
                texts = captions[row] or ()
                keys[name] = (
                    _file_key(file.as_buffer(), path, name) if has_image else "\n".join(texts)
                )
            row += 1
    return [keys[name] for name in names]


def _file_key(data: pa.Buffer | None, path: str, name: str) -> str:
    """Return a hash of the length of an image's file and of its first, middle and last 16 KiB.

    These are all of a file of up to 48 KiB. Of one that cannot be read, which the validation of rows says, the name.
    """
    try:
        file, start, length = (
            open_piece(path) if data is None else (pa.BufferReader(data), 0, len(data))
        )
        digest = hashlib.sha256(str(length).encode())
        with file:
            # First, middle and last: headers alone may be equal.
            for offset in (0, (length - _PIECE) // 2, length - _PIECE):
                file.seek(start + max(0, offset))
                digest.update(file.read(min(_PIECE, length)))
    except (OSError, ValueError):
        return name
    return digest.hexdigest()
