"""Published data sets, from the files that people have to one row layout (`vlmo data prepare`)."""

from __future__ import annotations

import difflib
import importlib
import json
from pathlib import Path
from typing import cast

from vlmo.data.prepare.assembly import SUMMARY_FILE
from vlmo.data.prepare.parts import Preparer
from vlmo.data.prepare.run import prepare_set
from vlmo.data.prepare.summary import Summary

__all__ = ["PREPARERS", "Summary", "find_preparer", "labels_of", "prepare"]

PREPARERS = {
    "coco": "coco",
    "flickr30k": "flickr30k",
    "visual_genome": "visual_genome",
    "sbu": "sbu",
    "conceptual_captions": "conceptual_captions",
    "vqav2": "vqav2",
    "nlvr2": "nlvr2",
    "imagenet": "imagenet",
    "ade20k": "ade20k",
    "text": "text",
    "vilt_arrow": "vilt_arrow",
    "drawings": "drawings",
    "glosses": "glosses",
}
"""Name of each set and the module here that reads it (see `vlmo.data.prepare.parts`)."""


def find_preparer(name: str) -> Preparer:
    """The module that reads the set `name`; ValueError names the nearest right one."""
    if name not in PREPARERS:
        near = difflib.get_close_matches(name, PREPARERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no data set {name!r} can be prepared.{hint} All: {', '.join(PREPARERS)}.")
    return cast(Preparer, importlib.import_module(f"{__name__}.{PREPARERS[name]}"))


def prepare(name: str, *, root: Path, out: Path, num_proc: int = 1) -> Summary:
    """Reads the set `name` below `root`, looks at every picture, and writes the folder `out`.

    `open_source(out, split=...)` reads the folder. What cannot be used has a line in `quarantine.jsonl` there. The
    folder is whole or not there; until then finished parts are kept in `OUT.unfinished`, and not done again. In a
    script, call this below `if __name__ == "__main__":`, as further processes start by importing it.

    Args:
        name: One of `PREPARERS`.
        root: Folder with the set's files as their publishers give them (docs/data.md).
        out: New folder.
        num_proc: Processes that read and decode.

    Raises:
        ValueError: Unknown name, missing files, data in another layout, or no row that can be used.
    """
    return prepare_set(find_preparer(name), root=root, out=out, num_proc=num_proc)


def labels_of(folder: Path) -> list[str]:
    """Names of the answers or classes of a prepared set, in the order of their numbers.

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
