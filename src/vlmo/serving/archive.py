"""Zip archives that are sent while they are written, one file in memory at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import IO, cast


class _Sent(list[bytes]):
    """File that cannot be rewound, so that `ZipFile` completes an entry before the next one."""

    def write(self, data: memoryview) -> int:
        self.append(bytes(data))
        return len(data)

    def flush(self) -> None: ...


def zip_files(files: Sequence[tuple[str, str, Callable[[], bytes]]]) -> Iterator[bytes]:
    """Yield a zip archive of files, given as id, path and a function that reads the bytes.

    The id stands before a name that an earlier file has; an unreadable file becomes an empty note.
    """
    sent = _Sent()
    used_names = set[str]()
    # Without compression, which images have already.
    with zipfile.ZipFile(cast("IO[bytes]", sent), "w") as archive:
        for file_id, path, read in files:
            name = PurePath(path).name
            try:
                data = read()
            except ValueError:
                name = f"{name} is missing.txt"
                data = b""
            archive.writestr(f"{file_id}-{name}" if name in used_names else name, data)
            used_names.add(name)
            yield b"".join(sent)
            sent.clear()
    yield b"".join(sent)
