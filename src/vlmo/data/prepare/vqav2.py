"""VQA 2.0: questions about COCO's pictures, with ten answers each."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmo.data.prepare.json_stream import read_array
from vlmo.data.prepare.parts import BadRow, Row, SetOnDisk, chunked, find, image_at, text_of
from vlmo.data.schema import QUESTION_FEATURES, hash_share
from vlmo.processing.answers import MIN_COUNT, answer_list, soft_targets

NAME = "vqav2"
LICENCE = "questions and answers CC-BY-4.0 (VQA Consortium); pictures under the Flickr terms of their owners (COCO)"
KNOWN_SIZES = {"test_dev": 107_394, "test_std": 447_793}
"""Of the test splits only: how many questions are trained on depends on the pictures that are held out."""

HELD_OUT_IMAGES = 1000
"""Pictures of val2014 that are kept for validation, as many as in the published preparation. Which ones was left to
chance there; here a hash of the picture's number decides. Of fewer than 2,000 pictures, half are kept."""

_KNOWN_ANNOTATIONS = 443_757 + 214_354
_KNOWN_ANSWERS = 3_129
_ANNOTATORS = 10

_LABELLED = ("train2014", "val2014")
_UNLABELLED = {"test-dev2015": "test_dev", "test2015": "test_std"}

_LAYOUT = (
    "v2_OpenEnded_mscoco_{train2014,val2014}_questions.json, v2_mscoco_{train2014,val2014}_annotations.json (there, in "
    "questions/ and annotations/, or in vqa/) and the pictures in train2014/ and val2014/ (there, in images/ or coco/)"
)


