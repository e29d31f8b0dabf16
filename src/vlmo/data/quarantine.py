"""Quarantine files: JSON lines about rows, records and shards that cannot be used, each with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmo.data.sampler import stable_id
from vlmo.data.saved import naming_damage


@dataclass(frozen=True)
class Bad:
    """A record that cannot be used (kind "row"), or the end of what can be read of a shard ("shard")."""

    kind: str
    shard: str
    index: int
    key: str
    reason: str

    def line(self) -> dict[str, Any]:
        """Return its line of the quarantine file."""
        return {"kind": self.kind, "row": self.index, "image_id": self.key, "path": self.shard, "reason": self.reason}


class QuarantineFile:
    """Appends lines as bad records are met; a record that has a line, from another epoch or start, gets no other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: set[int] | None = None

    def add(self, records: Iterable[Bad]) -> None:
        """Append a line for each new one."""
        if self._known is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._known = {_identity(line) for line in read_lines(self._path)}
        lines = {_identity(record.line()): record.line() for record in records}
        new = {name: line for name, line in lines.items() if name not in self._known}
        if new:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(to_lines(list(new.values())))
            self._known.update(new)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of an earlier run; half a line, left by a kill, is removed. A missing file is made."""
    with path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
    with naming_damage(path, advice="remove it"):
        return [{**json.loads(line)} for line in whole.splitlines()]


def first_reasons(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return the first reasons for invalid rows in a sentence; equal ones once."""
    reasons = list(dict.fromkeys(line["reason"] for line in lines if line["kind"] != "caption"))
    return "; ".join(reasons[:3]) + ("; ..." if reasons[3:] else "")


def to_lines(lines: Sequence[dict[str, Any]]) -> str:
    """Return the text of a quarantine file."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _identity(line: dict[str, Any]) -> int:
    return stable_id(f"{line['kind']} {line['row']} {line['image_id']} {line['path']}")
