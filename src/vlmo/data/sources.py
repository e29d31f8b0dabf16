"""Data sets by name or path: the built-in ones, and people's own files."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from vlmo.data import builtin, listing
from vlmo.data.decoding import decode_image, image_at
from vlmo.data.held_out import is_held_out
from vlmo.data.own import CLASS_LIST, Row, open_own, open_shards, to_dataset
from vlmo.data.rows import (
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
from vlmo.terminal import suggestion

__all__ = ["FEATURES", "decode_image", "open_source"]

logger = logging.getLogger(__name__)

MAX_WORDS = 128
"""Longer lines of text are cut."""
# A run opens a set several times, once a split.
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

    A path may be a folder that `datasets` saved, a table or a folder with one beside its images, parquet or tar files,
    a folder of images alone, by class or with masks, or text, a sentence or document a line: docs/data.md.

    Args:
        name: A built-in name (`vlmo.data.builtin.SETS`), a path, or several with "+" between them, such as
            `data/coco+data/sbu`. Rows of one image (equal `image_id`) become one row with all captions; from the split
            "train", images are left out that a source has in its "validation" or "test".
        split: "train" or "test"; for data with a `split` column, any value of it.
        weights: Of several sources, how often a caption stands in its row: 0.5 leaves out a half, always the same one.
        cache_dir: Folder for built-in sets once built; by default `$VLMO_CACHE`, else `~/.cache/vlmo`.
        test_share: Paths without a `split` column only: share of images that are "test", as `is_held_out` chooses them;
            1 for data that nobody trains on.

    Raises:
        ValueError: Unknown name (the nearest right one is given), unknown split, or data in no known form.
    """
    if not 0 <= test_share <= 1:
        raise ValueError(f"test_share {test_share} must be in [0, 1]")
    names = listing.source_names(name)
    if len(names) > 1 or weights:
        open_one = functools.partial(open_source, cache_dir=cache_dir, test_share=test_share)
        return _join(names, split=split, weights=weights or [1.0] * len(names), open_one=open_one)
    if name in builtin.SETS:
        return builtin.load(name, split=split, cache_dir=cache_dir)
    path = Path(name).expanduser().absolute()
    if not path.exists():
        raise _no_such_set(name)
    return _open_path(path, split=split, test_share=test_share)


def _open_path(path: Path, *, split: str, test_share: float) -> Dataset:
    """Open a split of people's own files."""
    listing.regular_file(path)
    splits = saved_splits(path)
    if splits and split not in splits:
        split = SPLITS.get(split, split)
        if split not in splits:
            raise ValueError(f"{path}: no split {split!r}; it has {', '.join(splits)}")
    try:
        dataset = open_own(path)
        if dataset is None and is_saved(path):
            saved: Any = open_saved(splits.get(split, path))
            dataset = cast(Dataset, saved.cast_column("image", FEATURES["image"]))
            if splits:
                return dataset
        elif dataset is None:
            dataset = _read(path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: a text or table in it is not UTF-8 ({error}); save it as UTF-8"
        ) from error
    return _choose_split(dataset, split=split, test_share=test_share, path=path)


def _no_such_set(name: str) -> ValueError:
    hint = suggestion(name, builtin.SETS)
    if listing.is_remote(name) or listing.has_wildcards(name, braces=True):
        hint = f". Shards by pattern or URL are read as streams: --data.streams.patterns {name!r}."
    return ValueError(
        f"no data set {name!r}, neither by a built-in name nor at a path{hint} "
        f"Built-in names: {', '.join(builtin.SETS)}."
    )


def _choose_split(dataset: Dataset, *, split: str, test_share: float, path: Path) -> Dataset:
    if "split" in dataset.column_names:
        splits = column(dataset, "split")
        if split not in splits:
            names = ", ".join(sorted(set(splits)))
            raise ValueError(f"{path}: no row has split {split!r}; found {names}")
        return select_rows(dataset, [row for row, name in enumerate(splits) if name == split])
    if split not in ("train", "test"):
        raise ValueError(
            f"{path}: split {split!r}; without a split column there are 'train' and 'test'"
        )
    if test_share == 1 and split == "test":
        return dataset
    # By a hash of contents, so that all forms of the same data hold out the same images.
    is_test = is_held_out(dataset, test_share=test_share)
    rows = [row for row, is_chosen in enumerate(is_test) if is_chosen == (split == "test")]
    if not rows:
        raise ValueError(
            f"{path}: split {split!r} holds none of the {len(dataset)} rows; "
            f"add a split column or change test_share ({test_share})"
        )
    if split == "test":
        _log_once(
            "%s: without a column split, a hash takes %s of %s rows as test",
            path,
            f"{len(rows):,}",
            f"{len(is_test):,}",
        )
    return select_rows(dataset, rows)


# ------------------------------------------------------------------------------------------------------ joined sources


