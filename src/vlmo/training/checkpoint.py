"""Training states of a run folder: the same command goes on where the last one ended.

A state is an atomic write: a folder written aside, flushed to the disk and renamed. It also carries checksums: one that
the disk damaged later is renamed, and the one before is used.

All processes write a state together, each its own share (torch.distributed.checkpoint, in safetensors files, which hold
no code); any other number of processes can read it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import stat
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.storage import WriteResult

from vlmo.distributed import is_main, keep_until_exit, world_size
from vlmo.folder import JsonObject, file_in, read_json
from vlmo.folder.atomic import (
    lock_folder,
    path_aside,
    remove_folder,
    remove_leftovers,
    system_error,
    write_file,
    write_folder,
)
from vlmo.training.config import ParamGroup
from vlmo.training.errors import TrainingError
from vlmo.training.parallel import longest_wait

logger = logging.getLogger(__name__)

# A run of one process has no process group, and needs none.
warnings.filterwarnings(
    "ignore", message="torch.distributed is disabled, unavailable or uninitialized"
)

TensorTree = dict[str, Any]
"""Tensors in nested dictionaries, by the names of parameters."""
MAY_DIFFER = (
    "data.max_bad_share",
    "loader.num_workers",
    "trainer.engine.",
    "trainer.keep_states",
    "trainer.log_every",
    "trainer.save_every",
)
"""Prefixes of the names of settings that may be others when a run goes on."""
_NAMES = ("metrics.jsonl", "model", "quarantine.jsonl", "recipe.json", "tensorboard")
"""Names that a run reads or writes in its folder, beside `state` and hidden names; other links are the user's."""
_MANIFEST = "manifest.json"


class StateStore:
    """The training states of one run; every process holds one and calls its methods together with the others.

    Args:
        folder: Shared by all processes.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        # A group of its own: what the background thread sends must not mix with what the training sends.
        self._group = None
        if world_size() > 1:
            self._group = cast(
                "dist.ProcessGroup", dist.new_group(backend="gloo", timeout=longest_wait())
            )
            keep_until_exit(self._group)
        self._writing: tuple[_StateWriter, Future[object]] | None = None

    def save(self, tensors: TensorTree, *, progress: JsonObject) -> None:
        """Write the state `folder`/step_00001234 in the background; remove all but the `keep` newest.

        `tensors` are nested dictionaries, sharded or not, of which a copy is made; `progress` is ready for JSON, and
        its "step" names the state.

        Raises:
            TrainingError: The state before this one could not be written.
        """
        # One state at a time: a second copy of weights and moments might not fit the memory.
        self.wait()
        writer = _StateWriter(
            state_path(self.folder, progress["step"]), progress=dict(progress), keep=self.keep
        )
        future = dcp.async_save(tensors, storage_writer=writer, process_group=self._group)
        self._writing = writer, cast("Future[object]", future)

    def wait(self) -> None:
        """Return when the last state is complete; TrainingError if it could not be written."""
        if self._writing is not None:
            writer, future = self._writing
            self._writing = None
            with writer.explained():
                future.result()

    def last_saved(self, *, finish: bool) -> str:
        """Return the end of a message that names the state that a run goes on from.

        `finish` waits for a state that is being written.
        """
        with contextlib.suppress(TrainingError, RuntimeError, OSError):
            if finish:
                self.wait()
        return _last_saved(self.folder)

    def load(self, path: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Load weights and optimizer from a state that any number of processes wrote.

        Raises:
            TrainingError: It cannot be read, or its tensors are not those of this run.
        """
        reader = HuggingFaceStorageReader(str(path))
        try:
            # The metadata lies in the headers of the files: no tensor is read yet.
            saved_names = set(reader.read_metadata().state_dict_metadata)
            tensors, param_groups = _tensors_to_load(objective, optimizer, saved_names=saved_names)
            dcp.load(tensors, storage_reader=reader, process_group=self._group)
        except (CheckpointException, SafetensorError, LookupError, TypeError, ValueError) as error:
            cause = error
            if isinstance(error, CheckpointException):
                _, (cause, _) = min(error.failures.items())
            raise TrainingError(
                f"training state {path} cannot be read: {cause}; give a new run folder, or the version that wrote it"
            ) from error
        set_model_state_dict(objective, tensors["objective"])
        if param_groups:
            set_optimizer_state_dict(
                objective,
                optimizer,
                {"state": tensors["optimizer"], "param_groups": param_groups},
                options=StateDictOptions(strict=False),
            )


