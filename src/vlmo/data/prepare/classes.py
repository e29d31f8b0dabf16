"""Images with classes: ImageNet (or every set of one folder a class), and ADE20K's scene parsing, a class a pixel."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vlmo.data.decoding import decode_image, decode_mask, encode_image, image_at
from vlmo.data.prepare.preparer import (
    BadRow,
    FileItem,
    Record,
    Row,
    SetOnDisk,
    find,
    first_of,
    stamped,
)
from vlmo.data.rows import SUMMARY_FILE
from vlmo.data.schema import SEGMENT_FEATURES, class_features, make_row

_IMAGENET_TERMS = "ImageNet: research and education, not commercial; images belong to their owners"
_IMAGENET_SIZES = {"train": 1_281_167, "validation": 50_000}
_NAME_FILES = ("LOC_synset_mapping.txt", "words.txt", "classnames.txt")
_IMAGENET_LAYOUT = (
    "train/ and val/ with a folder for each class (n01440764/, ...), or with these folders themselves; "
    f"{', '.join(_NAME_FILES)} beside them may name the classes"
)


def open_imagenet(root: Path) -> SetOnDisk:
    """Find one row an image; classes are the folders of the training split, by name; ValueError if there are none."""
    find(root, ".", layout=_IMAGENET_LAYOUT)
    folders = {"train": root}
    if (root / "train").is_dir() or (root / "val").is_dir():
        folders = {"train": find(root, "train", layout=_IMAGENET_LAYOUT)}
        folders |= {"validation": root / "val"} if (root / "val").is_dir() else {}
    found = {split: _class_folders(folder) for split, folder in folders.items()}
    classes = found["train"]
    for split, names in found.items():
        if not names:
            raise ValueError(
                f"{folders[split]}: no folder of a class; --root must be a folder with {_IMAGENET_LAYOUT}"
            )
        if unknown := set(names).difference(classes):
            raise ValueError(
                f"{folders[split]}: class {min(unknown)!r} is none of the {len(classes)} classes of train"
            )

    def rows() -> Iterator[Row]:
        for split, folder in folders.items():
            for name in found[split]:
                label = classes.index(name)
                with os.scandir(folder / name) as entries:
                    files = sorted(
                        entry.name for entry in entries if not entry.name.startswith(".")
                    )
                for file in (folder / name / each for each in files):
                    image_id = f"imagenet/{file.relative_to(root).as_posix()}"
                    image = image_at(file)
                    licence = _IMAGENET_TERMS
                    yield Row(
                        split,
                        make_row(
                            image_id, image=image, source="imagenet", licence=licence, label=label
                        ),
                    )

    is_1k = len(classes) == 1_000 and all(
        name.startswith("n") and name[1:].isdigit() for name in classes
    )
    known = _read_names(root)
    labels = [known.get(name, name) for name in classes]
    uses = Counter(labels)
    return SetOnDisk(
        rows,
        _IMAGENET_TERMS,
        features=class_features(classes),
        # ImageNet has two classes "crane".
        labels=[
            each if uses[each] == 1 else f"{each} ({name})"
            for each, name in zip(labels, classes, strict=True)
        ],
        unique=None,
        needs_caption=False,
        known_sizes={split: _IMAGENET_SIZES[split] for split in folders} if is_1k else {},
    )


def _class_folders(folder: Path) -> list[str]:
    """Return the names of the folders but hidden ones, and those that `--out` has become or is about to become."""
    paths = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(
        path.name
        for path in paths
        if path.suffix != ".unfinished" and not (path / SUMMARY_FILE).is_file()
    )


def _read_names(root: Path) -> dict[str, str]:
    if (file := first_of(root, *_NAME_FILES)) is None:
        return {}
    lines = [
        line.split(maxsplit=1)
        for line in file.read_text(encoding="utf-8-sig").splitlines()
        if line.strip()
    ]
    if short := [words for words in lines if len(words) < 2]:
        raise ValueError(
            f"{file}: expected the names of a folder and of its class in a line, found {short[0][0]!r}"
        )
    return {folder: name.strip() for folder, name in lines}


# --------------------------------------------------------------------------------------------------------------- ADE20K

_ADE20K_TERMS = (
    "annotations BSD-3-Clause (MIT CSAIL); images for non-commercial research and education"
)
_NUM_CLASSES = 150
_IGNORED = 255
_NAMES_FILE = "objectInfo150.txt"
_ADE20K_LAYOUT = (
    f"images/{{training,validation}}/*.jpg, annotations/{{training,validation}}/*.png and {_NAMES_FILE} (there, or in "
    "ADEChallengeData2016/)"
)

Pair = tuple[str, str, FileItem | None, FileItem | None]
"""Split, name, image and annotation, as far as they are there."""


def open_ade20k(root: Path) -> SetOnDisk:
    """Find one row an image. Masks are stored with class n as n - 1, and 255 where the annotation has 0 (no class)."""
    base = find(root, "images", "ADEChallengeData2016/images", layout=_ADE20K_LAYOUT).parent
    pairs: list[Pair] = []
    for folder, split in {"training": "train", "validation": "validation"}.items():
        images, masks = (
            {
                file.stem: stamped(file)
                for file in find(base, each, layout=_ADE20K_LAYOUT).glob(f"*.{suffix}")
            }
            for each, suffix in ((f"images/{folder}", "jpg"), (f"annotations/{folder}", "png"))
        )
        pairs += [
            (split, name, images.get(name), masks.get(name))
            for name in sorted(images.keys() | masks.keys())
        ]
    return SetOnDisk(
        lambda: pairs,
        _ADE20K_TERMS,
        read=_read_masks,
        chunk=256,
        known_sizes={"train": 20_210, "validation": 2_000},
        features=SEGMENT_FEATURES,
        labels=_pixel_classes(find(base, _NAMES_FILE, layout=_ADE20K_LAYOUT)),
        needs_caption=False,
    )


def _pixel_classes(file: Path) -> list[str]:
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    found = {int(cells[0]): cells[-1].strip() for cells in lines if cells[0].strip().isdecimal()}
    if (
        sorted(found) != list(range(1, _NUM_CLASSES + 1))
        or len(set(found.values())) != _NUM_CLASSES
    ):
        raise ValueError(
            f"{file}: {len(found)} classes with {len(set(found.values()))} names; expected a heading, then "
            f"{_NUM_CLASSES} lines of fields with tabs between: first the number, last the name"
        )
    return [found[number] for number in sorted(found)]


def _read_masks(pairs: list[Pair]) -> Iterator[Record]:
    for split, name, image, mask in pairs:
        try:
            if image is None or mask is None:
                raise ValueError(f"{'the image' if image is None else 'the annotation'} is missing")
            numbers = decode_mask(image_at(mask[0]))
            width, height = decode_image(image_at(image[0])).size
            if numbers.shape != (height, width):
                size = f"{numbers.shape[1]} x {numbers.shape[0]}"
                raise ValueError(f"{mask[0]}: {size} pixels, its image has {width} x {height}")
            if numbers.max() > _NUM_CLASSES:
                raise ValueError(
                    f"{mask[0]}: class {numbers.max()}; expected 0 (none) to {_NUM_CLASSES}"
                )
        except ValueError as error:
            yield BadRow(split, name, str(error), path=str(image[0] if image else mask and mask[0]))
            continue
        renumbered = np.where(numbers == 0, _IGNORED, numbers - np.uint8(1)).astype(np.uint8)
        cell = encode_image(Image.fromarray(renumbered), mask[0].name)
        licence = _ADE20K_TERMS
        yield Row(
            split,
            make_row(name, image=image_at(image[0]), source="ade20k", licence=licence, mask=cell),
        )