Pairs: TypeAlias = list[tuple[str, str]]
"""Captions of a row, with their false versions."""


def _join(
    names: Sequence[str], *, split: str, weights: Sequence[float], open_one: Callable[..., Dataset]
) -> Dataset:
    """Return the rows of several sources, one an image, with the captions of all of them."""
    if len(weights) != len(names) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"weights are {list(weights)} for {len(names)} sources; give a number above 0 for each"
        )
    # An image that one source tests on must not come into training by another.
    held_out = _held_out_paths(names, open_one) if split == "train" else {}
    pairs: list[Pairs | None] = []  # of all rows; None where the weight leaves none
    sets: list[Dataset] = []
    for name, weight in zip(names, weights, strict=True):
        rows = open_one(name, split=split)
        others = {"question", "second_image"}.intersection(rows.column_names)
        if others:
            raise ValueError(
                f"{name} has a column {others.pop()}; only sources of images and captions can be joined"
            )
        pairs += _weighted_pairs(rows, weight=weight)
        rows = cast("Dataset", rows.select_columns(list(FEATURES)))
        if rows.features != FEATURES:
            rows = rows.cast(FEATURES)  # writes all images again
        sets.append(rows)
    joined = concatenate_datasets(sets)
    facts = {name: column(joined, name) for name in ("source", "licence")}
    first_rows = _merge_rows(joined, pairs, facts, held_out=held_out)
    columns = facts | {"captions": [[caption for caption, _ in row or ()] for row in pairs]}
    false = [[text for _, text in row or ()] for row in pairs]
    features = FEATURES
    if any(any(false[row]) for row in first_rows):
        features = CONTRAST_FEATURES
        columns["false_captions"] = false
    # Columns are replaced before rows are chosen: afterwards every image would be copied.
    rows: Any = joined.remove_columns([name for name in columns if name in FEATURES])
    for name, values in columns.items():
        # As Arrow: of a list, the fingerprint takes in a million texts one by one.
        array = pa.array(values, type=features.arrow_schema.field(name).type)
        rows = rows.add_column(name, array, feature=features[name])
    return rows.select_columns(list(features)).select(first_rows)


def _merge_rows(
    joined: Dataset,
    pairs: list[Pairs | None],
    facts: Mapping[str, list[str]],
    *,
    held_out: Mapping[str, str | None],
) -> list[int]:
    """Merge the pairs and facts of an image's rows into its first row; return these rows, without held-out images."""
    # Paths alone, without the bytes beside them.
    paths = column(cast("Dataset", joined.flatten()), "image.path")
    first_rows: dict[str, int] = {}
    # The first source that has an image gives its file; later ones add captions.
    for row, image_id in enumerate(column(joined, "image_id")):
        if image_id in held_out:
            _check_one_file(image_id, {held_out[image_id], paths[row]})
            continue
        row_pairs = pairs[row]
        if row_pairs is None:
            continue
        first = first_rows.setdefault(image_id, row)
        first_pairs = pairs[first]
        if first == row or first_pairs is None:
            continue
        _check_one_file(image_id, {paths[first], paths[row]})
        first_pairs += row_pairs
        # One image may come from several sources, with a licence from each.
        for values in facts.values():
            if values[row] not in values[first].split(" + "):
                values[first] += f" + {values[row]}"
    return list(first_rows.values())


def _held_out_paths(
    names: Sequence[str], open_one: Callable[..., Dataset]
) -> dict[str, str | None]:
    """Return the paths of images in the sources' validation and test splits, by the images' ids."""
    paths: dict[str, str | None] = {}
    own_names = [name for name in names if name not in builtin.SETS]
    for name, split in itertools.product(own_names, ("validation", "test")):
        # Errors of a saved split are damage; those of others say that there is no such split.
        is_there = split in saved_splits(Path(name).expanduser())
        with contextlib.nullcontext() if is_there else contextlib.suppress(ValueError):
            rows = open_one(name, split=split).flatten()
            paths |= zip(column(rows, "image_id"), column(rows, "image.path"), strict=True)
    return paths


def _check_one_file(image_id: str, paths: set[str | None]) -> None:
    """Raise ValueError if two files are named by one id, which rows of one image may repeat."""
    files = sorted(path for path in paths if path and path.endswith(f"/{image_id}"))
    if len(set(map(Path.resolve, map(Path, files)))) > 1:
        raise ValueError(
            f"two images are called {image_id}: {' and '.join(files)}; "
            "give each a column image_id, or put both folders into one"
        )


def _weighted_pairs(rows: Dataset, *, weight: float) -> Iterator[Pairs | None]:
    """Yield the captions of rows, with their false versions, as often as `weight` says; None if it leaves none."""
    # 1.5 takes all captions once, and half of them twice.
    whole = int(weight)
    ids = column(rows, "image_id")
    for image_id, captions, false in zip(
        ids, column(rows, "captions"), false_captions(rows), strict=True
    ):
        pairs = []
        for number, pair in enumerate(zip(captions or (), false, strict=True)):
            # By a hash: the same captions are left out in every run and on every process.
            is_once_more = hash_share(f"{image_id}:{number}") < weight - whole
            pairs += [pair] * (whole + is_once_more)
        yield None if captions and not pairs else pairs


