"""Images with a true and a false caption: SugarCrepe, ARO (relations and attributes), and Winoground."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Features, Value

from vlmo.data.decoding import ImageCell, decode_image, encode_image, image_at
from vlmo.data.prepare import parts
from vlmo.data.prepare.parts import BadRow, Part, Record, Row, SetOnDisk, chunked, find, first_of
from vlmo.data.schema import COMPOSITION_FEATURES, make_row

SPLIT = "test"
SUGARCREPE = ("add_obj", "add_att", "replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att")
ARO = {"visual_genome_relation.json": "relation", "visual_genome_attribution.json": "attribution"}
WINOGROUND_FEATURES = Features({**COMPOSITION_FEATURES, "group": Value("string")})

_SUGARCREPE_LAYOUT = f"{', '.join(f'{kind}.json' for kind in SUGARCREPE)} (there or in data/), and COCO's val2017/"
_ARO_LAYOUT = f"{' and '.join(ARO)}, and images/"
_WINOGROUND_LAYOUT = "parquet files with image_0, image_1, caption_0 and caption_1, or examples.jsonl and images/"
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


def open_sugarcrepe(root: Path) -> SetOnDisk:
    """Find one row a record; its category is the `kind`."""
    found = {kind: first_of(root, f"data/{kind}.json", f"{kind}.json") for kind in SUGARCREPE}
    files = {kind: file for kind, file in found.items() if file is not None}
    if not files:
        find(root, f"data/{SUGARCREPE[0]}.json", layout=_SUGARCREPE_LAYOUT)
    images = find(root, "val2017", "images/val2017", "images", layout=_SUGARCREPE_LAYOUT)
    names, licence = ("filename", "caption", "negative_caption"), "MIT; image of COCO"
    rows = (
        _row(record, where, names, images, image_id=f"sugarcrepe/{kind}/{key}", kind=kind, licence=licence)
        for kind, file in files.items()
        for key, record, where in _records(file)
    )
    return SetOnDisk(
        parts=chunked(rows),
        licence="captions MIT (SugarCrepe); images under the terms of their owners (COCO)",
        features=COMPOSITION_FEATURES,
        notes=[f"{kind}.json is not there" for kind in SUGARCREPE if kind not in files],
    )


def open_aro(root: Path) -> SetOnDisk:
    """Find one row a record; its image is what the record's box shows, as JPEG of quality 95."""
    files = {kind: find(root, name, layout=_ARO_LAYOUT) for name, kind in ARO.items()}
    images = find(root, "images", layout=_ARO_LAYOUT)
    names, licence = ("image_path", "true_caption", "false_caption"), "MIT; image CC-BY-4.0"
    rows = (
        _row(record, where, names, images, image_id=f"aro/{kind}/{key}", kind=kind, licence=licence, box=_BOX)
        for kind, file in files.items()
        for key, record, where in _records(file)
    )
    return SetOnDisk(
        parts=[Part(part.key, functools.partial(_cropped, part)) for part in chunked(rows)],
        licence="captions MIT (ARO); images CC-BY-4.0 (Visual Genome)",
        features=COMPOSITION_FEATURES,
        known_sizes={SPLIT: 23_937 + 28_748},
    )


def open_winoground(root: Path) -> SetOnDisk:
    """Find two rows an example, of one `group`: each image with both captions, its own first; ValueError as `find`."""
    parts.require_folder(root, layout=_WINOGROUND_LAYOUT)
    files, images = sorted(root.rglob("*.parquet")), root
    for file in files:
        if missing := {"image_0", "image_1"} - {*parts.read_table_schema(file).names}:
            raise ValueError(f"{file}: no column {min(missing)}; --root must be a folder with {_WINOGROUND_LAYOUT}")
    if not files:
        files = [find(root, "examples.jsonl", "data/examples.jsonl", layout=_WINOGROUND_LAYOUT)]
        images = find(root, "images", "data/images", layout=_WINOGROUND_LAYOUT)
    return SetOnDisk(
        parts=[Part(parts.file_key(file), functools.partial(_examples, file, images=images)) for file in files],
        licence="for research with image-text models only (Winoground; images of Getty Images)",
        features=WINOGROUND_FEATURES,
        known_sizes={SPLIT: 800},
    )


def _records(file: Path) -> Iterator[tuple[str, Any, str]]:
    """Yield key, content and name of each record of a JSON list or object, of JSON lines or of a parquet file."""
    try:
        if file.suffix == ".parquet":
            batches = pq.ParquetFile(file).iter_batches(batch_size=16)
            records = enumerate(record for batch in batches for record in batch.to_pylist())
        elif file.suffix == ".jsonl":
            records = enumerate(map(json.loads, file.read_text(encoding="utf-8").splitlines()))
        else:
            content = json.loads(file.read_text(encoding="utf-8"))
            records = content.items() if isinstance(content, dict) else enumerate(content)
        for key, record in records:
            yield str(key), record, f"{file}, record {key}"
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: expected records in JSON ({error}); is the file cut off?") from error


def _examples(file: Path, *, images: Path) -> Iterator[Row]:
    for number, record, where in _records(file):
        group = f"winoground/{file.stem}/{number}"
        for own, other in ((0, 1), (1, 0)):
            names, tag = (f"image_{own}", f"caption_{own}", f"caption_{other}"), record.get("collapsed_tag")
            facts = {"kind": str(tag or "all"), "licence": "research only", "group": group}
            yield _row(record, where, names, images, image_id=f"{group}/{own}", **facts)


def _row(
    record: Any, where: str, names: tuple[str, str, str], images: Path, *, box: tuple[str, ...] = (), **columns: Any
) -> Row:
    """Return a row with the fields `names` of a record: image, true caption, false caption."""
    try:
        image, true, false = (record[name] for name in names)
        cell: ImageCell = image  # parquet holds the bytes themselves
        columns |= {"box": [int(record[side]) for side in box]} if box else {}
        if not isinstance(image, dict):
            file = images / parts.text_of(image)
            cell = image_at(file if file.suffix else file.with_suffix(".png"))
        true, false = parts.text_of(true), parts.text_of(false)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected an object with {', '.join([*names, *box])}: {error!r}") from error
    source = columns["image_id"].partition("/")[0]
    return Row(SPLIT, make_row(image=cell, captions=[true], false_caption=false, source=source, **columns))


def _cropped(part: Part) -> Iterator[Record]:
    for row in part.rows():
        assert isinstance(row, Row)  # all that `_row` makes
        (left, top, width, height), values = row.values["box"], {**row.values}
        del values["box"]
        try:
            if width < 1 or height < 1:
                raise ValueError(f"a box of {width} x {height} pixels")
            shown = decode_image(values["image"]).crop((left, top, left + width, top + height))
        except ValueError as error:
            yield BadRow(row.split, values["image_id"], str(error), path=values["image"]["path"])
            continue
        cell = encode_image(shown, Path(values["image"]["path"]).name, kind="JPEG", quality=95, subsampling=0)
        yield Row(row.split, values | {"image": cell})
