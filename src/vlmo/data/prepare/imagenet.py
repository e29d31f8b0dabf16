"""ImageNet, 1K or 22K, and every other set of pictures in one folder a class."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vlmo.data.prepare.parts import Row, SetOnDisk, chunked, image_at
from vlmo.data.prepare.summary import SUMMARY_FILE
from vlmo.data.schema import class_features

NAME = "imagenet"
LICENCE = "ImageNet: research and education, not commercial; pictures belong to their owners"
KNOWN_SIZES: dict[str, int] = {}

_KNOWN_SIZES_1K = {"train": 1_281_167, "validation": 50_000}
_NUM_CLASSES_1K = 1_000
_BASES = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation"}
_NAME_FILES = ("LOC_synset_mapping.txt", "imagenet_class_index.json", "words.txt", "classnames.txt")
_LAYOUT = (
    "train/ and val/ with a folder for each class (n01440764/, ...), or with these folders themselves; "
    f"{', '.join(_NAME_FILES)} beside them may name the classes"
)


def open_set(root: Path) -> SetOnDisk:
    """A row a picture; classes are the folders of the training split, in the order of their names.

    Raises:
        ValueError: There is no such folder, no training split in it, or no class in that.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; --root must be a folder with {_LAYOUT}")
    splits = _split_folders(root)
    classes = _class_folders(splits["train"])
    if not classes:
        raise ValueError(f"{splits['train']}: no folder in it; --root must be a folder with {_LAYOUT}")
    _check_classes(splits, classes)
    is_1k = len(classes) == _NUM_CLASSES_1K and all(_is_synset(name) for name in classes)
    return SetOnDisk(
        parts=chunked(_rows(splits, classes, root=root)),
        features=class_features(classes),
        labels=_labels(classes, root=root),
        unique=None,
        needs_caption=False,
        num_rows=sum(_KNOWN_SIZES_1K[split] for split in splits) if is_1k else None,
        known_sizes={split: _KNOWN_SIZES_1K[split] for split in splits} if is_1k else {},
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
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not _is_other(Path(entry)))


def _is_other(folder: Path) -> bool:
    """Whether it holds no class: it is hidden, or what `--out` has become or is about to become."""
    return folder.name.startswith(".") or folder.suffix == ".unfinished" or (folder / SUMMARY_FILE).is_file()


def _check_classes(splits: dict[str, Path], classes: list[str]) -> None:
    for split, folder in splits.items():
        found = _class_folders(folder)
        if not found:
            raise ValueError(f"{folder}: no folder for any class in it; sort its pictures into such folders")
        if unknown := set(found).difference(classes):
            raise ValueError(
                f"{folder}: class {min(unknown)!r} is not among the {len(classes)} classes of train ({split})"
            )


def _is_synset(name: str) -> bool:
    return name.startswith("n") and name[1:].isdigit()


def _rows(splits: dict[str, Path], classes: list[str], *, root: Path) -> Iterator[Row]:
    for split, folder in splits.items():
        present = set(_class_folders(folder))
        for label, name in enumerate(classes):
            for file in _files(folder / name) if name in present else ():
                yield Row(
                    split,
                    {
                        "image": image_at(file),
                        "captions": [],
                        "image_id": f"{NAME}/{file.relative_to(root).as_posix()}",
                        "source": NAME,
                        "licence": LICENCE,
                        "label": label,
                    },
                )


def _files(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if not entry.name.startswith("."))


def _labels(classes: list[str], *, root: Path) -> list[str]:
    """Names for people where a file tells them, otherwise those of the folders. No two are equal."""
    known = _known_names(root)
    names = [known.get(name, name) for name in classes]
    uses = Counter(names)
    # ImageNet has two classes "crane".
    return [name if uses[name] == 1 else f"{name} ({folder})" for name, folder in zip(names, classes, strict=True)]


def _known_names(root: Path) -> dict[str, str]:
    file = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    if file is None:
        return {}
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".json":
        return _json_names(text, file=file)
    names = {}
    for number, line in enumerate(text.splitlines(), start=1):
        # A synset, then a space or tab, then its words.
        folder, *words = line.split(maxsplit=1)[:2] if line.strip() else ("", "")
        if folder and not words:
            raise ValueError(f"{file}:{number}: expected a folder's name and a class's name, found {line!r}")
        if folder:
            names[folder] = words[0].strip()
    return names


def _json_names(text: str, *, file: Path) -> dict[str, str]:
    try:
        return {str(folder): str(name) for folder, name in json.loads(text).values()}
    except (ValueError, TypeError, AttributeError) as error:
        expected = '{"0": ["n01440764", "tench"], ...}'
        raise ValueError(f"{file}: expected JSON such as {expected} ({error})") from error