def open_set(root: Path) -> SetOnDisk:
    """A row a question. Questions of val2014 are trained on, but for those about the pictures that are held out.

    Raises:
        ValueError: A file or folder is missing, or no answer is frequent enough to be in the list.
    """
    for part in _LABELLED:
        _questions_file(root, part)
    tests = {part: split for part, split in _UNLABELLED.items() if _has_questions(root, part)}
    folders = {part: _image_folder(root, part) for part in (*_LABELLED, *(["test2015"] if tests else []))}
    annotations = {part: _read_annotations(_annotations_file(root, part)) for part in _LABELLED}
    known = [annotation for of_part in annotations.values() for annotation in of_part.by_question.values()]
    answers = answer_list(annotation.majority for annotation in known)
    if not answers:
        raise ValueError(f"{root}: no answer is given to {MIN_COUNT} questions; are these the whole annotations?")
    labelled = _Labelled(
        annotations=annotations,
        numbers={answer: number for number, answer in enumerate(answers)},
        held_out=_held_out(annotation.image for annotation in annotations["val2014"].by_question.values()),
    )
    notes = [*labelled.notes(), *(f"no questions of {part} are there" for part in _UNLABELLED if part not in tests)]
    sizes = {split: KNOWN_SIZES[split] for split in tests.values()}
    return SetOnDisk(
        parts=chunked(_rows(root, labelled=labelled, tests=tests, folders=folders)),
        features=QUESTION_FEATURES,
        labels=answers,
        unique="question_id",
        needs_caption=False,
        num_rows=len(known) + sum(sizes.values()),
        known_sizes=sizes,
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Annotation:
    image: int
    question_type: str
    answer_type: str
    majority: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class _Annotations:
    """What one file says; `repeated` are questions that it answers a second time."""

    by_question: dict[int, _Annotation]
    repeated: list[tuple[int, int]]


def _questions_names(part: str) -> tuple[str, ...]:
    name = f"v2_OpenEnded_mscoco_{part}_questions.json"
    return name, f"questions/{name}", f"vqa/{name}"


def _has_questions(root: Path, part: str) -> bool:
    return any((root / name).is_file() for name in _questions_names(part))


def _questions_file(root: Path, part: str) -> Path:
    return find(root, *_questions_names(part), layout=_LAYOUT)


def _annotations_file(root: Path, part: str) -> Path:
    name = f"v2_mscoco_{part}_annotations.json"
    return find(root, name, f"annotations/{name}", f"vqa/{name}", layout=_LAYOUT)


def _image_folder(root: Path, name: str) -> Path:
    return find(root, name, f"images/{name}", f"coco/{name}", layout=_LAYOUT)


def _read_annotations(file: Path) -> _Annotations:
    found = _Annotations(by_question={}, repeated=[])
    for number, record in enumerate(read_array(file, key="annotations")):
        try:
            question = int(record["question_id"])
            # The same few words come back millions of times; interned, they are kept once.
            annotation = _Annotation(
                image=int(record["image_id"]),
                question_type=sys.intern(record["question_type"]),
                answer_type=sys.intern(record["answer_type"]),
                majority=sys.intern(record["multiple_choice_answer"]),
                answers=tuple(sys.intern(answer["answer"]) for answer in record["answers"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: annotations[{number}]: question_id, image_id, question_type, answer_type, "
                f"multiple_choice_answer and answers[].answer are needed ({error!r})"
            ) from error
        if question in found.by_question:
            found.repeated.append((question, annotation.image))
        else:
            found.by_question[question] = annotation
    return found


@dataclass(frozen=True)
class _Labelled:
    """The annotations of train2014 and val2014, the numbers of the answers, and the pictures kept for validation."""

    annotations: Mapping[str, _Annotations]
    numbers: Mapping[str, int]
    held_out: frozenset[int]

    def split(self, image: int) -> str:
        """A picture has one number in all of COCO, so that it is enough to know that."""
        return "validation" if image in self.held_out else "train"

    def notes(self) -> list[str]:
        """What was counted before any picture is looked at."""
        known = [annotation for part in self.annotations.values() for annotation in part.by_question.values()]
        outside = sum(
            self.split(annotation.image) == "train" and not any(answer in self.numbers for answer in annotation.answers)
            for annotation in known
        )
        notes = [
            f"{len(self.numbers):,} answers are given to {MIN_COUNT} questions or more; whole: {_KNOWN_ANSWERS:,}",
            f"{outside:,} questions with none of these answers are left out of training",
            f"the questions about {len(self.held_out):,} pictures of val2014 are for validation, others for training",
        ]
        if len(known) != _KNOWN_ANNOTATIONS:
            notes.append(f"{len(known):,} questions have answers; in the whole set {_KNOWN_ANNOTATIONS:,} have")
        return notes


def _held_out(images: Iterable[int]) -> frozenset[int]:
    ranked = sorted(set(images), key=lambda image: hash_share(_image_id(image)))
    return frozenset(ranked[: min(HELD_OUT_IMAGES, len(ranked) // 2)])


def _rows(
    root: Path, *, labelled: _Labelled, tests: Mapping[str, str], folders: Mapping[str, Path]
) -> Iterator[Row | BadRow]:
    for part in _LABELLED:
        yield from _labelled_rows(_questions_file(root, part), part=part, labelled=labelled, folder=folders[part])
    for part, split in tests.items():
        for record in _read_questions(_questions_file(root, part)):
            file = _picture(folders["test2015"], record["image_id"])
            yield Row(split, _values(record, file=file, annotation=None, numbers=labelled.numbers))


def _labelled_rows(file: Path, *, part: str, labelled: _Labelled, folder: Path) -> Iterator[Row | BadRow]:
    annotations = labelled.annotations[part]
    asked = set()
    for record in _read_questions(file):
        question, image = record["question_id"], record["image_id"]
        split = labelled.split(image)
        annotation = annotations.by_question.get(question)
        asked.add(question)
        if annotation is None:
            yield BadRow(split, _image_id(image), f"question {question} has no annotation")
        elif annotation.image != image:
            reason = f"question {question} is about picture {image}, its annotation about {annotation.image}"
            yield BadRow(split, _image_id(image), reason)
        elif (number := len(annotation.answers)) != _ANNOTATORS:
            yield BadRow(split, _image_id(image), f"question {question} has {number} answers; expected {_ANNOTATORS}")
        else:
            picture = _picture(folder, image)
            values = _values(record, file=picture, annotation=annotation, numbers=labelled.numbers)
            if split != "train" or values["answer_labels"]:
                yield Row(split, values)
    unasked = [(question, known.image) for question, known in annotations.by_question.items() if question not in asked]
    for reason, questions in (("annotation without a question", unasked), ("second annotation", annotations.repeated)):
        for question, image in questions:
            yield BadRow(labelled.split(image), _image_id(image), f"question {question}: {reason}")


def _picture(folder: Path, image: int) -> Path:
    return folder / f"COCO_{folder.name}_{image:012}.jpg"


def _read_questions(file: Path) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(read_array(file, key="questions")):
        try:
            yield {
                "question_id": int(record["question_id"]),
                "image_id": int(record["image_id"]),
                "question": text_of(record["question"]),
            }
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: questions[{number}]: question_id, image_id and question are needed ({error!r})"
            ) from error


def _image_id(image: int) -> str:
    # As in the set `coco`, whose pictures these are.
    return f"coco/{image}"


def _values(
    record: dict[str, Any], *, file: Path, annotation: _Annotation | None, numbers: Mapping[str, int]
) -> dict[str, Any]:
    labels, scores = ([], []) if annotation is None else soft_targets(annotation.answers, numbers=numbers)
    return {
        "image": image_at(file),
        "captions": [],
        "image_id": _image_id(record["image_id"]),
        "source": NAME,
        "licence": LICENCE,
        "question": record["question"],
        "question_id": str(record["question_id"]),
        "question_type": annotation.question_type if annotation else "",
        "answer_type": annotation.answer_type if annotation else "",
        "answers": list(annotation.answers) if annotation else [],
        "answer_labels": labels,
        "answer_scores": scores,
    }
