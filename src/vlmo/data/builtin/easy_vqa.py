"""easy-VQA: images of one drawn shape with questions and answers, from the `easy-vqa` package."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import easy_vqa
from PIL import Image

from vlmo.data.decoding import encode_image
from vlmo.data.schema import QUESTION_FEATURES, Built, hash_share, make_row

PACKAGES = ("easy-vqa",)
LICENCE = "MIT"
SOURCE = "easy-vqa"

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
LABELS = (*SHAPES, *COLORS, "no", "yes")
"""Every answer; an answer's number is its place here."""

BALANCED_SHARE = 0.3
"""Share of the training questions "is there something red?" that `easy-vqa-balanced` keeps, chosen by a hash."""

_PIXELS = 64
_GREY = (128, 128, 128)

Asked = tuple[list[str], list[str], list[int]]
"""Questions, their answers and the numbers of their images."""


@dataclass(frozen=True)
class Drawn:
    """The shape and colour that an image shows."""

    shape: str
    color: str


def build() -> dict[str, Built]:
    """Questions about images, and the same with every image hidden.

    `easy-vqa` has a row a question, so rows of one image share its `image_id`. In `easy-vqa-hidden` one grey image
    stands for every image: what a model reaches there, it reaches by the questions alone. More than half of the
    questions ask for a yes or no about a colour; `easy-vqa-balanced` has fewer of these to train on, and the same test.
    """
    rows = {split: _rows(split) for split in ("train", "test")}
    kept = [
        row
        for row in rows["train"]
        if row["answer_type"] != "yes/no"
        or _named(row["question"], COLORS) is None
        or hash_share(row["question_id"]) < BALANCED_SHARE
    ]
    grey = encode_image(Image.new("RGB", (_PIXELS, _PIXELS), _GREY), "")
    hidden = {
        split: [{**row, "image": {**grey, "path": row["image"]["path"]}} for row in of_split]
        for split, of_split in rows.items()
    }
    return {
        "easy-vqa": (QUESTION_FEATURES, rows),
        "easy-vqa-balanced": (QUESTION_FEATURES, {**rows, "train": kept}),
        "easy-vqa-hidden": (QUESTION_FEATURES, hidden),
    }


def asked(split: str) -> Asked:
    """The package's questions of a split."""
    return easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions()


def image_files(split: str) -> dict[int, bytes]:
    """The package's images of a split by number, as they lie in its files."""
    paths = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    return {number: Path(path).read_bytes() for number, path in paths.items()}


def distinct_questions() -> set[str]:
    """Each wording once; the package's test questions use no other wordings than its training questions."""
    return {question.strip() for question in easy_vqa.get_train_questions()[0]}


def facts(questions: Asked) -> dict[int, Drawn]:
    """Return what the images show, by number, as far as questions and answers tell; unclear ones are left out.

    >>> facts((["is there a circle?", "what color is the shape?"], ["yes", "red"], [7, 7]))
    {7: Drawn(shape='circle', color='red')}
    """
    shapes = {number: set(SHAPES) for number in questions[2]}
    colors = {number: set(COLORS) for number in questions[2]}
    for question, answer, number in zip(*questions, strict=True):
        for possible, known in ((shapes[number], SHAPES), (colors[number], COLORS)):
            word = answer if answer in known else _named(question, known)
            denied = answer in {"yes", "no"} and (answer == "yes") == _is_negated(question)
            if word is not None and denied:
                possible.discard(word)
            elif word is not None:
                possible.intersection_update({word})
    return {
        number: Drawn(shape=next(iter(shapes[number])), color=next(iter(colors[number])))
        for number in sorted(shapes)
        if len(shapes[number]) == len(colors[number]) == 1
    }


def question_type(question: str) -> str:
    """One of four kinds, in the manner of VQA's question types: the words that such questions begin with."""
    words = _words(question)
    if words[0] == "what":
        return "what color" if "color" in words else "what shape"
    return "is there not" if _is_negated(question) else "is there"


def _is_negated(question: str) -> bool:
    return not {"no", "not"}.isdisjoint(_words(question))


def _named(question: str, known: Iterable[str]) -> str | None:
    words = _words(question)
    return next((word for word in known if word in words), None)


def _words(question: str) -> list[str]:
    return question.strip().rstrip("?").split()


def _rows(split: str) -> list[dict[str, Any]]:
    files = image_files(split)
    return [
        make_row(
            f"{SOURCE}/{split}/{number}",
            image={"bytes": files[number], "path": f"{number}.png"},
            source=SOURCE,
            licence=LICENCE,
            question=question.strip(),
            question_id=f"{SOURCE}/{split}/question-{row}",
            question_type=question_type(question),
            answer_type="yes/no" if answer in {"yes", "no"} else "other",
            answers=[answer],
            answer_labels=[LABELS.index(answer)],
            answer_scores=[1.0],
        )
        for row, (question, answer, number) in enumerate(zip(*asked(split), strict=True))
    ]
