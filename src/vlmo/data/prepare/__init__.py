"""Published data sets, from the files that people have to one row layout (`vlmo data prepare`)."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vlmo.data.rows import SUMMARY_FILE, naming_damage
from vlmo.terminal import suggestion

if TYPE_CHECKING:
    from vlmo.data.prepare.engine import Summary
    from vlmo.progress import Progress

__all__ = ["PREPARERS", "labels_of", "prepare", "register"]

PREPARERS = {
    "coco": "captions.open_coco",
    "flickr30k": "captions.open_flickr30k",
    "visual_genome": "captions.open_visual_genome",
    "sbu": "captions.open_sbu",
    "conceptual_captions": "captions.open_conceptual_captions",
    "vqav2": "reasoning.open_vqav2",
    "nlvr2": "reasoning.open_nlvr2",
    "imagenet": "classes.open_imagenet",
    "ade20k": "classes.open_ade20k",
    "text": "text.open_text",
}
PREPARERS = {name: f"{__name__}.{function}" for name, function in PREPARERS.items()}
"""Each set by name, with the module and function that find it below `--root`."""


def register(name: str, function: str) -> None:
    """Make a set known that a function of one's own prepares, named as "MODULE.FUNCTION" (see `preparer.py`)."""
    PREPARERS[name] = function


def prepare(
    name: str, *, root: Path, out: Path, num_proc: int = 1, progress: Progress | None = None
) -> Summary:
    """Read the set `name` below `root`, validate every row, and write the folder `out`.

    `open_source(out, split=...)` reads the folder. Invalid rows have a line in `quarantine.jsonl` there. The folder is
    written atomically; until then finished work is kept in `OUT.unfinished`, and not done again.

    Args:
        root: Folder with the set's files as their publishers give them (docs/published-sets.md).

    Raises:
        ValueError: Unknown name, missing files, data in another layout, or no row that can be used.
    """
    if name not in PREPARERS:
        raise ValueError(
            f"no data set {name!r} can be prepared{suggestion(name, PREPARERS)} All: {', '.join(PREPARERS)}."
        )
    from vlmo.data.prepare.engine import prepare_set

    module, _, function = PREPARERS[name].rpartition(".")
    open_set = getattr(importlib.import_module(module), function)
    return prepare_set(name, open_set, root=root, out=out, num_proc=num_proc, progress=progress)


def labels_of(folder: Path) -> list[str]:
    """Return the answers or classes of a prepared set by number; ValueError if it is none, or its set has none."""
    file = Path(folder) / SUMMARY_FILE
    if not file.is_file():
        raise ValueError(
            f"{folder}: no {SUMMARY_FILE}; expected a folder that `vlmo data prepare` has written"
        )
    with naming_damage(file, advice="prepare the set anew"):
        labels = json.loads(file.read_text(encoding="utf-8")).get("labels")
    if not labels:
        raise ValueError(
            f"{folder}: this set has no answers or classes; prepare one for the task that you want"
        )
    return labels
