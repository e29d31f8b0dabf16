"""Tasks over images and texts: VQA 2.0 (questions about COCO's images) and NLVR2 (sentences about two photographs)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlmo.data.decoding import image_at
from vlmo.data.prepare.captions import coco_image_id
from vlmo.data.prepare.preparer import (
    BadRow,
    Record,
    Row,
    SetOnDisk,
    find,
    first_of,
    read_records,
    text_of,
)
from vlmo.data.schema import QUESTION_FEATURES, REASONING_FEATURES, hash_share, make_row
from vlmo.processing.answers import MIN_COUNT, answer_list, soft_targets

HELD_OUT_IMAGES = 1000
"""Images of val2014 that are kept for validation, as many as in the published preparation. Which ones was left to
chance there; here a hash of the image's number decides. Of fewer than 2,000 images, half are kept."""

_VQA_TERMS = "questions and answers CC-BY-4.0 (VQA Consortium); images under the Flickr terms of their owners (COCO)"
_LABELED = ("train2014", "val2014")
# Questions of test-dev are a part of those of test, about the same images.
_TEST_IMAGES = "test2015"
_QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
_TESTS = {"test-dev2015": "test_dev", "test2015": "test_std"}
_TEST_SIZES = {"test-dev2015": 107_394, "test2015": 447_793}
"""The number of questions that are trained on depends on the images that are held out."""
_KNOWN_ANSWERS = 3_129
_ANNOTATORS = 10
_VQA_LAYOUT = (
    "v2_OpenEnded_mscoco_{train2014,val2014}_questions.json, v2_mscoco_{train2014,val2014}_annotations.json and the "
    "images in train2014/ and val2014/; the same of test2015 and test-dev2015 may be there"
)


class _Annotation(NamedTuple):
    image: int
    question_type: str
    answer_type: str
    majority: str
    answers: tuple[str, ...]


_UNKNOWN = _Annotation(0, "", "", "", ())


@dataclass(frozen=True)
class _Questions:
    """Question files by part, and what their rows are made with.

    Attributes:
        annotations: Annotations of both labeled parts, by the number of the question.
        held_out: Images of val2014 whose questions are for validation.
        labels: Numbers of the answers.
    """

    root: Path
    files: dict[str, Path]
    annotations: dict[int, _Annotation]
    held_out: frozenset[int]
    labels: dict[str, int]

    def __call__(self) -> Iterator[Record]:
        """Read the records of all parts."""
        for part, file in self.files.items():
            for number, image, question in read_records(file, _read_question, key="questions"):
                record = self._record(part, number, image, question)
                if record is not None:
                    yield record

    def _record(self, part: str, number: int, image: int, question: str) -> Record | None:
        """Return the record of a question; None for one to train on that has none of the answers."""
        is_test = part in _TESTS
        # An image has one number in all of COCO.
        split = _TESTS.get(part) or ("validation" if image in self.held_out else "train")
        annotation = _UNKNOWN if is_test else self.annotations.get(number, _UNKNOWN)
        annotators = len(annotation.answers)
        if not is_test and (annotation.image, annotators) != (image, _ANNOTATORS):
            fault = f"image {annotation.image}, {annotators} answers" if annotators else "none"
            reason = f"needs an annotation of its image with {_ANNOTATORS} answers: {fault}"
            return BadRow(split, coco_image_id(image), f"question {number} {reason}")
        labels, scores = soft_targets(annotation.answers, numbers=self.labels)
        if split == "train" and not labels:
            return None
        folder = _TEST_IMAGES if is_test else part
        row = make_row(
            coco_image_id(image),
            image=image_at(self.root / folder / f"COCO_{folder}_{image:012}.jpg"),
            source="vqav2",
            licence=_VQA_TERMS,
            question=question,
            question_id=str(number),
            question_type=annotation.question_type,
            answer_type=annotation.answer_type,
            answers=list(annotation.answers),
            answer_labels=labels,
            answer_scores=scores,
        )
        return Row(split, row)

    @property
    def num_left_out(self) -> int:
        """Questions to train on that have none of the answers."""
        unlabeled = 0
        for annotation in self.annotations.values():
            is_trained = annotation.image not in self.held_out
            unlabeled += is_trained and self.labels.keys().isdisjoint(annotation.answers)
        return unlabeled


