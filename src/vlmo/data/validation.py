"""Validation of every row before a run: valid rows go on, each invalid one leaves a line in the quarantine file."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, Features, Image
from datasets.table import ConcatenationTable, InMemoryTable

from vlmo.data.builtin import built_folder
from vlmo.data.decoding import decode_image
from vlmo.data.rows import SUMMARY_FILE, column, first_reasons, select_rows, to_lines
from vlmo.data.schema import FEATURES, require_columns
from vlmo.distributed import barrier, gather_objects, is_main, rank, world_size
from vlmo.folder.atomic import cached_file, keep_file, write_file
from vlmo.progress import Progress

_compute: Any = pyarrow.compute  # its functions are made when it is imported

_PROGRESS_EVERY = 64
"""Rows between two updates of the bar, and calls of `progress`."""
_BATCH = 10_000
_REMEMBERED = 16
"""Images whose faults are kept: rows about one image stand together, or nearly so."""


class Verdict(NamedTuple):
    """Why a row is invalid (None: it is valid), and the numbers of its empty captions, from 1."""

    reason: str | None
    empty: list[int]

    @classmethod
    def of(cls, row: dict[str, Any], *, faults: Sequence[str], needs_caption: bool) -> Verdict:
        """Validate a row's id and captions; `faults` are those of its images."""
        captions = row["captions"] or []
        empty = [number for number, caption in enumerate(captions, start=1) if not caption or not caption.strip()]
        reasons = [*([] if row["image_id"] else ["image_id is empty"]), *faults]
        if needs_caption and len(empty) == len(captions):
            reasons.append("every caption is empty" if captions else "the row has no caption")
        return cls("; ".join(reasons) or None, empty)

    def kept(self, captions: Sequence[str] | None) -> list[str]:
        """Return the captions but the empty ones."""
        return [caption for number, caption in enumerate(captions or (), start=1) if number not in self.empty]

    def lines(self, row: dict[str, Any], *, number: int, split: str | None = None) -> list[dict[str, Any]]:
        """Return the lines of the quarantine file: the reason, or each empty caption of a valid row."""
        facts: dict[str, Any] = {"row": number} if split is None else {"split": split, "row": number}
        facts |= {"image_id": row["image_id"], "path": row["image"]["path"] if row["image"] else None}
        facts["source"] = row["source"]
        if self.reason is not None:
            return [{"kind": "row", **facts, "reason": self.reason}]
        reasons = (f"caption {caption} is empty; removed, the row is kept" for caption in self.empty)
        return [{"kind": "caption", **facts, "reason": reason} for reason in reasons]


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
        cells = {name: row[name] for name in self._images}
        found = (
            f"the row has no {name}" if cell is None else self._fault(cell["path"], cell["bytes"])
            for name, cell in cells.items()
        )
        return [fault for fault in found if fault]


def _fault(path: str | None, data: bytes | None) -> str | None:
    try:
        decode_image({"bytes": data, "path": path})
    except ValueError as error:
        return str(error)
    return None


