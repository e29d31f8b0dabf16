"""ImageNet, 1K or 22K, and every other set of images in one folder a class."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vlmo.data.prepare.parts import Row, SetOnDisk, chunked, first_of, image_at, require_folder
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
    for split, names in found.items():
        if not names:
            raise ValueError(f"{splits[split]}: no folder of a class in it; --root must be a folder with {_LAYOUT}")
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
                    image_id = f"{NAME}/{file.relative_to(root).as_posix()}"
                    row = make_row(image_id, image=image_at(file), source=NAME, licence=LICENCE, label=label)
                    yield Row(split, row)

    is_1k = len(classes) == 1_000 and all(name.startswith("n") and name[1:].isdigit() for name in classes)
    labels = _read_names(root)
    names = [labels.get(name, name) for name in classes]
    uses = Counter(names)
    return SetOnDisk(
        parts=chunked(rows),
        licence=LICENCE,
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
            raise ValueError(f"{root / base}: {', '.join(found)} but no train/; --root must be a folder with {_LAYOUT}")
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