def open_vqav2(root: Path) -> SetOnDisk:
    """Find a row a question; those of val2014 are for training, but for held-out images. ValueError without answers."""
    parts = [part for part in _TESTS if first_of(root, _QUESTIONS.format(part))]
    files = {
        part: find(root, _QUESTIONS.format(part), layout=_VQA_LAYOUT)
        for part in (*_LABELED, *parts)
    }
    for folder in (*_LABELED, *([_TEST_IMAGES] if parts else [])):
        find(root, folder, layout=_VQA_LAYOUT)
    trained, validated = (_read_annotations(root, part) for part in _LABELED)
    annotations = trained | validated
    # Answers of both parts, as both are trained on in the published code.
    answers = answer_list(annotation.majority for annotation in annotations.values())
    if not answers:
        raise ValueError(
            f"{root}: no answer is given to {MIN_COUNT} questions; are these the whole annotations?"
        )
    images = {annotation.image for annotation in validated.values()}
    # The published code holds out images, not questions: no image is on both sides.
    ranked = sorted(images, key=lambda image: hash_share(coco_image_id(image)))
    held_out = frozenset(ranked[: min(HELD_OUT_IMAGES, len(ranked) // 2)])
    labels = {answer: number for number, answer in enumerate(answers)}
    questions = _Questions(root, files, annotations, held_out, labels)
    return SetOnDisk(
        questions,
        _VQA_TERMS,
        features=QUESTION_FEATURES,
        labels=answers,
        unique="question_id",
        needs_caption=False,
        known_sizes={_TESTS[part]: _TEST_SIZES[part] for part in parts},
        notes=[
            f"{len(answers):,} answers are given to {MIN_COUNT} questions or more; whole: {_KNOWN_ANSWERS:,}",
            f"{questions.num_left_out:,} questions with none of these answers are left out of training",
            f"the questions about {len(held_out):,} images of val2014 are for validation, others for training",
        ],
    )


def _read_question(record: dict[str, Any]) -> tuple[int, int, str]:
    return int(record["question_id"]), int(record["image_id"]), text_of(record["question"])


def _read_annotations(root: Path, part: str) -> dict[int, _Annotation]:
    def read(record: dict[str, Any]) -> tuple[int, _Annotation]:
        # The same few words come back millions of times; interned, they are kept once.
        annotation = _Annotation(
            int(record["image_id"]),
            question_type=sys.intern(record["question_type"]),
            answer_type=sys.intern(record["answer_type"]),
            majority=sys.intern(record["multiple_choice_answer"]),
            answers=tuple(sys.intern(answer["answer"]) for answer in record["answers"]),
        )
        return int(record["question_id"]), annotation

    file = find(root, f"v2_mscoco_{part}_annotations.json", layout=_VQA_LAYOUT)
    return dict(read_records(file, read, key="annotations"))


# ---------------------------------------------------------------------------------------------------------------- NLVR2

_NLVR2_TERMS = (
    "sentences CC-BY-4.0 (NLVR2); images of the web under the terms of their owners, for research"
)
_NLVR2_SIZES = {"train": 86_373, "validation": 6_982, "test": 6_967}
_SPLITS = {"train": "train", "dev": "validation", "test1": "test"}
_LABELS = {"none": -1, "true": 1, "false": 0}
_NLVR2_LAYOUT = (
    "train.json, dev.json and test1.json (there, in data/ or in nlvr2/data/), and the images in images/train/, dev/ "
    "and test1/ (or images/dev/ and images/test1/)"
)


def open_nlvr2(root: Path) -> SetOnDisk:
    """Find one row a sentence; its images are the left and the right one."""
    files = {}
    for part in _SPLITS:
        name = f"{part}.json"
        if file := first_of(root, name, f"data/{name}", f"nlvr2/data/{name}"):
            files[part] = file
    if not files:
        find(root, "train.json", "dev.json", "test1.json", layout=_NLVR2_LAYOUT)
    folders = {part: find(root, f"images/{part}", part, layout=_NLVR2_LAYOUT) for part in files}

    def rows() -> Iterator[Record]:
        for part, file in files.items():
            for number, line in enumerate(file.read_bytes().splitlines(), start=1):
                if line.strip():
                    yield _sentence(line, where=f"{file}:{number}", part=part, folder=folders[part])

    return SetOnDisk(
        rows,
        _NLVR2_TERMS,
        features=REASONING_FEATURES,
        known_sizes={_SPLITS[part]: _NLVR2_SIZES[_SPLITS[part]] for part in files},
        notes=[f"{part}.json is not there" for part in _SPLITS if part not in files],
    )


def _sentence(line: bytes, *, where: str, part: str, folder: Path) -> Record:
    try:
        record = json.loads(line)
        identifier = record["identifier"]
        sentence = text_of(record["sentence"])
        label = str(record.get("label"))
        named_part, images, pair, sentence_number = identifier.split("-")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected sentence, label, identifier (such as dev-850-0-1): {error!r}"
        ) from error
    split = _SPLITS[part]
    if named_part != part or label.lower() not in _LABELS:
        reason = f"{named_part!r} with label {label!r}; expected {part!r}, True or False"
        return BadRow(split, identifier, f"{where}: {reason}")
    # Only the training images are in folders, by a number that their records have.
    name = folder / str(record.get("directory", "")) / f"{part}-{images}-{pair}-img"
    row = make_row(
        identifier,
        image=image_at(Path(f"{name}0.png")),
        captions=[sentence],
        source="nlvr2",
        licence=_NLVR2_TERMS,
        second_image=image_at(Path(f"{name}1.png")),
        label=_LABELS[label.lower()],
        # As the official metric does it: a sentence was written for the four pairs of one set of images.
        sentence_group=f"{part}-{images}-{sentence_number}",
    )
    return Row(split, row)
