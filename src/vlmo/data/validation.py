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
from vlmo.data.quarantine import first_reasons, to_lines
from vlmo.data.rows import SUMMARY_FILE, arrow_table, column, select_rows
from vlmo.data.schema import FEATURES, require_columns
from vlmo.distributed import barrier, gather_objects, is_main, rank, world_size
from vlmo.folder.atomic import cached_file, keep_file, write_file
from vlmo.progress import Progress

_compute: Any = pyarrow.compute  # its functions are made when it is imported

_PROGRESS_EVERY = 64
"""Rows between two updates of the bar, and calls of `progress`."""
_BATCH = 10_000
_REMEMBERED = 16
"""Images whose verdict is kept: rows about one image stand together, or nearly so."""


class Verdict(NamedTuple):
    """The result of validating a row.

    Attributes:
        reason: Why the row is invalid; None for a valid one.
        empty: Numbers of its empty captions, from 1.
    """

    reason: str | None
    empty: list[int]


class RowValidator:
    """Validates rows: columns `images` are decoded, and with `needs_caption` rows without a caption are invalid.

    The verdicts of the last images are remembered, as several rows of questions show the same one. Make a new validator
    for each pass over a data set: files may have been repaired since.
    """

    def __init__(self, *, images: Sequence[str], needs_caption: bool) -> None:
        self._images, self._needs_caption = images, needs_caption
        self._image_error = functools.lru_cache(_REMEMBERED)(_image_error)

    def __call__(self, row: dict[str, Any]) -> Verdict:
        """Decode the row's images and look for empty texts."""
        captions = row["captions"] or []
        empty = [number for number, caption in enumerate(captions, start=1) if not caption or not caption.strip()]
        reasons = [] if row["image_id"] else ["image_id is empty"]
        for name in self._images:
            cell = row[name]
            reason = f"the row has no {name}" if cell is None else self._image_error(cell["path"], cell["bytes"])
            reasons += [reason] if reason else []
        if self._needs_caption and len(empty) == len(captions):
            reasons.append("every caption is empty" if captions else "the row has no caption")
        return Verdict("; ".join(reasons) or None, empty)


def _image_error(path: str | None, data: bytes | None) -> str | None:
    try:
        decode_image({"bytes": data, "path": path})
    except ValueError as error:
        return str(error)
    return None


def image_columns(features: Features) -> list[str]:
    """Return the columns of images that nothing has decoded yet, `image` first."""
    found = [name for name, feature in features.items() if isinstance(feature, Image) and not feature.decode]
    return ["image", *(name for name in found if name != "image")]


def quarantine_lines(
    cells: dict[str, Any], verdict: Verdict, *, row: int, split: str | None = None
) -> list[dict[str, Any]]:
    """Return the lines about row number `row`: its reason, or each empty caption of a valid row."""
    facts: dict[str, Any] = {"row": row} if split is None else {"split": split, "row": row}
    facts |= {"image_id": cells["image_id"], "path": cells["image"]["path"] if cells["image"] else None}
    facts["source"] = cells["source"]
    if verdict.reason is not None:
        return [{"kind": "row", **facts, "reason": verdict.reason}]
    return [
        {"kind": "caption", **facts, "reason": f"caption {number} is empty; removed, the row is kept"}
        for number in verdict.empty
    ]


