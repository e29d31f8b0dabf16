"""Validation of every row before a run: valid rows go on, invalid ones leave a line in the quarantine file."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, Features, Image
from datasets.table import ConcatenationTable, InMemoryTable

from vlmo.data.builtin import built_folder
from vlmo.data.decoding import decode_image
from vlmo.data.rows import (
    SUMMARY_FILE,
    QuarantineLine,
    column,
    first_reasons,
    select_rows,
    to_lines,
)
from vlmo.data.schema import FEATURES
from vlmo.distributed import barrier, gather_objects, is_main, rank, world_size
from vlmo.folder.atomic import cached_file, keep_file, write_file
from vlmo.progress import Progress

_PROGRESS_EVERY = 64  # rows
_BATCH = 10_000
# Images: rows about one stand together, or nearly so.
_REMEMBERED = 16


class ImageValidator:
    """Decodes the columns `images` of rows, and says what is wrong with them.

    The results of the last images are remembered, as several rows of questions show the same one. Make a new validator
    for every pass over a data set: files may have been repaired since.
    """

    def __init__(self, images: Sequence[str]) -> None:
        self._images = images
        self._fault = functools.lru_cache(_REMEMBERED)(_fault)

    def __call__(self, row: dict[str, Any]) -> list[str]:
        """Return a line about every image that is missing or cannot be decoded."""
        faults = []
        for name in self._images:
            cell = row[name] or {}
            faults.append(self._fault(name, cell.get("path"), cell.get("bytes")))
        return list(filter(None, faults))


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
    others = []
    for name, feature in features.items():
        if name != "image" and isinstance(feature, Image) and not feature.decode:
            others.append(name)
    return ["image", *others]


def filter_invalid_rows(
    dataset: Dataset,
    *,
    quarantine: Path,
    max_share: float = 0.01,
    needs_image: bool = True,
    needs_caption: bool = True,
    unique_ids: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> Dataset:
    """Return the valid rows in their order; every other row is a JSON line in `quarantine`.

    All processes of the group call this for the same rows: they decode a share of them, and the main one writes.
    A line has `kind` ("row": the row is dropped; "caption": only empty captions were), `row`, `image_id`, `path`,
    `source` and `reason`. So rows in = rows out + lines of kind "row". The file is written also when all are valid.

    Args:
        quarantine: File to write, JSON lines; an older one is replaced.
        max_share: Share of invalid rows, 0 to 1, above which ValueError is raised (after the file is written).
        needs_image: Decode all columns of images (second images and masks too), and drop rows where one is missing
            or cannot be read.
        needs_caption: Drop rows that have no caption left.
        unique_ids: Drop rows whose `image_id` an earlier valid row has; off for sets with several rows an image.
        progress: Called every few rows, for who watches over long work.
    """
    missing = FEATURES.keys() - {*dataset.column_names}
    if missing:
        raise ValueError(
            f"column(s) {', '.join(missing)} missing; found {', '.join(dataset.column_names)}"
        )
    if not len(dataset):
        raise ValueError("the data set has no rows; nothing can be trained or tested on it")
    faults = _image_faults(dataset, progress=progress) if needs_image else {}
    faults = _row_faults(dataset, faults, needs_caption=needs_caption, unique_ids=unique_ids)
    lines = []
    valid = []
    filled: dict[int, list[bool]] = {}  # of rows that lose some captions
    for row, texts in enumerate(column(dataset, "captions")):
        if row in faults:
            lines.append(_line("row", dataset, row, "; ".join(faults[row])))
            continue
        valid.append(row)
        is_filled = _are_filled(texts)
        if not all(is_filled):
            filled[row] = is_filled
            reason = f"{is_filled.count(False)} empty captions removed"
            lines.append(_line("caption", dataset, row, reason))
    if is_main():
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        write_file(quarantine, to_lines(lines))
    # The file that the errors below name is then there.
    barrier()
    _check_share(lines, num_valid=len(valid), max_share=max_share, quarantine=quarantine)
    # Before rows are chosen: afterwards every image would be copied.
    dataset = _without_empty(dataset, filled)
    return select_rows(dataset, valid) if faults else dataset


def _row_faults(
    dataset: Dataset,
    image_faults: dict[int, list[str]],
    *,
    needs_caption: bool,
    unique_ids: bool,
) -> dict[int, list[str]]:
    """Return the faults of invalid rows, those of their images among them, by the rows' numbers."""
    captions = column(dataset, "captions")
    first_rows: dict[str, int] = {}  # by image id, of valid rows
    faults: dict[int, list[str]] = {}
    for row, image_id in enumerate(column(dataset, "image_id")):
        reasons = [] if image_id else ["image_id is empty"]
        reasons += image_faults.get(row, ())
        if needs_caption and not any(_are_filled(captions[row])):
            reasons.append("every caption is empty" if captions[row] else "the row has no caption")
        if unique_ids and not reasons and first_rows.setdefault(image_id, row) != row:
            reasons.append(f"image_id repeats that of row {first_rows[image_id]}")
        if reasons:
            faults[row] = reasons
    return faults


