"""easy-VQA: drawn shapes with questions and answers, from the `easy-vqa` package."""

from collections.abc import Iterable
from pathlib import Path

import easy_vqa
from datasets import Dataset, DatasetDict, Features, Value

from vlmo.data.schema import FEATURES, hash_share, text_row

PACKAGES = ("easy-vqa",)
LICENCE = "MIT"
SOURCE = "easy-vqa"

TEST_SHARE = 0.05
"""Share of texts, chosen by a hash of the text, that are kept for testing; the images have a split of their own."""

_FEATURES = Features({**FEATURES, "question": Value("string"), "answer": Value("string")})


def build() -> dict[str, DatasetDict]:
    """`easy-vqa`: a row a question, so rows of one picture share its `image_id`; `easy-vqa-questions`: text only."""
    train = _rows("train", easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths())
    test = _rows("test", easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths())
    questions = sorted(distinct_questions())
    return {
        "easy-vqa": DatasetDict({"train": train, "test": test}),
        "easy-vqa-questions": DatasetDict(
            {
                "train": _text(text for text in questions if hash_share(text) >= TEST_SHARE),
                "test": _text(text for text in questions if hash_share(text) < TEST_SHARE),
            }
        ),
    }


def distinct_questions() -> set[str]:
    """Each wording once; the package's test questions use no other wordings than its training questions."""
    return {question.strip() for question in easy_vqa.get_train_questions()[0]}


def _rows(split: str, questions: tuple[list[str], list[str], list[int]], paths: dict[int, str]) -> Dataset:
    files = {number: Path(path).read_bytes() for number, path in paths.items()}
    rows = [
        {
            "image": {"bytes": files[number], "path": f"{number}.png"},
            "captions": [],
            "image_id": f"{SOURCE}/{split}/{number}",
            "source": SOURCE,
            "licence": LICENCE,
            "question": question.strip(),
            "answer": answer,
        }
        for question, answer, number in zip(*questions, strict=True)
    ]
    return Dataset.from_list(rows, features=_FEATURES)


def _text(sentences: Iterable[str]) -> Dataset:
    rows = [text_row(text, image_id=f"{SOURCE}-question/{text}", source=SOURCE, licence=LICENCE) for text in sentences]
    return Dataset.from_list(rows, features=FEATURES)