def without_empty(captions: Sequence[str], verdict: Verdict) -> list[str]:
    """Return the captions but the empty ones."""
    return [caption for number, caption in enumerate(captions, start=1) if number not in verdict.empty]


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
        shared: All processes of the group call this for the same rows: each validates a share of them, and the main one
            writes the file.
        progress: Called every few rows, for who watches over long work.
    """
    require_columns(dataset, name="data set")
    if not len(dataset):
        raise ValueError("the data set has no rows; nothing can be trained or tested on it")
    images = image_columns(dataset.features) if needs_image else []
    verdicts = _verdicts(dataset, images=images, needs_caption=needs_caption, shared=shared, progress=progress)
    first: dict[str, int] = {}
    for row, image_id in enumerate(column(dataset, "image_id") if unique_ids else ()):
        known = verdicts.get(row, Verdict(None, []))
        if known.reason is None and first.setdefault(image_id, row) != row:
            verdicts[row] = known._replace(reason=f"image_id repeats that of row {first[image_id]}")
    lines = [line for row in sorted(verdicts) for line in quarantine_lines(dataset[row], verdicts[row], row=row)]
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
        for name in ("captions", "false_captions"):
            if name in names:
                texts = column(dataset, name)
                for row, verdict in verdicts.items():
                    texts[row] = without_empty(texts[row] or [], verdict)
                others = cast(Dataset, dataset.remove_columns(name))
                dataset = cast(Dataset, others.add_column(name, texts, feature=FEATURES["captions"]))
        dataset = cast(Dataset, dataset.select_columns(names))
    return dataset if len(valid) == len(dataset) else select_rows(dataset, valid)


def _verdicts(
    dataset: Dataset, *, images: list[str], needs_caption: bool, shared: bool, progress: Callable[[], None]
) -> dict[int, Verdict]:
    """Return the verdicts about rows that have an error, by their number.

    Rows of a prepared folder have been validated, and images of built-in sets come from packages or are drawn from
    descriptions. Verdicts about other files of `datasets` are kept in the cache folder for the next time. Images in
    files of their own, which may change, are decoded each time.
    """
    file, known = None, None
    files = [Path(each["filename"]) for each in dataset.cache_files]
    missing, apart = _without_bytes(dataset, images) if files else (0, 0)
    if files and not apart and not _holds_in_memory(dataset, images):
        stamps = [(str(each), each.stat().st_size, each.stat().st_mtime_ns) for each in files]
        file = cached_file("validated", dataset._fingerprint, stamps, images, needs_caption)
        if all(map(_is_prepared, files)) and not missing and _has_texts(dataset, needs_caption=needs_caption):
            known = {}
        elif file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
            known = {int(row): Verdict(*verdict) for row, verdict in kept.items()}
    if None not in (found := gather_objects(known) if shared else [known]):
        return found[0]
    verdicts = _validate(
        dataset, RowValidator(images=images, needs_caption=needs_caption), shared=shared, progress=progress
    )
    if file is not None and is_main():
        keep_file(file, lambda path: path.write_text(json.dumps(verdicts), encoding="utf-8"))
    return verdicts


def _is_prepared(file: Path) -> bool:
    """Return True for a file of a built-in set or one that `vlmo data prepare` has written.

    People write summaries with labels of their own.
    """
    if file.is_relative_to(built_folder()):
        return True
    summary = file.parent.parent / SUMMARY_FILE
    newer = summary.is_file() and summary.stat().st_mtime_ns >= file.stat().st_mtime_ns
    return newer and '"layout"' in summary.read_text(encoding="utf-8")


def _holds_in_memory(dataset: Dataset, columns: list[str]) -> bool:
    """Return True if one of the columns lies in memory for some rows, of which no file tells."""
    table = dataset.data
    parts = itertools.chain(*table.blocks) if isinstance(table, ConcatenationTable) else [table]
    return any(isinstance(part, InMemoryTable) and not {*columns}.isdisjoint(part.column_names) for part in parts)


def _without_bytes(dataset: Dataset, images: list[str]) -> tuple[int, int]:
    """Return how many images the rows do not hold, and how many of these lie in files of their own."""
    rows = cast(Dataset, dataset.select_columns(images)).with_format("arrow")
    missing = apart = 0
    for batch in cast("Iterable[pa.Table]", rows.iter(batch_size=_BATCH)) if images else ():
        for name in images:
            data, path = (_compute.struct_field(batch[name], part) for part in ("bytes", "path"))
            missing += data.null_count
            apart += path.filter(data.is_null()).drop_null().length()
    return missing, apart


def _has_texts(dataset: Dataset, *, needs_caption: bool) -> bool:
    """Return True if no row has an empty text and, where captions are needed, each has one."""
    names, captions = arrow_table(dataset, ["image_id", "captions"]).columns
    texts = pa.chunked_array([*names.chunks, *_compute.list_flatten(captions).chunks], pa.string())
    lengths = _compute.utf8_length(_compute.utf8_trim_whitespace(texts))
    counts = [lengths, *([_compute.list_value_length(captions)] if needs_caption else [])]
    return all(_compute.min(_compute.fill_null(each, 0)).as_py() > 0 for each in counts)


def _validate(
    dataset: Dataset, validator: RowValidator, *, shared: bool, progress: Callable[[], None]
) -> dict[int, Verdict]:
    """Return the verdicts, each process about a share of the rows."""
    place, places = (rank(), world_size()) if shared else (0, 1)
    own = range(len(dataset) * place // places, len(dataset) * (place + 1) // places)
    verdicts = {}
    # Never from a cache: the files behind the paths may have changed since the last pass.
    rows = cast("Iterable[dict[str, Any]]", dataset.select(own))
    with Progress.on_stderr() if is_main() else Progress(None) as bar:
        for done, (row, cells) in enumerate(zip(own, rows, strict=True)):
            if done % _PROGRESS_EVERY == 0:
                bar.update("validating rows", done, len(own))
                progress()
            verdict = validator(cells)
            if verdict.reason is not None or verdict.empty:
                verdicts[row] = verdict
    parts = gather_objects(verdicts) if shared else [verdicts]
    return {row: verdict for part in parts for row, verdict in part.items()}
