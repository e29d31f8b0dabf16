"""Look at every row once before a run: good ones go on, each bad one leaves a line in a file."""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from datasets import Dataset, Image
from datasets.utils import tqdm

from vlmo.data.decoding import MAX_PIXELS, ImageCell, decode_image
from vlmo.data.schema import FEATURES, check_columns, column, select_rows

_TOLD_EVERY = 256
"""Rows between two calls of `progress`."""
_REMEMBERED = 64
"""Pictures whose verdict is kept: rows about one picture stand together, or nearly so."""


def keep_good(
    dataset: Dataset,
    *,
    quarantine: Path,
    max_share: float = 0.01,
    needs_image: bool = True,
    needs_caption: bool = True,
    unique_ids: bool = True,
    max_pixels: int = MAX_PIXELS,
    shared: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Dataset:
    """Rows that can be used, in their order; every other row is a JSON line in `quarantine`.

    A line has `kind` ("row": the row is dropped; "caption": only an empty caption was), `row`, `image_id`, `path`,
    `source` and `reason`. So rows in = rows out + lines of kind "row". The file is written whole or not at all, also
    when nothing is wrong.

    Args:
        quarantine: File to write, JSON lines; an older one is replaced.
        max_share: Share of bad rows, 0 to 1, above which ValueError is raised (after the file is written).
        needs_image: Decode each column of images (second pictures and masks too), and drop rows where one is missing
            or cannot be read.
        needs_caption: Drop rows that have no caption left.
        unique_ids: Drop rows whose `image_id` an earlier good row has; off for sets with several rows an image.
        max_pixels: Largest image that is decoded.
        shared: Whether all processes of the group call this for the same rows: each then looks at a share of them, and
            the main one writes the file.
        progress: Called every few hundred rows, for who watches over long work.
    """
    check_columns(dataset, name="data set")
    if not len(dataset):
        raise ValueError("the data set has no rows; nothing can be trained or tested on it")
    settings = {
        "needs_caption": needs_caption,
        "pictures": PictureCheck(max_pixels) if needs_image else None,
        "images": _image_columns(dataset),
    }
    verdicts = _verdicts(dataset, settings=settings, shared=shared, progress=progress)
    found = [verdicts[row]["reason"] if row in verdicts else None for row in range(len(dataset))]
    reasons = _with_repeats(found, column(dataset, "image_id"), unique_ids=unique_ids)
    removed = {row: verdict["captions"] for row, verdict in verdicts.items() if verdict["captions"] is not None}
    from vlmo.distributed import barrier, is_main

    if not shared or is_main():
        _write_lines(_lines(dataset, reasons=reasons, removed=removed), path=quarantine)
    if shared:
        barrier()  # what the line below names is then there
    good = [row for row, reason in enumerate(reasons) if reason is None]
    _check_share(len(dataset) - len(good), total=len(dataset), max_share=max_share, quarantine=quarantine)
    # Captions are replaced before rows are chosen: afterwards every image would be copied.
    dataset = _with_captions(dataset, removed) if removed else dataset
    return dataset if len(good) == len(dataset) else select_rows(dataset, good)


def _image_columns(dataset: Dataset) -> list[str]:
    """`image`, and other columns of files that nothing has decoded yet."""
    found = [name for name, feature in dataset.features.items() if isinstance(feature, Image) and not feature.decode]
    return ["image", *(name for name in found if name != "image")]


def _verdicts(
    dataset: Dataset, *, settings: dict[str, Any], shared: bool, progress: Callable[[], None]
) -> dict[int, "Verdict"]:
    """What there is to say of rows, by their number; of most there is nothing."""
    # Here, as it brings torch along: `vlmo data prepare` looks at rows, too, in processes that have no need of it.
    from vlmo.distributed import gather_objects, rank, world_size

    place, places = (rank(), world_size()) if shared else (0, 1)
    own = range(len(dataset) * place // places, len(dataset) * (place + 1) // places)
    verdicts = {}
    # Never from a cache: the files behind the paths may have changed since the last look.
    rows = cast("Iterable[dict[str, Any]]", dataset.select(own))
    for row, cells in zip(own, tqdm(rows, total=len(own), desc="Checking samples"), strict=True):
        if row % _TOLD_EVERY == 0:
            progress()
        verdict = inspect_row(cells, **settings)
        if verdict["reason"] is not None or verdict["captions"] is not None:
            verdicts[row] = verdict
    parts = gather_objects(verdicts) if shared else [verdicts]
    return {row: verdict for part in parts for row, verdict in part.items()}


def _with_captions(dataset: Dataset, changed: dict[int, list[str]]) -> Dataset:
    captions = [changed.get(row, texts) for row, texts in enumerate(column(dataset, "captions"))]
    others = cast(Dataset, dataset.remove_columns("captions"))
    replaced = cast(Dataset, others.add_column("captions", captions, feature=FEATURES["captions"]))
    return cast(Dataset, replaced.select_columns(dataset.column_names))


class Verdict(TypedDict):
    """Of a row: why it is bad, or None, and its captions without empty ones where there were empty ones, or None."""

    reason: str | None
    captions: list[str] | None


class PictureCheck:
    """Says of pictures why they cannot be decoded.

    The last verdicts are remembered, as several rows of questions show the same picture. Make a new one for each look
    at a data set: files may have been repaired since.

    Args:
        max_pixels: Largest picture that is decoded.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        self._max_pixels = max_pixels
        self._known: OrderedDict[tuple[str | None, bytes | None], str | None] = OrderedDict()

    def __call__(self, cell: ImageCell) -> str | None:
        """The reason; None of a good picture."""
        data = cell["bytes"]
        key = cell["path"], None if data is None else hashlib.sha256(data).digest()
        if key not in self._known:
            self._known[key] = self._decoded(cell)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]

    def _decoded(self, cell: ImageCell) -> str | None:
        try:
            decode_image(cell, max_pixels=self._max_pixels)
        except ValueError as error:
            return str(error)
        return None


def inspect_row(
    row: dict[str, Any],
    *,
    needs_caption: bool,
    pictures: PictureCheck | None,
    images: Sequence[str] = ("image",),
) -> Verdict:
    """What there is to say of a row.

    Args:
        pictures: None leaves pictures out.
        images: Columns whose pictures are decoded.
    """
    given = row["captions"] or []
    captions = [caption for caption in given if caption and caption.strip()]
    reasons = []
    if not row["image_id"]:
        reasons.append("image_id is empty")
    if pictures is not None:
        found = [f"the row has no {name}" if row[name] is None else pictures(row[name]) for name in images]
        reasons += [reason for reason in found if reason is not None]
    if needs_caption and not captions:
        reasons.append("the row has no caption" if not given else "every caption is empty")
    return {"reason": "; ".join(reasons) or None, "captions": captions if len(captions) < len(given) else None}


def _with_repeats(reasons: Iterable[str | None], image_ids: Iterable[str], *, unique_ids: bool) -> list[str | None]:
    first: dict[str, int] = {}
    found: list[str | None] = []
    for row, (reason, image_id) in enumerate(zip(reasons, image_ids, strict=True)):
        if reason is None and unique_ids and image_id in first:
            found.append(f"image_id repeats that of row {first[image_id]}")
            continue
        if reason is None:
            first[image_id] = row
        found.append(reason)
    return found


def _lines(dataset: Dataset, *, reasons: list[str | None], removed: dict[int, list[str]]) -> Iterable[dict[str, Any]]:
    for row, reason in enumerate(reasons):
        if reason is None and row not in removed:
            continue
        cells = dataset[row]
        path = cells["image"]["path"] if cells["image"] else None
        facts = {"row": row, "image_id": cells["image_id"], "path": path, "source": cells["source"]}
        if reason is not None:
            yield {"kind": "row", **facts, "reason": reason}
        else:
            for number, caption in enumerate(cells["captions"], start=1):
                if not caption or not caption.strip():
                    yield {"kind": "caption", **facts, "reason": f"caption {number} is empty; removed, the row is kept"}


def _write_lines(lines: Iterable[dict[str, Any]], *, path: Path) -> None:
    from vlmo.distributed import rank

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{rank()}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _check_share(bad: int, *, total: int, max_share: float, quarantine: Path) -> None:
    share = bad / total
    if share > max_share:
        raise ValueError(
            f"{bad} of {total} rows are bad ({share:.2%}), more than the allowed {max_share:.2%}. Each has a line with "
            f"its reason in {quarantine}: repair or remove them, or allow a larger share "
            "(max_bad_share)."
        )
    if bad == total:
        raise ValueError(f"all {total} rows are bad, so nothing is left; the reasons are in {quarantine}")
