"""Images with classes: ImageNet (or every set of one folder a class), and ADE20K's scene parsing, a class a pixel."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vlmo.data.decoding import decode_image, decode_mask, encode_image, image_at
from vlmo.data.prepare.parts import BadRow, Part, Row, SetOnDisk, chunked, find, first_of, require_folder
from vlmo.data.rows import SUMMARY_FILE
from vlmo.data.schema import SEGMENT_FEATURES, class_features, make_row

_TERMS = "ImageNet: research and education, not commercial; images belong to their owners"

_KNOWN_SIZES_1K = {"train": 1_281_167, "validation": 50_000}
_BASES = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation"}
_NAME_FILES = ("LOC_synset_mapping.txt", "imagenet_class_index.json", "words.txt", "classnames.txt")
_FOLDERS = (
    "train/ and val/ with a folder for each class (n01440764/, ...), or with these folders themselves; "
    f"{', '.join(_NAME_FILES)} beside them may name the classes"
)


def open_imagenet(root: Path) -> SetOnDisk:
    """Find one row an image; classes are the folders of the training split, by name; ValueError if there are none."""
    require_folder(root, layout=_FOLDERS)
    splits = _split_folders(root)
    found = {split: _class_folders(folder) for split, folder in splits.items()}
    classes = found["train"]
    for split, names in found.items():
        if not names:
            raise ValueError(f"{splits[split]}: no folder of a class in it; --root must be a folder with {_FOLDERS}")
        if unknown := set(names).difference(classes):
            raise ValueError(
                f"{splits[split]}: class {min(unknown)!r} is not among the {len(classes)} classes of train"
            )

    def rows() -> Iterator[Row]:
        for split, folder in splits.items():
            for name in found[split]:
                label = classes.index(name)
                with os.scandir(folder / name) as entries:
                    files = sorted(entry.name for entry in entries if not entry.name.startswith("."))
                for file in (folder / name / each for each in files):
                    image_id = f"imagenet/{file.relative_to(root).as_posix()}"
                    row = make_row(image_id, image=image_at(file), source="imagenet", licence=_TERMS, label=label)
                    yield Row(split, row)

    is_1k = len(classes) == 1_000 and all(name.startswith("n") and name[1:].isdigit() for name in classes)
    labels = _read_names(root)
    names = [labels.get(name, name) for name in classes]
    uses = Counter(names)
    return SetOnDisk(
        parts=chunked(rows),
        licence=_TERMS,
        features=class_features(classes),
        # ImageNet has two classes "crane".
        labels=[name if uses[name] == 1 else f"{name} ({folder})" for name, folder in zip(names, classes, strict=True)],
        unique=None,
        needs_caption=False,
        known_sizes={split: _KNOWN_SIZES_1K[split] for split in splits} if is_1k else {},
    )


def _split_folders(root: Path) -> dict[str, Path]:
    for base in _BASES:
        found = {split: root / base / name for name, split in _SPLIT_FOLDERS.items() if (root / base / name).is_dir()}
        if "train" in found:
            return found
        if found:
            raise ValueError(
                f"{root / base}: {', '.join(found)} but no train/; --root must be a folder with {_FOLDERS}"
            )
    return {"train": root}


def _class_folders(folder: Path) -> list[str]:
    """Return the names of the folders but hidden ones, and those that `--out` has become or is about to become."""
    paths = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(path.name for path in paths if path.suffix != ".unfinished" and not (path / SUMMARY_FILE).is_file())


def _read_names(root: Path) -> dict[str, str]:
    """Return names of classes by their folders, where a file tells them."""
    file = first_of(root, *_NAME_FILES)
    if file is None:
        return {}
    text = file.read_text(encoding="utf-8-sig")
    try:
        if file.suffix == ".json":
            return {str(folder): str(name) for folder, name in json.loads(text).values()}
        # A synset, then a space or tab, then its words.
        lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
        return {folder: name.strip() for folder, name in lines}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: expected a folder's and a class's name a line, or JSON such as "
            f'{{"0": ["n01440764", "tench"], ...}} ({error})'
        ) from error


# --------------------------------------------------------------------------------------------------------------- ADE20K

_ADE20K_TERMS = "annotations BSD-3-Clause (MIT CSAIL); images for non-commercial research and education"

_NUM_CLASSES = 150
_IGNORED = 255

_SPLITS = {"training": "train", "validation": "validation"}
_NAMES_FILE = "objectInfo150.txt"
_PART_ROWS = 256
"""Images of a part: their masks are read, numbered anew and packed again."""

_ADE20K_LAYOUT = (
    "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png (there, or in "
    "ADEChallengeData2016/)"
)


def open_ade20k(root: Path) -> SetOnDisk:
    """Find one row an image. Masks are stored with class n as n - 1, and 255 where the annotation has 0 (no class)."""
    base = find(root, "images", "ADEChallengeData2016/images", layout=_ADE20K_LAYOUT).parent
    parts = []
    for folder, split in _SPLITS.items():
        images, masks = (
            {file.stem: file for file in find(base, f"{name}/{folder}", layout=_ADE20K_LAYOUT).glob(f"*.{suffix}")}
            for name, suffix in (("images", "jpg"), ("annotations", "png"))
        )
        names = iter(sorted(images.keys() | masks.keys()))
        while chunk := list(itertools.islice(names, _PART_ROWS)):
            pairs = [(name, images.get(name), masks.get(name)) for name in chunk]
            stamps = [file.stat().st_mtime_ns for pair in pairs for file in pair[1:] if file]
            parts.append(Part(repr((split, pairs, stamps)), functools.partial(_masked, split=split, pairs=pairs)))
    file = first_of(base, _NAMES_FILE) or first_of(base.parent, _NAMES_FILE)
    return SetOnDisk(
        parts=parts,
        licence=_ADE20K_TERMS,
        known_sizes={"train": 20_210, "validation": 2_000},
        features=SEGMENT_FEATURES,
        labels=[str(number) for number in range(1, _NUM_CLASSES + 1)] if file is None else _class_names(file),
        needs_caption=False,
        notes=[] if file else [f"{_NAMES_FILE} is not there; classes are called by their numbers"],
    )


def _class_names(file: Path) -> list[str]:
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    found = {int(cells[0]): cells[-1].strip() for cells in lines if cells[0].strip().isdecimal()}
    if sorted(found) != list(range(1, _NUM_CLASSES + 1)) or len(set(found.values())) != _NUM_CLASSES:
        raise ValueError(
            f"{file}: {len(found)} classes with {len(set(found.values()))} names; expected a heading, then "
            f"{_NUM_CLASSES} lines of fields with tabs between: first the number, last the name"
        )
    return [found[number] for number in range(1, _NUM_CLASSES + 1)]


def _masked(*, split: str, pairs: list[tuple[str, Path | None, Path | None]]) -> Iterator[Row | BadRow]:
    for name, image, mask in pairs:
        try:
            if image is None or mask is None:
                raise ValueError(f"{'the image' if image is None else 'the annotation'} is missing")
            numbers = decode_mask(image_at(mask))
            width, height = decode_image(image_at(image)).size
            if numbers.shape != (height, width):
                size = f"{numbers.shape[1]} x {numbers.shape[0]}"
                raise ValueError(f"{mask}: {size} pixels, its image has {width} x {height}")
            if numbers.max() > _NUM_CLASSES:
                raise ValueError(f"{mask}: class {numbers.max()}; expected 0 (none) to {_NUM_CLASSES}")
        except ValueError as error:
            yield BadRow(split, name, str(error), path=str(image or mask))
            continue
        renumbered = np.where(numbers == 0, _IGNORED, numbers - np.uint8(1)).astype(np.uint8)
        cell = encode_image(Image.fromarray(renumbered), mask.name)
        yield Row(split, make_row(name, image=image_at(image), source="ade20k", licence=_ADE20K_TERMS, mask=cell))
