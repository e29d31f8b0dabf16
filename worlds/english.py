"""English sentences: `pydoc` topics and docstrings of Python's standard library, and the questions of easy-VQA."""

import ast
import pydoc_data.topics
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import easy_vqa

from vlmo.data.schema import FEATURES, Built, hash_share, make_row

PACKAGES = ("easy-vqa",)
SOURCE, LICENCE = "python", "PSF-2.0"
_TEST_SHARE = 0.05

_LEFT_OUT = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idlelib", "pydoc_data", "encodings")
)
"""Folders of the standard library without prose of their own."""

_MARK_UP = (
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r":[a-z:]+:`~?([^`<]+?)(?: <[^`>]+>)?`"), r"\1"),
    (re.compile(r"`([^`']+)[`']_?"), r"\1"),
    (re.compile(r"(?<!\w)\*{1,2}(\S(?:[^*]*\S)?)\*{1,2}(?!\w)"), r"\1"),
    (re.compile(r'"([^"\s]+)"'), r"\1"),
    (re.compile(r"\s+"), " "),
)
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,.;:!?'\"\u2018-\u201d\u2014()/%-]*[.!?]")
_WORD_EDGE = ".,;:!?'\"\u2018\u2019\u201c\u201d()"
_MIN_WORDS, _MAX_WORDS = 4, 50
_MIN_WORD_SHARE = 0.8


def english_text() -> Built:
    """Return each sentence once, in the order of its hash."""
    # The package's test questions have the same wordings.
    questions = [question.strip() for question in easy_vqa.get_train_questions()[0]]
    sentences = dict.fromkeys(_python_sentences(), (SOURCE, LICENCE))
    sentences |= dict.fromkeys(questions, ("easy-vqa", "MIT"))
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for sentence in sorted(sentences, key=hash_share):
        source, licence = sentences[sentence]
        row = make_row(f"text/{sentence}", captions=[sentence], source=source, licence=licence)
        splits["test" if hash_share(sentence) < _TEST_SHARE else "train"].append(row)
    return FEATURES, splits


SETS = {"english-text": english_text}


def prose_sentences(text: str) -> Iterator[str]:
    """Sentences of reST text, without mark-up; what is code, a table or a heading rather than prose is left out."""
    for paragraph in _PARAGRAPH_END.split(text):
        for pattern, replacement in _MARK_UP:
            paragraph = pattern.sub(replacement, paragraph)
        yield from (
            sentence for sentence in _SENTENCE_END.split(paragraph.strip()) if _is_prose(sentence)
        )


def _is_prose(sentence: str) -> bool:
    words = sentence.split()
    if not _MIN_WORDS <= len(words) <= _MAX_WORDS or not _SENTENCE.fullmatch(sentence):
        return False
    return sum(word.strip(_WORD_EDGE).isalpha() for word in words) >= _MIN_WORD_SHARE * len(words)


def _python_sentences() -> Iterator[str]:
    for text in pydoc_data.topics.topics.values():
        yield from prose_sentences(text)
    library = Path(sysconfig.get_path("stdlib"))
    for file in library.rglob("*.py"):
        if not _LEFT_OUT.isdisjoint(file.relative_to(library).parts):
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from prose_sentences(ast.get_docstring(node) or "")
