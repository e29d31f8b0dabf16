"""Facts about an index: the file `index.json` in its folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

from vlmo.folder import JsonObject, read_json
from vlmo.folder.atomic import write_file
from vlmo.retrieval.presence import Background
from vlmo.retrieval.store import Approximate, DamagedError

INDEX_FILE = "index.json"
VERSION = 3


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class IndexFacts:
    """Facts about an index, which its next run and its readers go by.

    Attributes:
        model: "folder", "fingerprint" and "dim" of the model that embeds; empty before the first run.
        inputs: Folders, files and patterns whose images it holds.
        metadata: Table of captions and columns for files.
        store_bytes: True if it keeps the bytes of image files.
        ocr: True if text in images is read.
        approximate: Parameters and recall of the approximate index (`make_approximate`); None without one.
        background: Fields of a `Background`, by which searches tell probabilities; None if it was not fitted.
        skipped: Number of files that are not read, by suffix.
        folders: Identities of the inputs that are folders.
        mounts: Folders below them that are disks of their own.
        complete: False while images are added, and after a run that was cut off.
        images: Number of images after the last run.
        bad: Number of files that the last run could not use.
        updated: Time at which a run ended last; None before the first.
        metric: Similarity of vectors.
    """

    created: str = field(default_factory=now)
    model: JsonObject = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    metadata: str | None = None
    store_bytes: bool = False
    ocr: bool = False
    approximate: JsonObject | None = None
    background: JsonObject | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    mounts: list[str] = field(default_factory=list)
    complete: bool = True
    images: int = 0
    bad: int = 0
    updated: str | None = None
    version: int = VERSION
    metric: str = "cosine"

    def write(self, folder: Path) -> None:
        """Write them into the folder of an index, in one step."""
        write_file(folder / INDEX_FILE, json.dumps(asdict(self), indent=1))


def read_facts(folder: Path) -> IndexFacts:
    """Read the facts of an index.

    Raises:
        DamagedError: The folder is no index, or one of another version.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise DamagedError(
            f"{folder} is no index: it has no {INDEX_FILE}. Make one: vlmo index MODEL IMAGES --out DIR"
        )
    try:
        content = read_json(path)
    except ValueError as error:
        raise DamagedError(f"{error}; build the index anew") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise DamagedError(
            f"{path} has version {version}; this program reads {VERSION}. Index the images again."
        )
    names = {column.name for column in fields(IndexFacts)}
    facts = IndexFacts(**{name: value for name, value in content.items() if name in names})
    try:
        for name in ("fingerprint", "folder", "dim"):
            facts.model[name]
        if facts.approximate is not None:
            Approximate(**facts.approximate["search"])
        if facts.background is not None:
            Background(**facts.background)
    except (KeyError, TypeError) as error:
        raise DamagedError(
            f"{folder}: the index is damaged, it lacks {error}; build it anew"
        ) from error
    return facts