# ------------------------------------------------------------------------------------------- images and texts in files


def _read(path: Path) -> Dataset:
    # Shards before images, images before texts: a folder of images may hold a read-me.
    files = list(listing.walk(path)) if path.is_dir() else [path]
    rows = open_shards(path, files)
    if rows is not None:
        return rows
    images = [file for file in files if file.suffix.lower() in listing.IMAGE_SUFFIXES]
    if path.is_dir():
        suffixes = Counter(file.suffix.lower() for file in files)
        unread = suffixes.keys() & listing.UNREAD_SUFFIXES
        _warn_once(path, tuple((suffix, suffixes[suffix]) for suffix in unread))
        if images:
            return _read_images(path, images)
    texts = [file for file in files if file.suffix.lower() == ".txt"]
    if texts:
        return _read_text(texts, root=path if path.is_dir() else path.parent)
    raise ValueError(
        f"{path}: expected a .csv, .tsv, .jsonl, .parquet, .tar or .txt file, a saved data set, or a folder of these "
        f"with images ({', '.join(sorted(listing.IMAGE_SUFFIXES))}) and a table ({' or '.join(TABLE_STEMS)})"
    )


def _read_images(path: Path, images: Sequence[Path]) -> Dataset:
    for folder in _MASKS:
        files = [file for file in images if file.is_relative_to(path / folder)]
        if files and (path / "images").is_dir():
            # An image and its mask have one path but for the suffix.
            masks = {file.relative_to(path / folder).with_suffix(""): file for file in files}
            return _read_masked(path, images, masks)
    splits, parts = _split_folders([file.relative_to(path) for file in images])
    rows = [_image_row(file, split, root=path) for file, split in zip(images, splits, strict=True)]
    names = sorted({part[0] for part in parts if len(part) > 1})
    features = FEATURES
    if len(names) > 1 and all(len(part) > 1 for part in parts):
        features = class_features(names)
        numbers = {name: number for number, name in enumerate(names)}
        for row, part in zip(rows, parts, strict=True):
            row["label"] = numbers[part[0]]
    return to_dataset(rows, features, path=path)


def _read_masked(path: Path, files: Sequence[Path], masks: dict[Path, Path]) -> Dataset:
    if not (path / CLASS_LIST).is_file():
        raise ValueError(
            f"{path} has images and masks, but no {CLASS_LIST} with a name a line: class 0, class 1, ..."
        )
    images = [file for file in files if file.is_relative_to(path / "images")]
    names = [file.relative_to(path / "images") for file in images]
    missing = [name for name in names if name.with_suffix("") not in masks]
    if missing:
        raise ValueError(
            f"{len(missing)} images of {path} have no mask of the same name, such as {missing[0]}"
        )
    splits, _ = _split_folders(names)
    rows = []
    for file, name, split in zip(images, names, splits, strict=True):
        mask = image_at(masks[name.with_suffix("")])
        rows.append(_image_row(file, split, root=path) | {"mask": mask})
    return to_dataset(rows, SEGMENT_FEATURES, path=path)


def _image_row(file: Path, split: str | None, *, root: Path) -> Row:
    name = file.relative_to(root).as_posix()
    return make_row(name, image=image_at(file), source=root.name, licence="unknown", split=split)


def _split_folders(files: Sequence[Path]) -> tuple[list[str | None], list[tuple[str, ...]]]:
    """Return the splits of files, and the parts of their paths in the splits' folders; None without such folders."""
    splits = [SPLITS.get(file.parts[0].lower()) for file in files if len(file.parts) > 1]
    if len(splits) == len(files) and None not in splits:
        return splits, [file.parts[1:] for file in files]
    return [None] * len(files), [file.parts for file in files]


def _read_text(files: Sequence[Path], *, root: Path) -> Dataset:
    rows = []
    for file in files:
        name = file.relative_to(root).as_posix()
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                rows += text_rows(line, image_id=f"{name}:{number}", source=root.name)
    if not rows:
        raise ValueError(f"{root}: {', '.join(file.name for file in files[:5])} hold no text")
    return Dataset.from_list(rows, features=FEATURES)


def text_rows(line: str, *, image_id: str, source: str) -> list[Row]:
    """Return the rows of a line of text: one, more for a long line, none for an empty one."""
    words = line.split()
    rows = []
    for start in range(0, len(words), MAX_WORDS):
        row_id = f"{image_id}:{start // MAX_WORDS}" if start else image_id
        text = " ".join(words[start : start + MAX_WORDS])
        rows.append(make_row(row_id, captions=[text], source=source, licence="unknown"))
    return rows