def _are_filled(captions: Sequence[str | None] | None) -> list[bool]:
    return [bool(caption and caption.strip()) for caption in captions or ()]


def _check_share(
    lines: Sequence[QuarantineLine], *, num_valid: int, max_share: float, quarantine: Path
) -> None:
    """Raise ValueError if too many rows are invalid, or all."""
    invalid = sum(line["kind"] == "row" for line in lines)
    total = num_valid + invalid
    share = invalid / total
    if share > max_share:
        raise ValueError(
            f"{invalid} of {total} rows are invalid ({share:.2%}), more than the allowed {max_share:.2%}: "
            f"{first_reasons(lines)}. Each has a line with its reason in {quarantine}: repair or remove them, or allow "
            f"a larger share (--data.max-bad-share {math.ceil(100 * share) / 100})."
        )
    if not num_valid:
        raise ValueError(
            f"all {total} rows are invalid, so nothing is left: {first_reasons(lines)}. See {quarantine}"
        )


def _without_empty(dataset: Dataset, filled: dict[int, list[bool]]) -> Dataset:
    if not filled:
        return dataset
    names = dataset.column_names
    for name in {"captions", "false_captions"}.intersection(names):
        texts = column(dataset, name)
        for row, kept in filled.items():
            texts[row] = list(itertools.compress(texts[row] or (), kept))
        others = cast(Dataset, dataset.remove_columns(name))
        dataset = cast(Dataset, others.add_column(name, texts, feature=FEATURES["captions"]))
    return cast(Dataset, dataset.select_columns(names))


def _line(kind: str, dataset: Dataset, number: int, reason: str) -> QuarantineLine:
    row: dict[str, Any] = dataset[number]
    return {
        "kind": kind,
        "row": number,
        "image_id": row["image_id"],
        "path": row["image"] and row["image"]["path"],
        "source": row["source"],
        "reason": reason,
    }


def _image_faults(dataset: Dataset, *, progress: Callable[[], None]) -> dict[int, list[str]]:
    """Return the faults of the images of rows, by the rows' numbers.

    Rows of a prepared folder have been validated, and images of built-in sets come from packages or are drawn from
    descriptions. Faults of other files of `datasets` are kept in the cache folder for the next time.
    """
    images = image_columns(dataset.features)
    cache = None
    stored = None
    files, complete = _files_of(dataset, images)
    if files:
        stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        cache = cached_file("validated", dataset._fingerprint, stamps, images)
        if complete and all(map(_is_prepared, files)):
            stored = {}
        elif cache.is_file():
            lines = json.loads(cache.read_text(encoding="utf-8"))
            stored = {int(row): reasons for row, reasons in lines.items()}
    # Processes may see caches of their own machines: all must take the same way.
    stored_faults = gather_objects(stored)
    if None not in stored_faults:
        return stored_faults[0]
    faults = _decode_all(dataset, images, progress=progress)
    if cache is not None and is_main():
        keep_file(cache, lambda path: path.write_text(json.dumps(faults), encoding="utf-8"))
    return faults


def _decode_all(
    dataset: Dataset, images: list[str], *, progress: Callable[[], None]
) -> dict[int, list[str]]:
    """Decode the images of all rows, a share in each process; return their faults by row."""
    # Contiguous shares: rows that show one image stand together.
    first = len(dataset) * rank() // world_size()
    numbers = range(first, len(dataset) * (rank() + 1) // world_size())
    validate = ImageValidator(images)
    faults: dict[int, list[str]] = {}
    # Never from a cache of `datasets`: the files behind the paths may have changed since the last pass.
    rows: Any = dataset.select_columns(images)
    with Progress.on_stderr() if is_main() else Progress(None) as bar:
        for done, (number, row) in enumerate(zip(numbers, rows.select(numbers), strict=True)):
            if done % _PROGRESS_EVERY == 0:
                bar.update("validating rows", done, len(numbers))
                progress()
            if reasons := validate(row):
                faults[number] = reasons
    for part in gather_objects(faults):
        faults |= part
    return faults


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
    blocks = itertools.chain(*table.blocks) if isinstance(table, ConcatenationTable) else [table]
    for block in blocks:
        if isinstance(block, InMemoryTable) and not {*images}.isdisjoint(block.column_names):
            return [], False
    complete = True
    rows: Any = dataset.select_columns(images)
    for batch in rows.with_format("arrow").iter(batch_size=_BATCH):
        for name in images:
            data, path = batch[name].combine_chunks().flatten()
            complete = complete and not data.null_count
            if path.filter(data.is_null()).drop_null():
                return [], False
    return [Path(file["filename"]) for file in dataset.cache_files], complete
