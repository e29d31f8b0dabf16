"""Files that an index leaves out, and the reasons."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

QUARANTINE_FILE = "quarantine.jsonl"
_LONGEST = 300  # characters of a reason


def read_skipped(folder: Path, *, inputs: Sequence[str], most: int) -> list[dict[str, str]]:
    """Return "name" and "reason" of the first files in the quarantine of an index; a run may be writing it.

    Clients may see both: names are paths below the inputs, and reasons name no other folders.
    """
    files = list[dict[str, str]]()
    with (
        contextlib.suppress(OSError, ValueError),
        (folder / QUARANTINE_FILE).open(encoding="utf-8") as lines,
    ):
        # The last one may be cut off.
        for line in itertools.islice(lines, most):
            files.append(_shown(json.loads(line), inputs))
    return files


def _shown(line: Mapping[str, str], inputs: Sequence[str]) -> dict[str, str]:
    path = line["path"]
    key = line["image_id"]
    name = f"{path}#{key}" if key and not key.startswith(path) else key or path
    reason = line["reason"].removeprefix(f"{name}: ")
    # Longer inputs first, as others may hold them.
    for folder in [*sorted(inputs, key=len, reverse=True), path.rpartition("/")[0]]:
        name = name.removeprefix(f"{folder}/")
        reason = reason.replace(f"{folder}/", "")
    return {"name": name, "reason": reason[:_LONGEST]}
