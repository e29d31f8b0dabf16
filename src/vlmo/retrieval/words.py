"""Words of images and queries for the full-text index."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Mode = Literal["auto", "vectors", "words", "hybrid"]
"""Way to find images: vectors, words in their texts, or both; auto: both, with images alone that have all words."""
OCR_COLUMN = "ocr_text"
"""Column of metadata that holds the text in an image, empty where there is none."""
_COMMON = frozenset(re.findall(r"\w+", "a an and are as at by for from in is it its of on or that the this to with"))
_MAX_WORDS = 32  # of a query


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without accents and the commonest English ones."""
    letters = (each for each in unicodedata.normalize("NFKD", text).casefold() if not unicodedata.combining(each))
    return [word for word in re.findall(r"[^\W_]+", "".join(letters)) if word not in _COMMON]


def query_words(text: str) -> list[str]:
    """Return the words of a query that are looked up, each once."""
    return list(dict.fromkeys(split_words(text)))[:_MAX_WORDS]


def image_words(row: Mapping[str, Any]) -> str:
    """Return the words that find an image: of captions, text in it, its file's name without digits, and its album.

    Names are split before capitals too (`redStar_02.png`: red star).
    """
    name = row["path"].removeprefix(f"{row.get('shard')}#").rpartition("/")[2]
    name = re.sub(r"\d+", " ", name.rpartition(".")[0] or name)
    named = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])", " ", f"{name} {row['metadata'].get('album') or ''}")
    return " ".join(split_words(" ".join([named, *row["captions"], row["metadata"].get(OCR_COLUMN) or ""])))


def found_share(words: Sequence[str], text: str) -> float:
    """Return which share of some words an `image_words` text that has one of them has, in singular or plural."""
    there = {word.rstrip("s") for word in text.split()}
    return max(1, sum(word.rstrip("s") in there for word in words)) / max(1, len(words))