def image_columns(features: Features) -> list[str]:
    """Return the columns of images that nothing has decoded yet, `image` first."""
    found = [name for name, feature in features.items() if isinstance(feature, Image) and not feature.decode]
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

    A line has `kind` ("row": the row is dropped; "caption": only an empty caption was), `row`, `image_id`, `path`,
    `source` and `reason`. So rows in = rows out + lines of kind "row". The file is written atomically, also when every
    row is valid.

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
    require_columns(dataset, name="data set")
    if not len(dataset):
        raise ValueError("the data set has no rows; nothing can be trained or tested on it")
    faults = _image_faults(dataset, shared=shared, progress=progress) if needs_image else {}
    verdicts: dict[int, Verdict] = {}
    first: dict[str, int] = {}
    for number, (image_id, captions) in enumerate(
        zip(column(dataset, "image_id"), column(dataset, "captions"), strict=True)
    ):
        row = {"image_id": image_id, "captions": captions}
        verdict = Verdict.of(row, faults=faults.get(number, ()), needs_caption=needs_caption)
        if unique_ids and verdict.reason is None and first.setdefault(image_id, number) != number:
            verdict = verdict._replace(reason=f"image_id repeats that of row {first[image_id]}")
        if verdict.reason is not None or verdict.empty:
            verdicts[number] = verdict
    lines = [line for number, verdict in verdicts.items() for line in verdict.lines(dataset[number], number=number)]
    if is_main():
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        write_file(quarantine, to_lines(lines))
    if shared:
        barrier()  # the file that the error below names is then there
    valid = [row for row in range(len(dataset)) if row not in verdicts or verdicts[row].reason is None]
    invalid, total = len(dataset) - len(valid), len(dataset)
    if (share := invalid / total) > max_share:
        raise ValueError(
            f"{invalid} of {total} rows are invalid ({share:.2%}), more than the allowed {max_share:.2%}: "
            f"{first_reasons(lines)}. Each has a line with its reason in {quarantine}: repair or remove them, or allow "
            f"a larger share (--data.max-bad-share {math.ceil(100 * share) / 100})."
        )
    if not valid:
        raise ValueError(f"all {total} rows are invalid, so nothing is left: {first_reasons(lines)}. See {quarantine}")
    if any(verdict.empty for verdict in verdicts.values()):
        # Before rows are chosen: afterwards every image would be copied.
        names = dataset.column_names
        for name in {"captions", "false_captions"}.intersection(names):
            texts = column(dataset, name)
            for row, verdict in verdicts.items():
                texts[row] = verdict.kept(texts[row])
            others = cast(Dataset, dataset.remove_columns(name))
            dataset = cast(Dataset, others.add_column(name, texts, feature=FEATURES["captions"]))
        dataset = cast(Dataset, dataset.select_columns(names))
    return dataset if len(valid) == len(dataset) else select_rows(dataset, valid)


def _image_faults(dataset: Dataset, *, shared: bool, progress: Callable[[], None]) -> dict[int, list[str]]:
    """Return what is wrong with the images of rows, by the rows' numbers.

    Rows of a prepared folder have been validated, and images of built-in sets come from packages or are drawn from
    descriptions. Faults of other files of `datasets` are kept in the cache folder for the next time. Images in files of
    their own, which may change, are decoded each time, and rows in memory, of which no file tells.
    """
    images = image_columns(dataset.features)
    files, file, known = [Path(each["filename"]) for each in dataset.cache_files], None, None
    table = dataset.data
    parts = itertools.chain(*table.blocks) if isinstance(table, ConcatenationTable) else [table]
    in_memory = any(isinstance(each, InMemoryTable) and not {*images}.isdisjoint(each.column_names) for each in parts)
    missing, apart = _without_bytes(dataset, images) if files else (0, 0)
    if files and not apart and not in_memory:
        stamps = [(str(each), each.stat().st_size, each.stat().st_mtime_ns) for each in files]
        file = cached_file("validated", dataset._fingerprint, stamps, images)
        if not missing and all(map(_is_prepared, files)):
            known = {}
        elif file.is_file():
            known = {int(row): faults for row, faults in json.loads(file.read_text(encoding="utf-8")).items()}
    if None not in (kept := gather_objects(known) if shared else [known]):
        return kept[0]
    share, shares = (rank(), world_size()) if shared else (0, 1)
    own = range(len(dataset) * share // shares, len(dataset) * (share + 1) // shares)
    validate, found = ImageValidator(images), {}
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
        found = {number: faults for part in gather_objects(found) for number, faults in part.items()}
    if file is not None and is_main():
        keep_file(file, lambda path: path.write_text(json.dumps(found), encoding="utf-8"))
    return found


def _is_prepared(file: Path) -> bool:
    """Return True for a file of a built-in set or one that `vlmo data prepare` has written.

    People write summaries with labels of their own.
    """
    if file.is_relative_to(built_folder()):
        return True
    summary = file.parent.parent / SUMMARY_FILE
    newer = summary.is_file() and summary.stat().st_mtime_ns >= file.stat().st_mtime_ns
    return newer and '"layout"' in summary.read_text(encoding="utf-8")


def _without_bytes(dataset: Dataset, images: list[str]) -> tuple[int, int]:
    """Return how many images the rows do not hold, and how many of these lie in files of their own."""
    rows = cast(Dataset, dataset.select_columns(images)).with_format("arrow")
    missing = apart = 0
    for batch in cast("Iterable[pa.Table]", rows.iter(batch_size=_BATCH)):
        for name in images:
            data, path = (_compute.struct_field(batch[name], part) for part in ("bytes", "path"))
            missing += data.null_count
            apart += path.filter(data.is_null()).drop_null().length()
    return missing, apart
