"""Data sets by name or path: the built-in ones, and people's own files."""

from __future__ import annotations

import contextlib
import difflib
import functools
import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from vlmo.data import builtin, listing
from vlmo.data.decoding import MAX_PIXELS, ImageCell, decode_image, image_at
from vlmo.data.held_out import is_held_out
from vlmo.data.own import CLASS_LIST, open_own, open_shards, to_dataset
from vlmo.data.rows import (
    arrow_table,
    column,
    false_captions,
    is_saved,
    open_saved,
    saved_splits,
    select_rows,
)
from vlmo.data.schema import (
    CONTRAST_FEATURES,
    FEATURES,
    SEGMENT_FEATURES,
    class_features,
    hash_share,
    make_row,
)
from vlmo.data.tables import SPLITS, TABLE_STEMS

__all__ = ["FEATURES", "MAX_PIXELS", "ImageCell", "decode_image", "open_source"]

logger = logging.getLogger(__name__)

MAX_WORDS = 128
"""Longer lines of text are cut."""
# A run opens a set several times, once for each of its splits.
_warn_once = functools.lru_cache(8)(listing.warn_of_skipped)
_log_once = functools.lru_cache(8)(logger.info)
_MASKS = ("masks", "annotations")


def open_source(
    name: str,
    *,
    split: str = "train",
    weights: Sequence[float] = (),
    cache_dir: Path | None = None,
    test_share: float = 0.05,
) -> Dataset:
    """Open rows with the columns of `FEATURES` (and perhaps more), not yet validated; see `filter_invalid_rows`.

    A path may be a folder that `datasets` saved; a table (.csv, .tsv or .jsonl) or a folder with one beside its images;
    parquet or tar files; a folder of images alone, by class or with masks; a `.txt` file or a folder of them, one
    sentence or document a line, of which lines of more than `MAX_WORDS` words become several rows: docs/data.md.

    Args:
        name: A built-in name (`vlmo.data.builtin.SETS`), a path, or several with "+" between them, such as
            `data/coco+data/sbu`. Rows of one image (equal `image_id`) become one row with all captions; from the split
            "train", images are left out that a source has in its "validation" or "test".
        split: "train" or "test"; for data with a `split` column, any value of it.
        weights: Of several sources, how often each caption stands in its row: 2 is twice; 0.5 leaves out a half, always
            the same one.
        cache_dir: Folder for built-in sets once built; by default `$VLMO_CACHE`, else `~/.cache/vlmo`.
        test_share: Paths without a `split` column only: share of images that are "test", as `is_held_out` chooses them.

    Raises:
        ValueError: Unknown name (the nearest right one is given), unknown split, or data in no known form.
    """
    if not 0 <= test_share < 1:
        raise ValueError(f"test_share {test_share} must be in [0, 1)")
    names = listing.source_names(name)
    if len(names) > 1 or weights:
        options: dict[str, Any] = {"cache_dir": cache_dir, "test_share": test_share}
        return _join(names, split=split, weights=weights or [1.0] * len(names), **options)
    if name in builtin.SETS:
        return builtin.load(name, split=split, cache_dir=cache_dir)
    path = Path(name).expanduser().absolute()
    if not path.exists():
        near = difflib.get_close_matches(name, builtin.SETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        if listing.is_remote(name) or listing.has_wildcards(name, braces=True):
            hint = (
                f" Shards by pattern or URL are read as streams: --data.streams.patterns {name!r}."
            )
        known = f"Built-in names: {', '.join(builtin.SETS)}."
        raise ValueError(
            f"no data set {name!r}: it is neither a built-in name nor a path that exists.{hint} {known}"
        )
    listing.regular_file(path)
    splits = saved_splits(path)
    if splits and split not in splits and (split := SPLITS.get(split, split)) not in splits:
        raise ValueError(f"{path}: no split {split!r}; it has {', '.join(splits)}")
    try:
        dataset = open_own(path)
        if dataset is None and is_saved(path):
            dataset = cast(
                Dataset, open_saved(splits.get(split, path)).cast_column("image", FEATURES["image"])
            )
            if splits:
                return dataset
        dataset = _read(path) if dataset is None else dataset
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: a text or table in it is not UTF-8 ({error}); save it as UTF-8"
        ) from error
    return _choose_split(dataset, split=split, test_share=test_share, path=path)


