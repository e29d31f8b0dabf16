"""The row layout of every data set, and the hash that splits rows."""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

from datasets import ClassLabel, Features, Image, List, Value

from vlmo.data.decoding import ImageCell

RowValues: TypeAlias = dict[str, Any]
"""A row of a data set: values by the names of columns."""
Built = tuple[Features, dict[str, list[RowValues]]]
"""A built-in set: its features, and the rows of each split."""

FEATURES = Features(
    {
        "image": Image(decode=False),
        "captions": List(Value("string")),
        "image_id": Value("string"),
        "source": Value("string"),
        "licence": Value("string"),
    }
)

CONTRAST_FEATURES = Features({**FEATURES, "false_captions": List(Value("string"))})
"""An image with its captions, and a false version of each for ITM; both lists have one length."""

QUESTION_FEATURES = Features(
    {
        **FEATURES,
        "question": Value("string"),
        "question_id": Value("string"),
        "question_type": Value("string"),
        "answer_type": Value("string"),
        "answers": List(Value("string")),
        "answer_labels": List(Value("int32")),
        "answer_scores": List(Value("float32")),
    }
)
"""A row a question, so `image_id` repeats. `answers` are the annotators' own words; `answer_labels` are numbers in the
set's list of answers, each with its soft score. All three are empty where the answer is not known."""

REASONING_FEATURES = Features(
    {
        **FEATURES,
        "second_image": Image(decode=False),
        "label": Value("int64"),
        "sentence_group": Value("string"),
    }
)
"""A sentence (the only caption) about two images: `label` 1 true, 0 false, -1 not known. Rows of one `sentence_group`
share their sentence."""

COMPOSITION_FEATURES = Features(
    {**FEATURES, "false_caption": Value("string"), "kind": Value("string")}
)
"""An image with a true caption (the only one) and a false one; `kind` tells how they differ."""

SEGMENT_FEATURES = Features({**FEATURES, "mask": Image(decode=False)})
"""An image with the number of a class for each pixel, 255 where none counts."""


def class_features(names: Sequence[str]) -> Features:
    """Return the features of images that have one of these classes."""
    return Features({**FEATURES, "label": ClassLabel(names=list(names))})


def hash_share(key: str) -> float:
    """Return a number in [0, 1) that depends on `key` alone; the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def make_row(
    image_id: str,
    *,
    source: str,
    licence: str,
    image: ImageCell | None = None,
    captions: Sequence[str] = (),
    **columns: Any,
) -> RowValues:
    """Return a row with the columns of `FEATURES`, and further `columns`."""
    facts = {"image_id": image_id, "source": source, "licence": licence}
    return {"image": image, "captions": list(captions), **facts, **columns}
