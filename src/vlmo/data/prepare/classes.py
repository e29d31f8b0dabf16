"""Images with classes: ImageNet (or every set of one folder a class), and ADE20K's scene parsing, a class a pixel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
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
from vlmo.data.schema import SEGMENT_FEATURES, RowValues, class_features, make_row

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
    has_validation = (root / "val").is_dir()
    if has_validation or (root / "train").is_dir():
        folders["train"] = find(root, "train", layout=_IMAGENET_LAYOUT)
    if has_validation:
        folders["validation"] = root / "val"
    classes = _class_folders(folders["train"])
    names = {split: _class_folders(folder) for split, folder in folders.items()}
    for split, folder in folders.items():
        if not names[split]:
            raise ValueError(
                f"{folder}: no folder of a class; --root must be a folder with {_IMAGENET_LAYOUT}"
            )
        if unknown := set(names[split]).difference(classes):
            raise ValueError(
                f"{folder}: class {min(unknown)!r} is none of the {len(classes)} classes of train"
            )

    def rows() -> Iterator[Row]:
        for split, folder in folders.items():
            for label, name in enumerate(classes):
                # A class of train may have no folder in val.
                files = sorted((folder / name).iterdir()) if name in names[split] else []
                for file in files:
                    if not file.name.startswith("."):
                        yield Row(split, _image_row(file, root=root, label=label))

    is_1k = len(classes) == 1_000 and all(re.fullmatch(r"n\d+", name) for name in classes)
    return SetOnDisk(
        rows,
        _IMAGENET_TERMS,
        features=class_features(classes),
        labels=_label_names(root, classes),
        unique=None,
        needs_caption=False,
        known_sizes={split: _IMAGENET_SIZES[split] for split in folders} if is_1k else {},
    )


def _image_row(file: Path, *, root: Path, label: int) -> RowValues:
    return make_row(
        f"imagenet/{file.relative_to(root).as_posix()}",
        image=image_at(file),
        source="imagenet",
        licence=_IMAGENET_TERMS,
        label=label,
    )


def _label_names(root: Path, classes: Sequence[str]) -> list[str]:
    """Return a different name of each class, as far as a file says one; else that of its folder."""
    words = _read_names(root)
    names = [words.get(folder, folder) for folder in classes]
    uses = Counter(names)
    # ImageNet has two classes "crane".
    return [
        name if uses[name] == 1 else f"{name} ({folder})"
        for name, folder in zip(names, classes, strict=True)
    ]


def _class_folders(folder: Path) -> list[str]:
    """Return the names of the folders but hidden ones, and those that `--out` has become or is about to become."""
    names = []
    for path in sorted(folder.iterdir()):
        is_output = path.suffix == ".unfinished" or (path / SUMMARY_FILE).is_file()
        if path.is_dir() and not path.name.startswith(".") and not is_output:
            names.append(path.name)
    return names


def _read_names(root: Path) -> dict[str, str]:
    """Return the names of classes by folder, as far as a file beside the folders gives them."""
    file = first_of(root, *_NAME_FILES)
    lines = file.read_text(encoding="utf-8-sig").splitlines() if file else []
    names = {}
    for line in filter(str.strip, lines):
        folder, *rest = line.split(maxsplit=1)
        if not rest:
            raise ValueError(
                f"{file}: expected the names of a folder and of its class in a line, found {folder!r}"
            )
        names[folder] = rest[0].strip()
    return names


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
        images = _by_stem(find(base, f"images/{folder}", layout=_ADE20K_LAYOUT), "*.jpg")
        masks = _by_stem(find(base, f"annotations/{folder}", layout=_ADE20K_LAYOUT), "*.png")
        names = sorted(images.keys() | masks.keys())
        pairs += [(split, name, images.get(name), masks.get(name)) for name in names]
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


def _by_stem(folder: Path, pattern: str) -> dict[str, FileItem]:
    return {file.stem: stamped(file) for file in folder.glob(pattern)}


def _pixel_classes(file: Path) -> list[str]:
    names = {}
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        number, *_ = line.split("\t")
        if number.strip().isdecimal():
            names[int(number)] = line.rpartition("\t")[2].strip()
    numbers = range(1, _NUM_CLASSES + 1)
    different = len(set(names.values()))
    if sorted(names) != list(numbers) or different != _NUM_CLASSES:
        raise ValueError(
            f"{file}: {len(names)} classes with {different} names; expected a heading, then "
            f"{_NUM_CLASSES} lines of fields with tabs between: first the number, last the name"
        )
    return [names[number] for number in numbers]


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
        row = make_row(
            name,
            image=image_at(image[0]),
            source="ade20k",
            licence=_ADE20K_TERMS,
            mask=encode_image(Image.fromarray(renumbered), mask[0].name),
        )
        yield Row(split, row)
