"""easy-VQA: images of one drawn shape with questions and answers, from the `easy-vqa` package."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import easy_vqa

from vlmo.data.schema import QUESTION_FEATURES, Built, hash_share, make_row

PACKAGES = ("easy-vqa",)
LICENCE = "MIT"
SOURCE = "easy-vqa"

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
ANSWERS = (*SHAPES, *COLORS, "no", "yes")

BALANCED_SHARE = 0.3
"""Share of the training questions "is there something red?" that `easy-vqa-balanced` keeps, chosen by a hash."""


def all_questions() -> Built:
    """Return a row a question, so rows of one image share its `image_id`."""
    return QUESTION_FEATURES, {split: _rows(split) for split in ("train", "test")}


def balanced() -> Built:
    """Return fewer of the training questions that ask for a yes or no about a color, more than half of all."""
    features, rows = all_questions()
    kept = [
        row
        for row in rows["train"]
        if row["answer_type"] != "yes/no"
        or _named(row["question"], COLORS) is None
        or hash_share(row["question_id"]) < BALANCED_SHARE
    ]
    return features, {**rows, "train": kept}


SETS = {"easy-vqa": all_questions, "easy-vqa-balanced": balanced}
LABELS = dict.fromkeys(SETS, ANSWERS)


def distinct_questions() -> set[str]:
    """Each wording once; the package's test questions use no other wordings than its training questions."""
    return {question.strip() for question in easy_vqa.get_train_questions()[0]}


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
    is_train = split == "train"
    paths = easy_vqa.get_train_image_paths() if is_train else easy_vqa.get_test_image_paths()
    files = {number: Path(path).read_bytes() for number, path in paths.items()}
    asked = easy_vqa.get_train_questions() if is_train else easy_vqa.get_test_questions()
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
            answer_labels=[ANSWERS.index(answer)],
            answer_scores=[1.0],
        )
        for row, (question, answer, number) in enumerate(zip(*asked, strict=True))
    ]
