"""Rows of data sets that `datasets` saved, as the records of shards are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, Image

from vlmo.data.stream.records import Bad, Record, Sample

_CAPTIONS = ("captions", "caption", "text")
_KEYS = ("image_id", "key", "id")


def read_saved(folder: Path) -> Iterator[Record]:
    """Each row of a folder that `save_to_disk` wrote, of all its splits; the split is among the metadata.

    What is wrong with the folder is a `Bad` of kind "shard", what is wrong with a row one of kind "row".
    """
    try:
        parts = _parts(folder)
    except (OSError, ValueError, KeyError) as error:
        yield Bad("shard", str(folder), 0, "", f"it cannot be read: {error}")
        return
    index = 0
    for split, dataset in parts:
        for row in dataset:
            yield _record(cast(dict[str, Any], row), folder=folder, index=index, split=split, dataset=dataset)
            index += 1


def _parts(folder: Path) -> list[tuple[str | None, Dataset]]:
    """Data sets by the names of their splits; a set alone has none."""
    told = folder / "dataset_dict.json"
    splits = json.loads(told.read_text(encoding="utf-8"))["splits"] if told.is_file() else [None]
    found = []
    for split in splits:
        path = folder if split is None else folder / split
        if json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]:  # of no rows there is no file
            dataset = Dataset.load_from_disk(str(path))
            for name, feature in dataset.features.items():
                if isinstance(feature, Image):
                    dataset = dataset.cast_column(name, Image(decode=False))
            found.append((split, dataset))
    return found


def _record(row: dict[str, Any], *, folder: Path, index: int, split: str | None, dataset: Dataset) -> Record:
    images = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    name = "image" if "image" in images or not images else images[0]
    cell = row.get(name) or {}
    image: dict[str, Any] = {"path": cell} if isinstance(cell, str) else cell
    key = next((str(row[key]) for key in _KEYS if row.get(key) is not None), str(index))
    captions = next((row[name] for name in _CAPTIONS if row.get(name)), [])
    captions = [captions] if isinstance(captions, str) else captions
    if not all(isinstance(caption, str) for caption in captions):
        return Bad("row", str(folder), index, key, f"its captions are no texts: {captions!r:.60}")
    metadata = {key: value for key, value in row.items() if key not in (*images, name, *_CAPTIONS)}
    return Sample(
        shard=str(folder),
        index=index,
        key=key,
        image=image.get("bytes"),
        captions=tuple(caption for caption in captions if caption.strip()),
        path=None if image.get("bytes") else image.get("path"),
        metadata=metadata if split is None else {**metadata, "split": split},
    )