def _tensors_to_load(
    objective: nn.Module, optimizer: torch.optim.Optimizer, *, saved_names: set[str]
) -> tuple[TensorTree, list[ParamGroup]]:
    """Return tensors of a run that a state fills, and the settings of the optimizer (none without moments).

    Raises:
        LookupError: The state has other tensors.
    """
    param_groups: list[ParamGroup] = []
    tensors: TensorTree = {"objective": get_model_state_dict(objective)}
    names = {f"objective.{name}" for name in tensors["objective"]}
    if any(name.startswith("optimizer.") for name in saved_names):
        state = cast("TensorTree", get_optimizer_state_dict(objective, optimizer))
        param_groups = state["param_groups"]
        tensors["optimizer"] = {}
        for parameter, moments in state["state"].items():
            moment_names = {f"optimizer.{parameter}.{moment}" for moment in moments}
            # A parameter that no step has used yet has no moments, here as in the state.
            if min(moment_names) in saved_names:
                tensors["optimizer"][parameter] = moments
                names |= moment_names
    if differing := sorted(saved_names ^ names):
        place = "state" if differing[0] in saved_names else "run"
        raise LookupError(
            f"its tensors are others than this run's, {len(differing)} of them, "
            f"such as {differing[0]} (only in the {place})"
        )
    return tensors, param_groups


def training_tensors(objective: nn.Module, optimizer: torch.optim.Optimizer) -> TensorTree:
    """Return weights, buffers and optimizer state by the names of parameters; sharded where they are.

    Settings of the optimizer are left out: the recipe and the step give them.
    """
    tensors: TensorTree = {"objective": get_model_state_dict(objective)}
    # PyTorch would fill an empty state by a step of its own.
    if optimizer.state:
        tensors["optimizer"] = get_optimizer_state_dict(objective, optimizer)["state"]
    return tensors


