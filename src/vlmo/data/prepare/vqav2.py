"""VQA 2.0: questions about COCO's images, with ten answers each."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vlmo.data.prepare.json_stream import read_records
from vlmo.data.prepare.karpathy import coco_image_id
from vlmo.data.prepare.parts import BadRow, Row, SetOnDisk, chunked, count_chunks, find, first_of, image_at, text_of
from vlmo.data.schema import QUESTION_FEATURES, hash_share, make_row
from vlmo.processing.answers import MIN_COUNT, answer_list, soft_targets

NAME = "vqav2"
LICENCE = "questions and answers CC-BY-4.0 (VQA Consortium); images under the Flickr terms of their owners (COCO)"
TEST_SIZES = {"test_dev": 107_394, "test_std": 447_793}
"""The number of questions that are trained on depends on the images that are held out."""

HELD_OUT_IMAGES = 1000
"""Images of val2014 that are kept for validation, as many as in the published preparation. Which ones was left to
chance there; here a hash of the image's number decides. Of fewer than 2,000 images, half are kept."""

_KNOWN_ANNOTATIONS = 443_757 + 214_354
_KNOWN_ANSWERS = 3_129
_ANNOTATORS = 10

_LABELLED = ("train2014", "val2014")
_UNLABELLED = {"test-dev2015": "test_dev", "test2015": "test_std"}

_QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
_LAYOUT = (
    "v2_OpenEnded_mscoco_{train2014,val2014}_questions.json, v2_mscoco_{train2014,val2014}_annotations.json (there, in "
    "questions/ and annotations/, or in vqa/) and the images in train2014/ and val2014/ (there, in images/ or coco/)"
)


def open_set(root: Path) -> SetOnDisk:
    """Find a row a question; those of val2014 are for training, but for held-out images. ValueError without answers."""

    def named(name: str, *folders: str) -> Path:
        return find(root, name, *(f"{folder}/{name}" for folder in folders), layout=_LAYOUT)

    files = {part: named(_QUESTIONS.format(part), "questions", "vqa") for part in _LABELLED}
    tests = {}
    for part, split in _UNLABELLED.items():
        file = first_of(root, *(folder + _QUESTIONS.format(part) for folder in ("", "questions/", "vqa/")))
        if file is not None:
            files[part], tests[part] = file, split
    folders = {part: named(part, "images", "coco") for part in (*_LABELLED, *(["test2015"] if tests else []))}
    annotations = {
        part: _read_annotations(named(f"v2_mscoco_{part}_annotations.json", "annotations", "vqa")) for part in _LABELLED
    }
    known = [annotation for of_part in annotations.values() for annotation in of_part.values()]
    answers = answer_list(annotation.majority for annotation in known)
    if not answers:
        raise ValueError(f"{root}: no answer is given to {MIN_COUNT} questions; are these the whole annotations?")
    labelled = _Labelled(
        annotations=annotations,
        numbers={answer: number for number, answer in enumerate(answers)},
        held_out=_held_out(annotation.image for annotation in annotations["val2014"].values()),
    )
    notes = [*labelled.notes(), *(f"no questions of {part} are there" for part in _UNLABELLED if part not in tests)]
    sizes = {split: TEST_SIZES[split] for split in tests.values()}
    return SetOnDisk(
        parts=chunked(_rows(files, labelled=labelled, tests=tests, folders=folders)),
        licence=LICENCE,
        features=QUESTION_FEATURES,
        labels=answers,
        unique="question_id",
        needs_caption=False,
        num_parts=count_chunks(range(len(known) + sum(sizes.values()))),
        known_sizes=sizes,
        notes=tuple(notes),
    )


class _Annotation(NamedTuple):
    image: int
    question_type: str
    answer_type: str
    majority: str
    answers: tuple[str, ...]