def _join(names: Sequence[str], *, split: str, weights: Sequence[float], **options: Any) -> Dataset:
    if len(weights) != len(names) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"weights are {list(weights)} for {len(names)} sources; give a number above 0 for each"
        )
    held_out: dict[str, str | None] = {}
    own = [name for name in names if split == "train" and name not in builtin.SETS]
    for name, other in itertools.product(own, ("validation", "test")):
        with contextlib.suppress(
            *([] if other in saved_splits(Path(name).expanduser()) else [ValueError])
        ):
            rows = open_source(name, split=other, **options).flatten()
            held_out.update(zip(column(rows, "image_id"), column(rows, "image.path"), strict=True))
    sets: list[Any] = [open_source(name, split=split, **options) for name in names]
    for name, each in zip(names, sets, strict=True):
        if found := {"question", "second_image"}.intersection(each.column_names):
            raise ValueError(
                f"{name} has a column {found.pop()}; only sources of images and captions can be joined"
            )
    texts = [
        each
        for rows, weight in zip(sets, weights, strict=True)
        for each in _weighted(rows, weight=weight)
    ]
    sets = [each.select_columns(list(FEATURES)) for each in sets]
    joined: Any = concatenate_datasets(
        [each if each.features == FEATURES else each.cast(FEATURES) for each in sets]
    )
    columns = {name: column(joined, name) for name in ("source", "licence")}
    paths = arrow_table(joined.flatten(), ["image.path"])["image.path"]
    first = dict[str, int]()
    for row, (image_id, of_row) in enumerate(zip(column(joined, "image_id"), texts, strict=True)):
        is_held_out = image_id in held_out
        if not is_held_out and (of_row is None or first.setdefault(image_id, row) == row):
            continue
        both = {
            held_out[image_id] if is_held_out else paths[first[image_id]].as_py(),
            paths[row].as_py(),
        }
        files = [path for path in both if path and path.endswith(f"/{image_id}")]
        if len(files) > 1 and Path(files[0]).resolve() != Path(files[1]).resolve():
            advice = "give each a column image_id, or put both folders into one"
            raise ValueError(
                f"two images are called {image_id}: {' and '.join(sorted(files))}; {advice}"
            )
        if is_held_out or of_row is None:
            continue
        for known, more in zip(texts[first[image_id]] or (), of_row, strict=True):
            known += more
        for values in columns.values():
            known = values[first[image_id]]
            other = values[row]
            values[first[image_id]] = known if other in known.split(" + ") else f"{known} + {other}"
    columns["captions"], false = ([each[part] if each else [] for each in texts] for part in (0, 1))
    features = CONTRAST_FEATURES if any(any(false[row]) for row in first.values()) else FEATURES
    # Columns are replaced before rows are chosen: afterwards every image would be copied.
    joined = joined.remove_columns(list(columns))
    for name, values in (
        columns | ({"false_captions": false} if features != FEATURES else {})
    ).items():
        # As Arrow: of a list, the fingerprint takes in each of a million texts by itself.
        values = pa.array(values, type=features.arrow_schema.field(name).type)
        joined = joined.add_column(name, values, feature=features[name])
    return joined.select_columns(list(features)).select(list(first.values()))


