"""Words of images and queries for the full-text index."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int64

Metadata: TypeAlias = Mapping[str, Any]
"""Columns of metadata of an image by their names: texts, numbers and truth values."""
ImageRow: TypeAlias = dict[str, Any]
"""Columns of an image in the table, or those that were asked for, by their names."""
OCR_COLUMN = "ocr_text"
"""Column of metadata that holds the text in an image, with | between its lines, empty where there is none."""
_COMMON = frozenset(
    re.findall(r"\w+", "a an and are as at by for from in is it its of on or that the this to with")
)
_CAMERA = frozenset(
    re.findall(r"\w+", "img image dsc dscn dscf mvimg pxl hdr night portrait pano burst app vid")
)
_MAX_WORDS = 32  # of a query
# Of a word: LanceDB's index leaves out longer ones.
_MAX_BYTES = 39


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without accents and the commonest English ones."""
    # Accents become characters of their own, which are then left out.
    letters = unicodedata.normalize("NFKD", text).casefold()
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return [word for word in re.findall(r"[^\W_]+", letters) if word not in _COMMON]


def query_words(text: str) -> list[str]:
    """Return the words of a query that are looked up, each once."""
    words = [word for word in split_words(text) if len(word.encode()) <= _MAX_BYTES]
    return list(dict.fromkeys(words))[:_MAX_WORDS]


def image_texts(path: str, captions: Sequence[str], metadata: Metadata) -> list[list[str]]:
    """Return the words of each text of an image: its album, its file's name without digits, captions, lines in it.

    Names are split before capitals too (`redStar_02.png`: red star).
    """
    # Without folders and shard.
    file = re.sub(r".*(/|\.(tar|parquet)#)", "", path, flags=re.DOTALL | re.IGNORECASE)
    stem = file.rpartition(".")[0] or file
    names = [metadata.get("album") or "", re.sub(r"\d+", " ", stem)]
    names = [re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])", " ", name) for name in names]
    lines = (metadata.get(OCR_COLUMN) or "").split("|")
    return [split_words(text) for text in (*names, *captions, *lines)]


def image_words(row: ImageRow) -> str:
    """Return the words that find an image: those of all its texts."""
    return " ".join(itertools.chain(*image_texts(row["path"], row["captions"], row["metadata"])))


def found_share(words: Sequence[str], text: str) -> float:
    """Return which share of some words an `image_words` text that has one of them has, in singular or plural."""
    there = singular(text.split())
    return max(1, sum(singular([word]) <= there for word in words)) / max(1, len(words))


OwnWords: TypeAlias = tuple[int, list[set[str]]]
"""Number of words of an image's texts but its album, without short ones and those of cameras (IMG_HDR); and the words
of each text that has some, in the singular."""


def own_words(path: str, captions: Sequence[str], metadata: Metadata) -> OwnWords:
    """Return them of an image."""
    texts = image_texts(path, captions, metadata)
    telling = [word for text in texts[1:] for word in text if len(word) > 2 and word not in _CAMERA]
    return len(telling), [singular(text) for text in texts if text]


def singular(words: Iterable[str]) -> set[str]:
    """Return English words in the singular, roughly: both "cherries" and "cherry" are "cherry"."""
    return {re.sub("(?<=..)ies$", "y", word).rstrip("s") for word in words}


Rows: TypeAlias = "tuple[Int64[np.ndarray, ' row'], Float[np.ndarray, ' row']]"
"""Rows of a table that have a word, each once, and their scores by BM25."""


def join_rows(found: Sequence[Rows], *, every: bool) -> tuple[*Rows, Float[np.ndarray, " row"]]:
    """Return the rows that have any word, or every one, their scores, which add up, and the shares of words in them."""
    rows, scores = map(np.concatenate, zip(*found, strict=True))
    # Rows that several words have stand together after the sort.
    order = np.argsort(rows, kind="stable")
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    # Words of the query that a row has.
    counts = np.diff(first, append=len(rows))
    passed = counts >= (len(found) if every else 1)
    return (
        rows[order][first][passed],
        np.add.reduceat(scores[order], first)[passed],
        counts[passed] / len(found),
    )