def _read_annotations(file: Path) -> dict[int, _Annotation]:
    def read(record: dict[str, Any]) -> tuple[int, _Annotation]:
        # The same few words come back millions of times; interned, they are kept once.
        return int(record["question_id"]), _Annotation(
            image=int(record["image_id"]),
            question_type=sys.intern(record["question_type"]),
            answer_type=sys.intern(record["answer_type"]),
            majority=sys.intern(record["multiple_choice_answer"]),
            answers=tuple(sys.intern(answer["answer"]) for answer in record["answers"]),
        )

    needs = "question_id, image_id, question_type, answer_type, multiple_choice_answer and answers[].answer"
    found: dict[int, _Annotation] = {}
    for question, annotation in read_records(file, read, key="annotations", needs=needs):
        if found.setdefault(question, annotation) is not annotation:
            raise ValueError(f"{file}: question {question} has two annotations; take the file as it was published")
    return found


class _Labelled(NamedTuple):
    """The annotations of train2014 and val2014, the numbers of the answers, and the images kept for validation."""

    annotations: Mapping[str, Mapping[int, _Annotation]]
    numbers: Mapping[str, int]
    held_out: frozenset[int]

    def split(self, image: int) -> str:
        """Return the split of an image; it has one number in all of COCO."""
        return "validation" if image in self.held_out else "train"

    def notes(self) -> list[str]:
        """Return what was counted before any image is read."""
        known = [annotation for part in self.annotations.values() for annotation in part.values()]
        outside = sum(
            self.split(annotation.image) == "train" and not any(answer in self.numbers for answer in annotation.answers)
            for annotation in known
        )
        notes = [
            f"{len(self.numbers):,} answers are given to {MIN_COUNT} questions or more; whole: {_KNOWN_ANSWERS:,}",
            f"{outside:,} questions with none of these answers are left out of training",
            f"the questions about {len(self.held_out):,} images of val2014 are for validation, others for training",
        ]
        if len(known) != _KNOWN_ANNOTATIONS:
            notes.append(f"{len(known):,} questions have answers; in the whole set {_KNOWN_ANNOTATIONS:,} have")
        return notes


def _held_out(images: Iterable[int]) -> frozenset[int]:
    ranked = sorted(set(images), key=lambda image: hash_share(coco_image_id(image)))
    return frozenset(ranked[: min(HELD_OUT_IMAGES, len(ranked) // 2)])


def _rows(
    files: Mapping[str, Path], *, labelled: _Labelled, tests: Mapping[str, str], folders: Mapping[str, Path]
) -> Iterator[Row | BadRow]:
    for part in _LABELLED:
        for record in _read_questions(files[part]):
            split, annotation = labelled.split(record.image), labelled.annotations[part].get(record.number)
            if annotation is None or annotation.image != record.image or len(annotation.answers) != _ANNOTATORS:
                found = "none" if annotation is None else f"image {annotation.image}, {len(annotation.answers)} answers"
                fault = f"question {record.number} needs an annotation of its image with {_ANNOTATORS} answers: {found}"
                yield BadRow(split, coco_image_id(record.image), fault)
                continue
            row = _row(record, folder=folders[part], annotation=annotation, numbers=labelled.numbers)
            if split != "train" or row["answer_labels"]:
                yield Row(split, row)
    unknown = _Annotation(0, "", "", "", ())
    for part, split in tests.items():
        for record in _read_questions(files[part]):
            yield Row(split, _row(record, folder=folders["test2015"], annotation=unknown, numbers=labelled.numbers))


class _Question(NamedTuple):
    number: int
    image: int
    question: str


def _read_questions(file: Path) -> Iterator[_Question]:
    def read(record: dict[str, Any]) -> _Question:
        return _Question(int(record["question_id"]), int(record["image_id"]), text_of(record["question"]))

    return read_records(file, read, key="questions", needs="question_id, image_id and question")


def _row(record: _Question, *, folder: Path, annotation: _Annotation, numbers: Mapping[str, int]) -> dict[str, Any]:
    labels, scores = soft_targets(annotation.answers, numbers=numbers)
    return make_row(
        coco_image_id(record.image),
        image=image_at(folder / f"COCO_{folder.name}_{record.image:012}.jpg"),
        source=NAME,
        licence=LICENCE,
        question=record.question,
        question_id=str(record.number),
        question_type=annotation.question_type,
        answer_type=annotation.answer_type,
        answers=list(annotation.answers),
        answer_labels=labels,
        answer_scores=scores,
    )
