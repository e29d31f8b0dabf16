"""Arrow files as ViLT's and VLMo's published preparation wrote them. Their images are read in place, never copied."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features

from vlmo.data.decoding import range_path
from vlmo.data.prepare.parts import BadRow, Part, Record, Row, SetOnDisk, file_key
from vlmo.data.schema import FEATURES, QUESTION_FEATURES, REASONING_FEATURES

LICENCE = "the terms of the set that the Arrow files were made from"

_SIZES = {
    "coco_caption_karpathy": {"train": 113_287, "validation": 5_000, "test": 5_000},
    "f30k_caption_karpathy": {"train": 29_000, "validation": 1_014, "test": 1_000},
    "nlvr2": {"train": 86_373, "validation": 6_982, "test": 6_967},
}
"""Published sizes; the sets of VQA lost the questions without a known answer."""

_SPLITS = {"train": "train", "restval": "train", "trainable_val": "train", "dev": "validation", "test-dev": "test_dev"}
_SPLITS |= {"val": "validation", "rest_val": "validation", "test": "test", "test1": "test"}
_NAME = re.compile(rf"(?P<set>.+?)(?:_(?P<split>{'|'.join(sorted(_SPLITS, key=len, reverse=True))}))?(?:_\d+)?")
"""Such as `vqav2_trainable_val`, `conceptual_caption_train_12`, `sbu_3` and `vg`."""

_QUESTION_COLUMNS = ("questions", "question_id", "answers", "answer_labels", "answer_scores", "image_id")
_SENTENCE_COLUMNS = ("questions", "answers", "identifier")
_KINDS: dict[str, tuple[dict[str, str], tuple[str, ...], Features]] = {
    "captions": ({"image": "image"}, ("caption", "image_id"), FEATURES),
    "questions": ({"image": "image"}, _QUESTION_COLUMNS, QUESTION_FEATURES),
    "sentences": ({"image": "image_0", "second_image": "image_1"}, _SENTENCE_COLUMNS, REASONING_FEATURES),
}
"""The table layouts of the published preparation: our columns of images and theirs, their others, and our features."""

_PART_IMAGES = 256
_LABELS = {"true": 1, "false": 0}


def open_set(root: Path) -> SetOnDisk:
    """Find the rows of one set; a row an image with captions, a question, or a sentence about two images.

    `root` is a folder that holds the files of one set, or FOLDER/SET, such as `arrows/vqav2`, where it holds several.
    ValueError for files that are missing, of several sets, damaged, or of columns that no published preparation writes.
    """
    folder = root if root.is_dir() else root.parent
    sets: dict[str, dict[Path, str | None]] = {}
    for file in sorted(folder.glob("*.arrow")):
        found = _NAME.fullmatch(file.stem)
        assert found is not None  # it matches whatever is not empty
        sets.setdefault(found["set"], {})[file] = found["split"]
    if not sets:
        raise ValueError(f"{root}: no .arrow file; --root must be a folder with files such as vqav2_train.arrow")
    name = next(iter(sets)) if folder == root and len(sets) == 1 else root.name
    if name not in sets or (folder == root and len(sets) > 1):
        raise ValueError(
            f"{root}: {folder} holds the sets {', '.join(sets)}; name one of them, such as --root {folder / min(sets)}"
        )
    tables = {file: _open(file)[1] for file in sets[name]}
    columns = {file: table.schema.names for file, table in tables.items()}
    needed = {kind: (*images.values(), *others) for kind, (images, others, _) in _KINDS.items()}
    fits = (kind for kind, names in needed.items() if all({*names}.issubset(found) for found in columns.values()))
    kind = next(fits, None)
    if kind is None:
        raise ValueError(
            "columns that no published preparation writes. Expected in each file "
            f"{' or '.join(map(', '.join, needed.values()))}. Found "
            + "; ".join(f"{file.name}: {', '.join(names)}" for file, names in columns.items())
        )
    labels, notes = _answers(tables) if kind == "questions" else (None, [])
    parts: dict[str, list[Part]] = {}
    for file, given in sets[name].items():
        if given == "val" and not {"trainable_val", "rest_val"}.isdisjoint(sets[name].values()):
            notes.append(f"{file.name} is left out: its rows are in the files of its two halves")
            continue
        split = "test_std" if (name, given) == ("vqav2", "test") else _SPLITS[given or "train"]
        for batch in range(tables[file].num_record_batches):
            for first in range(0, tables[file].get_batch(batch).num_rows, _PART_IMAGES):
                rows = functools.partial(_rows, file, batch, first, kind=kind, split=split, name=name)
                parts.setdefault(split, []).append(Part(file_key(file, batch, first, split, name), rows))
    return SetOnDisk(
        parts=[part for of_split in parts.values() for part in of_split],
        licence=LICENCE,
        features=_KINDS[kind][2],
        labels=labels,
        unique="question_id" if kind == "questions" else "image_id",
        needs_caption=kind != "questions",
        known_sizes={split: size for split, size in _SIZES.get(name, {}).items() if split in parts},
        notes=[*notes, "images stay in the Arrow files: keep those where they are"],
    )


def _open(file: Path) -> tuple[pa.Buffer, pa.ipc.RecordBatchFileReader]:
    """Map an Arrow file into memory: only what is looked at is read from the disk."""
    try:
        with pa.memory_map(str(file)) as source:
            memory = source.read_buffer()
        return memory, pa.ipc.open_file(memory)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file}: not an Arrow file, or cut off ({error})") from error


def _image_cells(file: Path, memory: pa.Buffer, column: pa.Array) -> list[dict[str, Any] | None]:
    """Return the range of each image of a column in the file, unread; ValueError unless it holds plain bytes."""
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise ValueError(f"{file}: a column of images holds {column.type}; expected their bytes (binary)")
    if not len(column):
        return []
    _, offsets, data = column.buffers()
    start = 0 if data is None else data.address - memory.address
    if data is not None and not 0 <= start <= memory.size - data.size:
        raise ValueError(f"{file}: its images are compressed by Arrow; write the file without compression")
    kind = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    ends = np.frombuffer(offsets, dtype=kind)[column.offset : column.offset + len(column) + 1].tolist()
    return [
        {"bytes": None, "path": range_path(file, start=start + first, length=end - first)} if valid else None
        for valid, first, end in zip(column.is_valid().to_pylist(), ends[:-1], ends[1:], strict=True)
    ]


def _rows(file: Path, batch: int, first: int, *, kind: str, split: str, name: str) -> Iterator[Record]:
    """Yield rows of some images of a file: those from `first` on of one batch."""
    (image_columns, names, _), (memory, reader) = _KINDS[kind], _open(file)
    rows = reader.get_batch(batch).slice(first, _PART_IMAGES)
    cells = {ours: _image_cells(file, memory, rows.column(theirs)) for ours, theirs in image_columns.items()}
    for number, record in enumerate(rows.select(list(names)).to_pylist()):
        images = {ours: column[number] for ours, column in cells.items()}
        try:
            found = _RECORDS[kind](record)
        except (TypeError, ValueError) as error:
            where = f"{file.stem}/{batch}/{first + number}"
            yield BadRow(split, where, f"batch/row {where}: {error}", path=str(file))
            continue
        for values in found:
            yield Row(split, {**images, "source": name, "licence": LICENCE, **values})


def _caption_rows(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"captions": image["caption"], "image_id": str(image["image_id"])}]


def _question_rows(image: dict[str, Any]) -> list[dict[str, Any]]:
    rows, count = [], len(image["questions"])
    labels, scores = (image[name] or [[]] * count for name in ("answer_labels", "answer_scores"))
    for question, number, numbers, targets in zip(
        image["questions"], image["question_id"], labels, scores, strict=True
    ):
        if len(numbers) != len(targets) or min(numbers, default=0) < 0 or not all(0 <= score <= 1 for score in targets):
            raise ValueError(
                f"question {number} has the answers {list(numbers)} with the scores {list(targets)}; expected as many "
                "scores from 0 to 1 as numbers from 0 up"
            )
        row = {"captions": [], "image_id": f"coco/{image['image_id']}", "question_type": "", "answer_type": ""}
        # The published files keep no annotator's words: only numbers and scores of the answers in the list.
        row |= {"question": question, "question_id": str(number), "answers": []}
        rows.append(row | {"answer_labels": numbers, "answer_scores": targets})
    return rows


def _reasoning_rows(pair: dict[str, Any]) -> list[dict[str, Any]]:
    rows, identifier = [], str(pair["identifier"])
    for number, (sentence, answer) in enumerate(zip(pair["questions"], pair["answers"], strict=True)):
        if (label := _LABELS.get(str(answer).lower())) is None:
            raise ValueError(f"{identifier}: answer {answer!r}; expected True or False")
        # The sentence's own number was not kept; within one set of images the sentence itself tells it apart.
        group = f"{identifier.rpartition('-')[0]}-{hashlib.sha256(sentence.encode()).hexdigest()[:8]}"
        row = {"captions": [sentence], "image_id": f"{identifier}/{number}"}
        rows.append(row | {"label": label, "sentence_group": group})
    return rows


_RECORDS = {"captions": _caption_rows, "questions": _question_rows, "sentences": _reasoning_rows}
"""Functions that make rows, without images, of a record of each kind; an error quarantines it."""


def _answers(tables: dict[Path, pa.ipc.RecordBatchFileReader]) -> tuple[list[str], list[str]]:
    """Return the name of each answer's number, from the rows that have both, and notes about unused numbers."""
    names: dict[int, str] = {}
    for file, table in tables.items():
        for batch in map(table.get_batch, range(table.num_record_batches)):
            texts, numbers = _flat(batch.column("answers")), _flat(batch.column("answer_labels"))
            if len(texts) != len(numbers):
                raise ValueError(f"{file}: {len(texts)} answers with {len(numbers)} numbers; expected as many")
            found, rows = np.unique(numbers.to_numpy(zero_copy_only=False), return_index=True)
            for number, text in zip(found.tolist(), texts.take(pa.array(rows)).to_pylist(), strict=True):
                # The question of a number below 0 is quarantined.
                if number >= 0 and names.setdefault(int(number), text) != text:
                    raise ValueError(
                        f"{file}: answer {number} is {text!r}, in another file {names[number]!r}; the files are "
                        "of different preparations"
                    )
    if not names:
        raise ValueError(f"{', '.join(file.name for file in tables)}: no answers; a file for training is needed")
    missing = [number for number in range(max(names)) if number not in names]
    notes = [f"{len(missing)} numbers of answers occur in no row; they are called #NUMBER"] if missing else []
    return [names.get(number, f"#{number}") for number in range(max(names) + 1)], notes


def _flat(column: pa.Array) -> pa.Array:
    while not pa.types.is_null(column.type) and pa.types.is_nested(column.type):
        column = column.flatten()
    return column
