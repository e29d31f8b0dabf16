"""Zip archives that are sent while they are written, one file in memory at a time."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import IO, cast

from vlmo.data.decoding import EncodedImage
from vlmo.terminal import without_controls

# Some programs read them as parts of a path.
_SEPARATORS = re.compile(r"[\\:]")


class _Sent(list[bytes]):
    """File that cannot be rewound, so that `ZipFile` completes an entry before the next one."""

    def write(self, data: memoryview) -> int:
        self.append(bytes(data))
        return len(data)

    def flush(self) -> None: ...


def zip_files(files: Sequence[tuple[str, str, Callable[[], bytes]]]) -> Iterator[bytes]:
    """Yield a zip archive of files, given as id, path and a function that reads the bytes.

    The id stands before a name that an earlier file has. A file that is unreadable, or no image
    any more, becomes an empty note.
    """
    sent = _Sent()
    used_names = set[str]()
    # Without compression, which images have already.
    with zipfile.ZipFile(cast("IO[bytes]", sent), "w") as archive:
        for file_id, path, read in files:
            name = _SEPARATORS.sub("_", without_controls(PurePath(path).name))
            try:
                data = read()
                # It may have become a link to a file that nobody shares.
                EncodedImage({"bytes": data, "path": None})
            except ValueError:
                name = f"{name} is missing.txt"
                data = b""
            while name in used_names:
                name = f"{file_id}-{name}"
            archive.writestr(name, data)
            used_names.add(name)
            yield b"".join(sent)
            sent.clear()
    yield b"".join(sent)
