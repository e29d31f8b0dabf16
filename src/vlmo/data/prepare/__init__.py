"""Published data sets, from the files that people have to one row layout (`vlmo data prepare`)."""

from __future__ import annotations

import difflib
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vlmo.data.prepare.parts import Preparer
from vlmo.data.prepare.summary import SUMMARY_FILE, Summary

if TYPE_CHECKING:
    from vlmo.progress import Progress

__all__ = ["PREPARERS", "Summary", "find_preparer", "labels_of", "prepare"]

PREPARERS = (
    "coco",
    "flickr30k",
    "visual_genome",
    "sbu",
    "conceptual_captions",
    "vqav2",
    "nlvr2",
    "imagenet",
    "ade20k",
    "text",
    "vilt_arrow",
    "drawings",
    "glosses",
)
"""Names of the sets; each is a module here (see `vlmo.data.prepare.parts`)."""


def find_preparer(name: str) -> Preparer:
    """Return the module that reads the set `name`; ValueError names the nearest right one."""
    if name not in PREPARERS:
        near = difflib.get_close_matches(name, PREPARERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no data set {name!r} can be prepared.{hint} All: {', '.join(PREPARERS)}.")
    return cast(Preparer, importlib.import_module(f"{__name__}.{name}"))


def prepare(name: str, *, root: Path, out: Path, num_proc: int = 1, progress: Progress | None = None) -> Summary:
    """Read the set `name` below `root`, validate every row, and write the folder `out`.

    `open_source(out, split=...)` reads the folder. Invalid rows have a line in `quarantine.jsonl` there. The folder is
    written atomically; until then finished parts are kept in `OUT.unfinished`, and not done again.

    Args:
        name: One of `PREPARERS`.
        root: Folder with the set's files as their publishers give them (docs/data.md).
        out: New folder.
        num_proc: Processes that read and decode.
        progress: Shows the rows or parts that are done.

    Raises:
        ValueError: Unknown name, missing files, data in another layout, or no row that can be used.
    """
    from vlmo.data.prepare.engine import prepare_set

    return prepare_set(find_preparer(name), root=root, out=out, num_proc=num_proc, progress=progress)


def labels_of(folder: Path) -> list[str]:
    """Return the names of the answers or classes of a prepared set, in the order of their numbers.

    Raises:
        ValueError: It is no prepared folder, or its set has no answers or classes.
    """
    file = Path(folder) / SUMMARY_FILE
    if not file.is_file():
        raise ValueError(f"{folder}: no {SUMMARY_FILE}; expected a folder that `vlmo data prepare` has written")
    try:
        labels = json.loads(file.read_text(encoding="utf-8")).get("labels")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read ({error}); prepare the set anew") from error
    if not labels:
        raise ValueError(f"{folder}: this set has no answers or classes; prepare one for the task that you want")
    return labels
