"""The quarantine file of a run that reads streams: a line for each bad record, as it is met."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from vlmo.data.sampler import stable_id
from vlmo.data.stream.records import Bad


class StreamQuarantine:
    """Appends lines to one process's file; what has a line already, from another epoch or start, gets no other.

    Args:
        path: File of JSON lines; it is made when the first batch arrives. Half a line, left by a kill, is removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: set[int] | None = None

    def add(self, records: Iterable[Bad]) -> None:
        """A line for each new one."""
        if self._known is None:
            self._known = self._open()
        lines = {_name(record.line()): record.line() for record in records}
        new = {name: line for name, line in lines.items() if name not in self._known}
        if not new:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in new.values())
        self._known.update(new)

    def _open(self) -> set[int]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            file.truncate(len(whole))
        return {_name(json.loads(line)) for line in whole.splitlines()}


def _name(line: dict) -> int:
    return stable_id(f"{line['kind']} {line['row']} {line['path']}")
