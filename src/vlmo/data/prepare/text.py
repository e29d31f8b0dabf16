"""Plain text, such as Wikipedia and BookCorpus: a document or sentence a line."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from vlmo.data.prepare.preparer import BadRow, FileItem, Record, Row, SetOnDisk, stamped
from vlmo.data.schema import hash_share
from vlmo.data.sources import text_rows

TEST_SHARE = 0.01
"""Share of lines, chosen by a hash of the line, that are kept for testing; equal lines are on the same side."""

_BLOCK_BYTES = 1 << 22

Block = tuple[FileItem, int, int, int]
"""A file, start and end of whole lines in it, and the number of the first line."""


def open_text(root: Path) -> SetOnDisk:
    """Find a row a line, or a piece of a long one; ValueError if nothing there is text."""
    folder = root.parent if root.is_file() else root
    files = [root] if root.is_file() else sorted(root.rglob("*"))
    files = [file for file in files if file.suffix.lower() == ".txt" and file.is_file()]
    if not files:
        raise ValueError(
            f"{root}: no text in it; --root must be a .txt file, or a folder with .txt files"
        )
    return SetOnDisk(
        lambda: (block for file in files for block in _blocks(file)),
        "that of your own files, which is not known here",
        read=functools.partial(_read_blocks, folder=folder),
        chunk=1,
        unique=None,
        needs_image=False,
    )


def _blocks(file: Path) -> Iterator[Block]:
    start = 0
    line = 1
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES) + opened.readline():
            yield stamped(file), start, start + len(block), line
            start = start + len(block)
            line = line + block.count(b"\n")


def _read_blocks(blocks: list[Block], *, folder: Path) -> Iterator[Record]:
    for (file, *_), start, end, first in blocks:
        name = file.relative_to(folder).as_posix()
        with file.open("rb") as opened:
            opened.seek(start)
            block = opened.read(end - start)
        for number, line in enumerate(block.split(b"\n"), start=first):
            try:
                # The mark that some editors put at the start of a file.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield BadRow(
                    "train",
                    f"{name}:{number}",
                    f"{file}:{number}: not UTF-8 ({error})",
                    path=str(file),
                )
                continue
            # By a hash: a line that is there twice is not both trained on and tested.
            split = "test" if hash_share(text.strip()) < TEST_SHARE else "train"
            for row in text_rows(text, image_id=f"{name}:{number}", source=folder.name):
                yield Row(split, row)
