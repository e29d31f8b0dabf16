"""Validation of every row before a run: valid rows go on, each invalid one leaves a line in the quarantine file."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, Features, Image
from datasets.table import ConcatenationTable, InMemoryTable

from vlmo.data.builtin import built_folder
from vlmo.data.decoding import decode_image
from vlmo.data.rows import SUMMARY_FILE, column, first_reasons, select_rows, to_lines
from vlmo.data.schema import FEATURES
from vlmo.distributed import barrier, gather_objects, is_main, rank, world_size
from vlmo.folder.atomic import cached_file, keep_file, write_file
from vlmo.progress import Progress

_compute: Any = pyarrow.compute  # its functions are made when it is imported

_PROGRESS_EVERY = 64  # rows
_BATCH = 10_000
_REMEMBERED = 16  # images: rows about one stand together, or nearly so


class ImageValidator:
    """Decodes the columns `images` of rows, and says what is wrong with them.

    The results of the last images are remembered, as several rows of questions show the same one. Make a new validator
    for each pass over a data set: files may have been repaired since.
    """

    def __init__(self, images: Sequence[str]) -> None:
        self._images = images
        self._fault = functools.lru_cache(_REMEMBERED)(_fault)

    def __call__(self, row: dict[str, Any]) -> list[str]:
        """Return a line for each image that is missing or cannot be decoded."""
        cells = {name: row[name] or {"bytes": None, "path": None} for name in self._images}
        found = (self._fault(name, cell["path"], cell["bytes"]) for name, cell in cells.items())
        return [fault for fault in found if fault]


def _fault(name: str, path: str | None, data: bytes | None) -> str | None:
    if path is None and data is None:
        return f"the row has no {name}"
    try:
        decode_image({"bytes": data, "path": path})
    except ValueError as error:
        return str(error)
    return None


def image_columns(features: Features) -> list[str]:
    """Return the columns of images that nothing has decoded yet, `image` first."""
    found = [
        name
        for name, feature in features.items()
        if isinstance(feature, Image) and not feature.decode
    ]
    return ["image", *(name for name in found if name != "image")]


def filter_invalid_rows(
    dataset: Dataset,
    *,
    quarantine: Path,
    max_share: float = 0.01,
    needs_image: bool = True,
    needs_caption: bool = True,
    unique_ids: bool = True,
    shared: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Dataset:
    """Return the valid rows in their order; every other row is a JSON line in `quarantine`.

    A line has `kind` ("row": the row is dropped; "caption": only empty captions were), `row`, `image_id`, `path`,
    `source` and `reason`. So rows in = rows out + lines of kind "row". The file is written also when all are valid.

    Args:
        quarantine: File to write, JSON lines; an older one is replaced.
        max_share: Share of invalid rows, 0 to 1, above which ValueError is raised (after the file is written).
        needs_image: Decode each column of images (second images and masks too), and drop rows where one is missing
            or cannot be read.
        needs_caption: Drop rows that have no caption left.
        unique_ids: Drop rows whose `image_id` an earlier valid row has; off for sets with several rows an image.
        shared: All processes of the group call this for the same rows: each decodes a share of them, and the main one
            writes the file.
        progress: Called every few rows, for who watches over long work.
    """
    if missing := FEATURES.keys() - {*dataset.column_names}:
        raise ValueError(
            f"column(s) {', '.join(missing)} missing; found {', '.join(dataset.column_names)}"
        )
    if not len(dataset):
        raise ValueError("the data set has no rows; nothing can be trained or tested on it")
    faults = _image_faults(dataset, shared=shared, progress=progress) if needs_image else {}
    filled = [
        [bool(text and text.strip()) for text in texts or ()]
        for texts in column(dataset, "captions")
    ]
    first: dict[str, int] = {}
    lines = []
    valid = []
    mixed = []
    for row, image_id in enumerate(column(dataset, "image_id")):
        reasons = [*([] if image_id else ["image_id is empty"]), *faults.get(row, ())]
        if needs_caption and not any(filled[row]):
            reasons.append("every caption is empty" if filled[row] else "the row has no caption")
        if unique_ids and not reasons and first.setdefault(image_id, row) != row:
            reasons.append(f"image_id repeats that of row {first[image_id]}")
        if reasons:
            lines.append(_line("row", dataset, row, "; ".join(reasons)))
            continue
        valid.append(row)
        if not all(filled[row]):
            mixed.append(row)
            lines.append(
                _line("caption", dataset, row, f"{filled[row].count(False)} empty captions removed")
            )
    if is_main():
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        write_file(quarantine, to_lines(lines))
    if shared:
        barrier()  # the file that the error below names is then there
    invalid = len(dataset) - len(valid)
    total = len(dataset)
    if (share := invalid / total) > max_share:
        raise ValueError(
            f"{invalid} of {total} rows are invalid ({share:.2%}), more than the allowed {max_share:.2%}: "
            f"{first_reasons(lines)}. Each has a line with its reason in {quarantine}: repair or remove them, or allow "
            f"a larger share (--data.max-bad-share {math.ceil(100 * share) / 100})."
        )
    if not valid:
        raise ValueError(
            f"all {total} rows are invalid, so nothing is left: {first_reasons(lines)}. See {quarantine}"
        )
    # Before rows are chosen: afterwards every image would be copied.
    dataset = _without_empty(dataset, {row: filled[row] for row in mixed}) if mixed else dataset
    return select_rows(dataset, valid) if invalid else dataset


def _without_empty(dataset: Dataset, filled: dict[int, list[bool]]) -> Dataset:
    names = dataset.column_names
    for name in {"captions", "false_captions"}.intersection(names):
        texts = column(dataset, name)
        for row, kept in filled.items():
            texts[row] = list(itertools.compress(texts[row] or (), kept))
        others = cast(Dataset, dataset.remove_columns(name))
        dataset = cast(Dataset, others.add_column(name, texts, feature=FEATURES["captions"]))
    return cast(Dataset, dataset.select_columns(names))


def _line(kind: str, dataset: Dataset, number: int, reason: str) -> dict[str, Any]:
    row: dict[str, Any] = dataset[number]
    path = row["image"] and row["image"]["path"]
    facts = {
        "kind": kind,
        "row": number,
        "image_id": row["image_id"],
        "path": path,
        "source": row["source"],
    }
    return {**facts, "reason": reason}


def _image_faults(
    dataset: Dataset, *, shared: bool, progress: Callable[[], None]
) -> dict[int, list[str]]:
    """Return what is wrong with the images of rows, by the rows' numbers.

    Rows of a prepared folder have been validated, and images of built-in sets come from packages or are drawn from
    descriptions. Faults of other files of `datasets` are kept in the cache folder for the next time.
    """
    images = image_columns(dataset.features)
    file = None
    known = None
    files, complete = _files_of(dataset, images)
    if files:
        stamps = [(str(each), each.stat().st_size, each.stat().st_mtime_ns) for each in files]
        file = cached_file("validated", dataset._fingerprint, stamps, images)
        if complete and all(map(_is_prepared, files)):
            known = {}
        elif file.is_file():
            known = {
                int(row): faults
                for row, faults in json.loads(file.read_text(encoding="utf-8")).items()
            }
    if None not in (kept := gather_objects(known) if shared else [known]):
        return kept[0]
    share, shares = (rank(), world_size()) if shared else (0, 1)
    own = range(len(dataset) * share // shares, len(dataset) * (share + 1) // shares)
    validate = ImageValidator(images)
    found = {}
    # Never from a cache of `datasets`: the files behind the paths may have changed since the last pass.
    rows = cast("Iterable[dict[str, Any]]", cast(Any, dataset.select_columns(images)).select(own))
    with Progress.on_stderr() if is_main() else Progress(None) as bar:
        for done, (number, row) in enumerate(zip(own, rows, strict=True)):
            if done % _PROGRESS_EVERY == 0:
                bar.update("validating rows", done, len(own))
                progress()
            if faults := validate(row):
                found[number] = faults
    if shared:
        found = {
            number: faults for part in gather_objects(found) for number, faults in part.items()
        }
    if file is not None and is_main():
        keep_file(file, lambda path: path.write_text(json.dumps(found), encoding="utf-8"))
    return found


def _is_prepared(file: Path) -> bool:
    """Return True for a file of a built-in set, or one that `vlmo data prepare` has written."""
    if file.is_relative_to(built_folder()):
        return True
    summary = file.parent.parent / SUMMARY_FILE
    newer = summary.is_file() and summary.stat().st_mtime_ns >= file.stat().st_mtime_ns
    return newer and '"layout"' in summary.read_text(encoding="utf-8")


def _files_of(dataset: Dataset, images: list[str]) -> tuple[list[Path], bool]:
    """Return the files that hold the images, none if some lie elsewhere; and True if no row lacks one."""
    table = dataset.data
    complete = True
    blocks = itertools.chain(*table.blocks) if isinstance(table, ConcatenationTable) else [table]
    if any(
        isinstance(each, InMemoryTable) and not {*images}.isdisjoint(each.column_names)
        for each in blocks
    ):
        return [], False
    rows = cast(Dataset, dataset.select_columns(images)).with_format("arrow")
    for batch in cast("Iterable[pa.Table]", rows.iter(batch_size=_BATCH)):
        for name in images:
            data, path = (_compute.struct_field(batch[name], part) for part in ("bytes", "path"))
            complete = complete and not data.null_count
            if path.filter(data.is_null()).drop_null().length():
                return [], False
    return [Path(each["filename"]) for each in dataset.cache_files], complete
