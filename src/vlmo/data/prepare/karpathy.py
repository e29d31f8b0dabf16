"""Reads the files in which Karpathy's splits of COCO and Flickr30K are published."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlmo.data.prepare.json_stream import read_array
from vlmo.data.prepare.parts import Row, SetOnDisk, chunked, image_at, text_of
from vlmo.data.schema import make_row

_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
"""COCO's `restval` is the part of val2014 that everyone trains on."""


def open_karpathy(
    file: Path, *, name: str, licence: str, folder: Path, image_id: Callable[[dict[str, Any]], str]
) -> SetOnDisk:
    """A row an image, with all its sentences.

    Args:
        folder: Folder of the images; a record's `filepath` is a folder below it.
        image_id: Of a record.

    Raises:
        ValueError: A record without what is needed, or with an unknown split; the message names both.
    """
    rows = functools.partial(_rows, file, name=name, licence=licence, folder=folder, image_id=image_id)
    # Read once before any image is, so that errors come at the start.
    return SetOnDisk(parts=chunked(rows()), num_rows=sum(1 for _ in rows()))


def _rows(
    file: Path, *, name: str, licence: str, folder: Path, image_id: Callable[[dict[str, Any]], str]
) -> Iterator[Row]:
    for number, record in enumerate(read_array(file, key="images")):
        where = f"{file}: images[{number}]"
        try:
            split, image = record["split"], Path(record.get("filepath", "")) / record["filename"]
            captions = [text_of(sentence["raw"]) for sentence in record["sentences"]]
            cell = image_at(folder / image)
            row = make_row(image_id(record), image=cell, captions=captions, source=name, licence=licence)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{where} is no record of {name}: filename, split and sentences[].raw are needed ({error!r}); "
                "is it the file of another set?"
            ) from error
        if split not in _SPLITS:
            raise ValueError(f"{where} ({image.name}): unknown split {split!r}; expected one of {', '.join(_SPLITS)}")
        yield Row(_SPLITS[split], row)
