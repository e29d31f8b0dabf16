"""ImageNet, 1K or 22K, and every other set of images in one folder a class."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vlmo.data.prepare.parts import Row, SetOnDisk, chunked, count_chunks, first_of, image_at, require_folder
from vlmo.data.rows import SUMMARY_FILE
from vlmo.data.schema import class_features, make_row

NAME = "imagenet"
LICENCE = "ImageNet: research and education, not commercial; images belong to their owners"

_KNOWN_SIZES_1K = {"train": 1_281_167, "validation": 50_000}
_BASES = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation"}
_NAME_FILES = ("LOC_synset_mapping.txt", "imagenet_class_index.json", "words.txt", "classnames.txt")
_LAYOUT = (
    "train/ and val/ with a folder for each class (n01440764/, ...), or with these folders themselves; "
    f"{', '.join(_NAME_FILES)} beside them may name the classes"
)


def open_set(root: Path) -> SetOnDisk:
    """Find one row an image; classes are the folders of the training split, by name; ValueError if there are none."""
    require_folder(root, layout=_LAYOUT)
    splits = _split_folders(root)
    found = {split: _class_folders(folder) for split, folder in splits.items()}
    classes = found["train"]
    if not classes:
        raise ValueError(f"{splits['train']}: no folder in it; --root must be a folder with {_LAYOUT}")
    for split, names in found.items():
        if not names:
            raise ValueError(f"{splits[split]}: no folder for any class in it; sort its images into such folders")
        if unknown := set(names).difference(classes):
            raise ValueError(
                f"{splits[split]}: class {min(unknown)!r} is not among the {len(classes)} classes of train ({split})"
            )
    is_1k = len(classes) == 1_000 and all(name.startswith("n") and name[1:].isdigit() for name in classes)
    known = {split: _KNOWN_SIZES_1K[split] for split in splits} if is_1k else {}
    labels = _read_names(root)
    names = [labels.get(name, name) for name in classes]
    uses = Counter(names)
    return SetOnDisk(
        parts=chunked(_rows(splits, found, root=root)),
        licence=LICENCE,
        features=class_features(classes),
        # ImageNet has two classes "crane".
        labels=[name if uses[name] == 1 else f"{name} ({folder})" for name, folder in zip(names, classes, strict=True)],
        unique=None,
        needs_caption=False,
        num_parts=count_chunks(
            file for split, names in found.items() for name in names for file in _files(splits[split] / name)
        ),
        known_sizes=known,
    )


def _split_folders(root: Path) -> dict[str, Path]:
    for base in _BASES:
        found = {split: root / base / name for name, split in _SPLIT_FOLDERS.items() if (root / base / name).is_dir()}
        if "train" in found:
            return found
        if found:
            raise ValueError(f"{root / base}: {', '.join(found)} but no train/; --root must be a folder with {_LAYOUT}")
    return {"train": root}


def _class_folders(folder: Path) -> list[str]:
    """Return the names of the folders but hidden ones, and those that `--out` has become or is about to become."""
    with os.scandir(folder) as entries:
        paths = [Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(path.name for path in paths if path.suffix != ".unfinished" and not (path / SUMMARY_FILE).is_file())


def _rows(splits: dict[str, Path], present: dict[str, list[str]], *, root: Path) -> Iterator[Row]:
    numbers = {name: number for number, name in enumerate(present["train"])}
    for split, folder in splits.items():
        for name in present[split]:
            for file in _files(folder / name):
                image_id, cell = f"{NAME}/{file.relative_to(root).as_posix()}", image_at(file)
                row = make_row(image_id, image=cell, source=NAME, licence=LICENCE, label=numbers[name])
                yield Row(split, row)


def _files(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if not entry.name.startswith("."))


def _read_names(root: Path) -> dict[str, str]:
    """Return names of classes by their folders, where a file tells them."""
    file = first_of(root, *_NAME_FILES)
    if file is None:
        return {}
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".json":
        try:
            return {str(folder): str(name) for folder, name in json.loads(text).values()}
        except (ValueError, TypeError, AttributeError) as error:
            expected = '{"0": ["n01440764", "tench"], ...}'
            raise ValueError(f"{file}: expected JSON such as {expected} ({error})") from error
    names = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split(maxsplit=1)  # a synset, then a space or tab, then its words
        if len(words) == 1:
            raise ValueError(f"{file}:{number}: expected a folder's name and a class's name, found {line!r}")
        if words:
            names[words[0]] = words[1].strip()
    return names
