"""What a run folder keeps so that the same command goes on where the last one ended.

A folder is written aside, flushed to the disk and renamed, so that under its final name it is whole or not there at
all. A training state also carries checksums: one that the disk damaged later is set aside, and the one before is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmo.folder import remove_folder, remove_leftovers, write_file, write_folder
from vlmo.training.errors import TrainingError

logger = logging.getLogger(__name__)

TENSORS = "tensors.pt"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SavedState:
    """A training state on disk whose checksums were right."""

    path: Path
    progress: dict[str, Any]
    """Step number and counters."""

    def tensors(self) -> dict[str, Any]:
        """What was given to `save_state`, on the CPU."""
        return torch.load(self.path / TENSORS, map_location="cpu", weights_only=True)


def state_path(folder: Path, step: int) -> Path:
    """Where the state of a step lies."""
    return folder / f"step_{step:08d}"


def save_state(folder: Path, *, tensors: Mapping[str, Any], progress: Mapping[str, Any], keep: int) -> Path:
    """Writes the state `folder`/step_00001234 and removes all but the `keep` newest states; returns the new one's path.

    Args:
        tensors: State dictionaries, readable without running pickled code (tensors, numbers, strings, containers).
        progress: Ready for JSON; `progress["step"]` names the state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = state_path(folder, progress["step"])
    with write_folder(target) as aside:
        torch.save(dict(tensors), aside / TENSORS)
        manifest = {"files": {TENSORS: _fingerprint(aside / TENSORS)}, "progress": dict(progress)}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for old in _states(folder)[:-keep]:
        remove_folder(old)  # half a state must not look like a damaged one
    return target


def newest_state(folder: Path) -> SavedState | None:
    """The newest undamaged state in `folder`, or None if there has never been one.

    Newer states that are damaged are renamed to step_00001234.damaged, each with a warning. Leftovers of interrupted
    saves are removed.

    Raises:
        TrainingError: There are states, and all of them are damaged.
    """
    remove_leftovers(folder)
    damaged = sorted(folder.glob("*.damaged"))
    for path in reversed(_states(folder)):
        try:
            return SavedState(path, _verify(path))
        except (OSError, ValueError, KeyError) as problem:
            logger.warning("training state %s is damaged (%s); going back to the one before it", path, problem)
            damaged.append(_set_aside(path))
    if damaged:
        raise TrainingError(
            f"every training state in {folder} is damaged: {', '.join(path.name for path in damaged)};"
            " restore one from a backup, or remove the run folder to start from the beginning"
        )
    return None


def claim_run_folder(run_dir: Path, *, recipe_json: str, write: bool) -> None:
    """Checks that `run_dir` is new or holds a run of the same recipe, and keeps the recipe there if `write`.

    Raises:
        ValueError: The folder holds another recipe; the message names the settings that differ.
    """
    path = run_dir / "recipe.json"
    if path.exists():
        differences = _differences(json.loads(path.read_text()), json.loads(recipe_json))
        if differences:
            raise ValueError(
                f"run folder {run_dir} holds a run with another recipe: {'; '.join(differences)};"
                " give a new run folder, or the recipe of the run to resume it"
            )
    elif write:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_file(path, recipe_json)


def _states(folder: Path) -> list[Path]:
    """Complete states, oldest first."""
    return sorted(path for path in folder.glob("step_*") if not path.suffix)


def _verify(path: Path) -> dict[str, Any]:
    """Progress of a state, or ValueError, KeyError or OSError if its files are not what was written."""
    manifest = json.loads((path / MANIFEST).read_text())
    for name, expected in manifest["files"].items():
        if _fingerprint(path / name) != expected:
            raise ValueError(f"{name} is not what was written")
    return manifest["progress"]


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _set_aside(path: Path) -> Path:
    damaged = path.with_name(f"{path.name}.damaged")
    if damaged.exists():
        shutil.rmtree(damaged)
    path.replace(damaged)
    return damaged


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """One phrase for each leaf that differs, with its dotted name."""
    if isinstance(old, dict) and isinstance(new, dict):
        phrases = []
        for key in sorted(old.keys() | new.keys()):
            inner = f"{name}.{key}" if name else key
            if key not in old or key not in new:
                phrases.append(f"{inner} is only in the {'new' if key in new else 'old'} one")
            else:
                phrases += _differences(old[key], new[key], inner)
        return phrases
    return [] if old == new else [f"{name} was {old!r} and is now {new!r}"]