def newest_state(folder: Path) -> tuple[Path, JsonObject] | None:
    """Return the newest undamaged state in `folder` and its progress, or None if there has never been one.

    Newer states that are damaged are renamed to step_00001234.damaged, with a warning. Leftovers of
    interrupted saves are removed.

    Raises:
        TrainingError: There are states, and all of them are damaged.
    """
    remove_leftovers(folder)
    damaged = sorted(folder.glob("*.damaged"))
    # Names of states sort by their steps.
    for path in reversed(_states(folder)):
        try:
            return path, _verified_progress(path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
            logger.warning(
                "training state %s is damaged (%s); going back to the one before it", path, problem
            )
            renamed = path.with_name(f"{path.name}.damaged")
            if renamed.exists():
                shutil.rmtree(renamed)
            damaged.append(path.replace(renamed))
    if damaged:
        raise TrainingError(
            f"every training state in {folder} is damaged: {', '.join(path.name for path in damaged)};"
            " restore one from a backup, or remove the run folder to start from the beginning"
        )
    return None


def claim_run_folder(run_dir: Path, *, recipe_json: str, write: bool) -> None:
    """Check that `run_dir` is new or holds a run of the same recipe, and keep the recipe there if `write`.

    Settings of the machine's use, or of when to give up, may differ (`MAY_DIFFER`).

    Raises:
        ValueError: The folder holds another recipe; the message names the settings that differ. Or a name that a run
            uses is a link, behind which files would be replaced, or a named pipe, which would be waited for.
    """
    _check_no_links(run_dir)
    path = run_dir / "recipe.json"
    if path.exists():
        try:
            recipe_before = read_json(path)
        except ValueError as error:
            raise ValueError(
                f"{error}; restore it from a backup, or give a new run folder"
            ) from error
        changes = differences(recipe_before, json.loads(recipe_json))
        refused = [phrase for name, phrase in changes if not name.startswith(MAY_DIFFER)]
        if refused:
            raise ValueError(
                f"run folder {run_dir} holds a run with another recipe: {'; '.join(refused)};"
                " give a new run folder, or the recipe of the run to resume it"
            )
        if not changes:
            return
        if write:
            phrases = "; ".join(phrase for _, phrase in changes)
            logger.info("%s goes on with other settings: %s", run_dir, phrases)
    if write:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_file(path, recipe_json)


def _check_no_links(run_dir: Path) -> None:
    """Raise ValueError if a name that a run uses is a link or a special file."""
    state = run_dir / "state"
    names = [run_dir / name for name in _NAMES]
    for entry in (*names, *run_dir.glob(".*"), state, *state.glob("*")):
        try:
            mode = entry.lstat().st_mode
        except FileNotFoundError:  # or the main process has just renamed it
            continue
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            continue
        # A disk for states is common; behind the link only states are replaced, and never those of
        # another run.
        is_states_disk = entry == state and state.is_dir()
        if not is_states_disk or (state.resolve().parent / "recipe.json").exists():
            raise ValueError(
                f"{entry} is a link or no regular file, and a run replaces it: put a copy there "
                "(state alone may be a link, to a folder that is not in a run folder)"
            )


def lock_run(run_dir: Path) -> contextlib.AbstractContextManager[object]:
    """Allow one run at a time in a run folder, else ValueError; the main process takes the lock."""
    if not is_main():
        return contextlib.nullcontext()
    return lock_folder(run_dir, work="training in this run folder")


def check_not_running(run_dir: Path) -> None:
    """Raise ValueError if a run is going on in the folder, or nothing may be written there."""
    with lock_run(run_dir):
        pass  # given back at once: `Trainer.fit` takes it again


def state_path(folder: Path, step: int) -> Path:
    """Return the folder of the state of a step."""
    return folder / f"step_{step:08d}"


class _StateWriter(HuggingFaceStorageWriter):
    """Writer of one state: the main process makes its folder, all write into it, the main one completes it."""

    def __init__(self, target: Path, *, progress: JsonObject, keep: int) -> None:
        super().__init__(str(path_aside(target)), save_distributed=True)
        self.target = target
        self.progress = progress
        self.keep = keep
        self._folder = contextlib.ExitStack()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        # The folder is made when the plans of all are there.
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._folder.enter_context(write_folder(self.target))
        return super().prepare_global_plan(plans)

    def write_data(
        self, plan: SavePlan, planner: SavePlanner
    ) -> torch.futures.Future[list[WriteResult]]:
        """Write this process's file; the main process gets its name and checksum."""
        # All tensors of a process are in one file.
        results = super().write_data(plan, planner).wait()
        if results:
            name = results[0].storage_data.relative_path
            checksum = _fingerprint(Path(self.path) / name)
            # All that the manifest needs: the name and the checksum.
            results = [dataclasses.replace(results[0], storage_data=(name, checksum))]
        written: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        written.set_result(results)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:  # noqa: ARG002 (of the base)
        files = dict(
            result.storage_data for process_results in results for result in process_results
        )
        manifest: JsonObject = {"files": files, "progress": self.progress}
        manifest["sha256"] = _digest_of(manifest)
        (Path(self.path) / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        self._folder.close()
        # Only when the new state is complete.
        for old in _states(self.target.parent)[: -self.keep]:
            # In one move: half a state must not look like a damaged one.
            remove_folder(old)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn a failure into one clear error, and leave nothing of the state."""
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(BaseException):
                self._folder.__exit__(type(error), error, error.__traceback__)
            if not isinstance(error, CheckpointException):
                raise
            process, (cause, _) = min(error.failures.items())
            if not isinstance(cause, Exception):
                raise cause from None  # such as an interrupt
            refused = system_error(cause)
            reason = f"{type(cause).__name__}: {cause}" if refused is None else refused.strerror
            raise TrainingError(
                f"training state {self.target} could not be written by process {process} ({reason}); "
                f"{_last_saved(self.target.parent)}"
            ) from cause


def _last_saved(folder: Path) -> str:
    newest = max(_states(folder), default=None)
    state = f"the last saved state is {newest}, and" if newest else "nothing was saved yet;"
    return f"{state} the same command goes on"


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*") if not path.suffix)


def _verified_progress(path: Path) -> JsonObject:
    manifest = dict(read_json(file_in(path, _MANIFEST)))
    digest = manifest.pop("sha256")
    checksums = dict(manifest["files"])
    # The manifest first: its checksums decide about all other files.
    if digest != _digest_of(manifest):
        raise ValueError(f"{_MANIFEST} is not what was written")
    names = checksums.keys() | {file.name for file in path.iterdir()}
    for name in names - {_MANIFEST}:
        if name not in checksums or _fingerprint(file_in(path, name)) != checksums[name]:
            raise ValueError(f"{name} is not what was written")
    return dict(manifest["progress"])


def _digest_of(manifest: JsonObject) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(old: object, new: object, name: str = "") -> list[tuple[str, str]]:
    """Return the dotted names of leaves of nested dictionaries that differ, with phrases that say how."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [(name, f"{name} was {old!r} and is now {new!r}")]
    changes = []
    for key in sorted(old.keys() | new.keys()):
        inner = f"{name}.{key}" if name else key
        if key not in old or key not in new:
            changes.append((inner, f"{inner} is only in the {'new' if key in new else 'old'} one"))
        else:
            changes += differences(old[key], new[key], inner)
    return changes