def _weighted(rows: Dataset, *, weight: float) -> Iterator[tuple[list[str], list[str]] | None]:
    """Yield each row's captions and false captions as often as `weight` says, by a hash; None without any."""
    whole = int(weight)
    for image_id, of_row, false in zip(
        column(rows, "image_id"), column(rows, "captions"), false_captions(rows), strict=True
    ):
        pairs = [
            pair
            for number, pair in enumerate(zip(of_row or (), false, strict=True))
            for _ in range(whole + (hash_share(f"{image_id}:{number}") < weight - whole))
        ]
        yield (
            None
            if of_row and not pairs
            else ([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        )


def _read(path: Path) -> Dataset:
    files = list(listing.walk(path)) if path.is_dir() else [path]
    if (rows := open_shards(path, files)) is not None:
        return rows
    images = [file for file in files if file.suffix.lower() in listing.IMAGE_SUFFIXES]
    texts = [file for file in files if file.suffix.lower() == ".txt"]
    if path.is_dir():
        unread = Counter(
            suffix for file in files if (suffix := file.suffix.lower()) in listing.UNREAD_SUFFIXES
        )
        _warn_once(path, tuple(unread.items()))
        if images:
            return _read_images(path, images)
    if texts:
        return _read_text(texts, root=path if path.is_dir() else path.parent)
    raise ValueError(
        f"{path}: expected a .csv, .tsv, .jsonl, .parquet, .tar or .txt file, a saved data set, or a folder of these "
        f"with images ({', '.join(sorted(listing.IMAGE_SUFFIXES))}) and a table ({' or '.join(TABLE_STEMS)})"
    )


def _read_images(path: Path, images: Sequence[Path]) -> Dataset:
    for folder in (path / name for name in _MASKS if (path / "images").is_dir()):
        if masks := {
            file.relative_to(folder).with_suffix(""): file
            for file in images
            if file.is_relative_to(folder)
        }:
            return _masked(
                path, masks, [file for file in images if file.is_relative_to(path / "images")]
            )
    splits, below = _split_folders([file.relative_to(path).parts for file in images])
    rows = [
        _image_row(file, root=path) | {"split": split}
        for file, split in zip(images, splits, strict=True)
    ]
    classes = {
        name: number
        for number, name in enumerate(sorted({parts[0] for parts in below if len(parts) > 1}))
    }
    if len(classes) < 2 or any(len(parts) == 1 for parts in below):
        return to_dataset(rows, FEATURES, path=path)
    labelled = [row | {"label": classes[parts[0]]} for row, parts in zip(rows, below, strict=True)]
    return to_dataset(labelled, class_features(list(classes)), path=path)


def _masked(path: Path, masks: dict[Path, Path], images: Sequence[Path]) -> Dataset:
    if not (path / CLASS_LIST).is_file():
        raise ValueError(
            f"{path} has images and masks, but no {CLASS_LIST} with a name a line: class 0, class 1, ..."
        )
    names = [file.relative_to(path / "images") for file in images]
    if missing := [name for name in names if name.with_suffix("") not in masks]:
        raise ValueError(
            f"{len(missing)} images of {path} have no mask of the same name, such as {missing[0]}"
        )
    splits, _ = _split_folders([name.parts for name in names])
    rows = [
        _image_row(file, root=path)
        | {"mask": image_at(masks[name.with_suffix("")]), "split": split}
        for file, name, split in zip(images, names, splits, strict=True)
    ]
    return to_dataset(rows, SEGMENT_FEATURES, path=path)


def _image_row(file: Path, *, root: Path) -> dict[str, Any]:
    return make_row(
        file.relative_to(root).as_posix(), image=image_at(file), source=root.name, licence="unknown"
    )


def _split_folders(files: list[tuple[str, ...]]) -> tuple[list[str | None], list[tuple[str, ...]]]:
    if all(len(parts) > 1 and parts[0].lower() in SPLITS for parts in files):
        return [SPLITS[parts[0].lower()] for parts in files], [parts[1:] for parts in files]
    return [None for _ in files], files


def _read_text(files: list[Path], *, root: Path) -> Dataset:
    rows = []
    for file in files:
        name = file.relative_to(root).as_posix()
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                rows += text_rows(line, image_id=f"{name}:{number}", source=root.name)
    if not rows:
        raise ValueError(f"{root}: {', '.join(file.name for file in files[:5])} hold no text")
    return Dataset.from_list(rows, features=FEATURES)


def text_rows(line: str, *, image_id: str, source: str) -> list[dict[str, Any]]:
    """Return the rows of a line of text: one, more for a long line, none for an empty one."""
    words = line.split()
    pieces = [
        " ".join(words[start : start + MAX_WORDS]) for start in range(0, len(words), MAX_WORDS)
    ]
    return [
        make_row(
            image_id + (f":{part}" if part else ""),
            captions=[piece],
            source=source,
            licence="unknown",
        )
        for part, piece in enumerate(pieces)
    ]


def _choose_split(dataset: Dataset, *, split: str, test_share: float, path: Path) -> Dataset:
    if "split" in dataset.column_names:
        given = column(dataset, "split")
        if split not in given:
            raise ValueError(
                f"{path}: no row has split {split!r}; found {', '.join(sorted(set(given)))}"
            )
        return select_rows(dataset, [row for row, value in enumerate(given) if value == split])
    if split not in ("train", "test"):
        raise ValueError(
            f"{path}: split {split!r}; without a split column there are 'train' and 'test'"
        )
    is_test = is_held_out(dataset, test_share=test_share)
    if split == "test":
        rows = sum(is_test)
        total = len(is_test)
        _log_once(
            "%s: without a column split, a hash takes %s of %s rows as test",
            path,
            f"{rows:,}",
            f"{total:,}",
        )
    chosen = [row for row, found in enumerate(is_test) if found == (split == "test")]
    if not chosen:
        advice = f"add a split column or change test_share ({test_share})"
        raise ValueError(f"{path}: split {split!r} holds none of the {len(dataset)} rows; {advice}")
    return select_rows(dataset, chosen)
