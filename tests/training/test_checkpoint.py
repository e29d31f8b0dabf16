from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from vlmo.training.checkpoint import claim_run_folder, newest_state, save_state


class CrashError(Exception):
    """Stands for the power cord: whatever the code does, it does no more."""


def save(folder: Path, step: int, *, keep: int = 2) -> Path:
    return save_state(folder, tensors={"w": torch.full((3,), float(step))}, progress={"step": step}, keep=keep)


def load(folder: Path) -> tuple[int, float]:
    state = newest_state(folder)
    assert state is not None
    return state.progress["step"], state.tensors()["w"][0].item()


def crash_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, call: int) -> None:
    """Lets the first `call` calls of `owner.name` pass and crashes in the next."""
    real, count = getattr(owner, name), iter(range(10**6))

    def crashing(*args, **kwargs):
        if next(count) == call:
            raise CrashError
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, crashing)


def test_run_without_a_state_has_none(tmp_path) -> None:
    assert newest_state(tmp_path / "state") is None


def test_state_comes_back(tmp_path) -> None:
    tensors = {"a": {"b": torch.randn(2, 3)}, "groups": [{"lr": 0.1, "name": "x"}]}
    path = save_state(tmp_path, tensors=tensors, progress={"step": 7, "skipped": 1}, keep=1)
    state = newest_state(tmp_path)
    assert state is not None
    assert (state.path, state.progress) == (path, {"step": 7, "skipped": 1})
    assert torch.equal(state.tensors()["a"]["b"], tensors["a"]["b"])
    assert state.tensors()["groups"] == tensors["groups"]


def test_newest_states_are_kept(tmp_path) -> None:
    for step in (2, 10, 9):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000009", "step_00000010"]
    assert load(tmp_path) == (10, 10.0)


STAGES = [
    (torch, "save", 0),  # nothing written
    (Path, "write_text", 0),  # no manifest
    *[(os, "fsync", call) for call in range(4)],  # two files and their folder, then the parent after the rename
    (Path, "replace", 0),  # the new state
    (Path, "replace", 1),  # the oldest state, before it is removed
    (shutil, "rmtree", 0),  # the oldest state, half removed
]


@pytest.mark.parametrize(("owner", "name", "call"), STAGES, ids=[f"{name}{call}" for _, name, call in STAGES])
def test_crash_at_any_stage_of_a_save_leaves_a_loadable_state(tmp_path, monkeypatch, owner, name, call) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    with monkeypatch.context() as patch:
        crash_at(patch, owner, name, call=call)
        with pytest.raises(CrashError):
            save(tmp_path, 3)
    assert load(tmp_path) in [(2, 2.0), (3, 3.0)]
    assert all(not path.suffix for path in tmp_path.iterdir()), "leftovers are cleaned up"
    save(tmp_path, 4)
    assert load(tmp_path) == (4, 4.0)


def test_save_that_is_cut_off_by_truncation_never_gets_its_name(tmp_path, monkeypatch) -> None:
    save(tmp_path, 1)

    def half(value, path):
        path.write_bytes(b"half")
        raise CrashError

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(CrashError):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    (tmp_path / ".step_00000002.vlmo-aside").mkdir()  # what a kill leaves
    (tmp_path / ".step_00000002.vlmo-aside" / "tensors.pt").write_bytes(b"half")
    assert load(tmp_path) == (1, 1.0)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("tensors.pt", lambda content: content[: len(content) // 2]),
        ("tensors.pt", lambda content: content[:-9] + b"x" + content[-8:]),
        ("manifest.json", lambda content: content[:5]),
        ("manifest.json", lambda content: b"\0" * len(content)),
        ("tensors.pt", None),
        ("manifest.json", None),
    ],
    ids=["cut", "flipped", "cut manifest", "zeros", "gone", "manifest gone"],
)
def test_damaged_state_falls_back_to_the_one_before_with_a_warning(tmp_path, caplog, file, damage) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path) == (1, 1.0)
    assert "step_00000002 is damaged" in caplog.text
    # It is out of the way: neither counted among the states that are kept, nor in the way of a new one.
    save(tmp_path, 2)
    assert load(tmp_path) == (2, 2.0)
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000001", "step_00000002", "step_00000002.damaged"}


def test_run_whose_states_are_all_damaged_is_not_started_again_in_silence(tmp_path) -> None:
    (save(tmp_path, 1) / "tensors.pt").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"every training state .* is damaged: step_00000001"):
            newest_state(tmp_path)


def test_state_runs_no_pickled_code(tmp_path) -> None:
    save_state(tmp_path, tensors={"w": CrashError()}, progress={"step": 1}, keep=1)
    state = newest_state(tmp_path)
    assert state is not None
    with pytest.raises(Exception, match="Weights only load failed"):
        state.tensors()


def test_run_folder_keeps_its_recipe(tmp_path) -> None:
    recipe = {"optimizer": {"lr": 0.1, "eps": 1e-8}, "seed": 1}
    claim_run_folder(tmp_path / "run", recipe_json=json.dumps(recipe), write=True)
    claim_run_folder(tmp_path / "run", recipe_json=json.dumps(recipe, indent=2, sort_keys=True), write=True)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text()) == recipe


def test_run_folder_of_another_recipe_is_refused_by_the_names_of_what_differs(tmp_path) -> None:
    claim_run_folder(tmp_path, recipe_json='{"optimizer": {"lr": 0.1, "eps": 1}, "seed": 1, "gone": 1}', write=True)
    with pytest.raises(ValueError, match="another recipe") as caught:
        claim_run_folder(tmp_path, recipe_json='{"optimizer": {"lr": 0.2, "eps": 1}, "seed": 1, "new": 1}', write=True)
    message = str(caught.value)
    assert "gone is only in the old one; new is only in the new one; optimizer.lr was 0.1 and is now 0.2" in message
    assert "give a new run folder" in message
    assert "eps" not in message
