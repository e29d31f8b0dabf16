"""The quarantine file of an index: a line for each picture or shard that cannot be used now."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from vlmo.data.stream.records import Bad
from vlmo.folder import write_file

QUARANTINE_FILE = "quarantine.jsonl"


class IndexQuarantine:
    """Lines of one run. What an earlier run said stays until this one ends.

    Args:
        folder: Of the index.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / QUARANTINE_FILE
        self._before = _whole_lines(self._path)
        self._now: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._now)

    def add(self, bad: Bad) -> None:
        """Tells of it at once, unless the same line is there."""
        line = json.dumps(bad.line(), ensure_ascii=False)
        if line not in self._before and line not in self._now:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self._now[line] = bad.shard

    def finish(self, *, settled: Callable[[str], bool]) -> int:
        """Leaves the lines of this run, and older ones about shards that were not read again; returns their number."""
        old = [line for line in self._before if line not in self._now and settled(json.loads(line)["path"])]
        lines = [*old, *self._now]
        write_file(self._path, "".join(f"{line}\n" for line in lines))
        return len(lines)


def _whole_lines(path: Path) -> dict[str, None]:
    """Lines of an earlier run; half a line, left by a kill, is removed."""
    with path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
    return dict.fromkeys(whole.decode().splitlines())
