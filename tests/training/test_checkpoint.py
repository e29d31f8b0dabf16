import json
import logging
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from tests.training.toy_run import make_trainer, saved_tensors
from torch import nn

from vlmo.recipes import find_recipe
from vlmo.training import TrainingError, checkpoint
from vlmo.training.checkpoint import (
    MAY_DIFFER,
    StateStore,
    claim_run_folder,
    newest_state,
    training_tensors,
)

TENSORS = "shard-00001-model-00001-of-00001.safetensors"


class CrashError(Exception):
    """Stands for the power cord: whatever the code does, it does no more."""


def save(folder: Path, step: int, *, keep: int = 2) -> Path:
    store = StateStore(folder, keep=keep)
    store.save({"w": torch.full((3,), float(step))}, progress={"step": step})
    store.wait()
    return folder / f"step_{step:08d}"


def load(folder: Path) -> tuple[int, float]:
    state = newest_state(folder)
    assert state is not None
    return state[1]["step"], saved_tensors(state[0])["w"][0].item()


def full_disk(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def trained(*, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A module of which only `first` is ever used."""
    torch.manual_seed(steps)
    module = nn.ModuleDict({"first": nn.Linear(3, 2), "second": nn.Linear(3, 2)})
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1 * (steps + 1))
    for _ in range(steps):
        module["first"](torch.ones(3)).sum().backward()
        optimizer.step()
    return module, optimizer


@pytest.mark.parametrize("steps", [0, 2])
def test_state_comes_back(tmp_path, steps) -> None:
    module, optimizer = trained(steps=steps)
    expected = {name: value.clone() for name, value in module.state_dict().items()}
    store = StateStore(tmp_path, keep=1)
    store.save(training_tensors(module, optimizer), progress={"step": 7, "skipped": 1})
    with torch.no_grad():
        module["first"].weight.zero_()  # what comes after a save is not in it
    store.wait()
    state = newest_state(tmp_path)
    assert state == (tmp_path / "step_00000007", {"step": 7, "skipped": 1})
    other, other_optimizer = trained(steps=0)
    StateStore(tmp_path, keep=1).load(state[0], other, other_optimizer)
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
    assert other_optimizer.param_groups[0]["lr"] == 0.1  # the run's, not the state's
    for parameter, other_parameter in zip(module.parameters(), other.parameters(), strict=True):
        moments, other_moments = optimizer.state[parameter], other_optimizer.state[other_parameter]
        assert other_moments.keys() == moments.keys()
        assert all(torch.equal(moments[name], other_moments[name]) for name in moments)
    assert bool(other_optimizer.state[other["first"].weight]) == bool(steps)
    assert not other_optimizer.state[other["second"].weight]


def test_state_of_another_model_is_refused(tmp_path) -> None:
    store = StateStore(tmp_path, keep=1)
    store.save(training_tensors(*trained(steps=1)), progress={"step": 1})
    store.wait()
    module = nn.ModuleDict({"first": nn.Linear(3, 2)})
    with pytest.raises(
        TrainingError, match=r"2 of them, such as objective\.second\.bias \(only in the state\)"
    ):
        store.load(tmp_path / "step_00000001", module, torch.optim.AdamW(module.parameters()))


def test_save_that_fails_is_reported_by_the_next_one(tmp_path, monkeypatch) -> None:
    store = StateStore(tmp_path, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        store.save({"w": torch.zeros(3)}, progress={"step": 1})
        with pytest.raises(
            TrainingError, match=r"No space left on device.*nothing was saved yet; the same command"
        ):
            store.wait()
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        store.save({"w": torch.zeros(3)}, progress={"step": 2})
        with pytest.raises(
            TrainingError, match=r"No space left on device.*the last saved state is .*step_00000001"
        ):
            store.save({"w": torch.zeros(3)}, progress={"step": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"], "nothing is left of it"
    store.save({"w": torch.full((3,), 4.0)}, progress={"step": 4})
    store.wait()
    assert load(tmp_path) == (4, 4.0)


def test_newest_states_are_kept(tmp_path) -> None:
    for step in (2, 10, 9):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000009", "step_00000010"]
    assert load(tmp_path) == (10, 10.0)


STAGES = [
    (Path, "write_text", 0),  # no manifest
    *[
        (os, "fsync", call) for call in range(5)
    ],  # tensors, all files and their folder, then the parent
    (Path, "replace", 0),  # the new state
    (Path, "replace", 1),  # the oldest state, before it is removed
    (shutil, "rmtree", 0),  # the oldest state, half removed
]


@pytest.mark.parametrize(
    ("owner", "name", "call"), STAGES, ids=[f"{name}{call}" for _, name, call in STAGES]
)
def test_crash_at_any_stage_of_a_save_leaves_a_loadable_state(
    tmp_path, monkeypatch, owner, name, call
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    real, count = getattr(owner, name), iter(range(10**6))

    def crashing(*args, **kwargs):
        if next(count) == call:
            raise CrashError
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crashing)
        with pytest.raises(TrainingError, match="CrashError"):
            save(tmp_path, 3)
    assert load(tmp_path) in [(2, 2.0), (3, 3.0)]
    assert all(not path.suffix for path in tmp_path.iterdir()), "leftovers are cleaned up"
    save(tmp_path, 4)
    assert load(tmp_path) == (4, 4.0)


def test_half_written_state_is_not_used(tmp_path) -> None:
    path = save(tmp_path, 1)
    half = (
        tmp_path / ".step_00000002.vlmo-aside"
    )  # what a kill leaves: one share of two, and no manifest
    half.mkdir()
    shutil.copy(path / TENSORS, half)
    assert load(tmp_path) == (1, 1.0)
    assert not half.exists()
    half.mkdir()
    (half / TENSORS.replace("1", "2", 1)).write_bytes(b"half")
    save(tmp_path, 2)  # a store that does not look for states first
    assert load(tmp_path) == (2, 2.0)
    assert {path.name for path in (tmp_path / "step_00000002").iterdir()} == {
        TENSORS,
        "manifest.json",
    }


DAMAGES = {  # file, and what becomes of its content; None: it is gone
    "cut": (TENSORS, lambda content: content[: len(content) // 2]),
    "flipped": (TENSORS, lambda content: content[:-9] + b"x" + content[-8:]),
    "gone": (TENSORS, None),
    "another file": ("shard-00002-model-00001-of-00001.safetensors", lambda _: b""),
    "manifest cut": ("manifest.json", lambda content: content[:5]),
    "manifest of zeros": ("manifest.json", lambda content: b"\0" * len(content)),
    "manifest gone": ("manifest.json", None),
    "flipped step": ("manifest.json", lambda content: content.replace(b'"step": 2', b'"step": 3')),
    "flipped name of a sum": (
        "manifest.json",
        lambda content: content.replace(b'"sha256": "', b'"sha257": "'),
    ),
    "manifest is a list": ("manifest.json", lambda _: b"[]"),
    "manifest of numbers": ("manifest.json", lambda _: b'{"files": 1, "progress": 2, "sha256": 3}'),
    "deep manifest": ("manifest.json", lambda _: b"[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_falls_back_to_the_one_before_with_a_warning(
    tmp_path, caplog, damage
) -> None:
    save(tmp_path, 1)
    name, change = DAMAGES[damage]
    path = save(tmp_path, 2) / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path) == (1, 1.0)
    assert "step_00000002 is damaged" in caplog.text
    # It is out of the way: neither counted among the states that are kept, nor in the way of a new one.
    save(tmp_path, 2)
    assert load(tmp_path) == (2, 2.0)
    assert {path.name for path in tmp_path.iterdir()} == {
        "step_00000001",
        "step_00000002",
        "step_00000002.damaged",
    }


def test_run_whose_states_are_all_damaged_is_not_started_again_in_silence(tmp_path) -> None:
    (save(tmp_path, 1) / TENSORS).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"every training state .* is damaged: step_00000001"
        ):
            newest_state(tmp_path)


@pytest.mark.parametrize("name", ["model", "state", "metrics.jsonl", "state/step_00000009"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_run_does_not_go_on_over_links_and_pipes(tmp_path, name, kind) -> None:
    claim_run_folder(tmp_path / "run", recipe_json="{}", write=True)
    (tmp_path / "precious" / "state").mkdir(parents=True)
    (tmp_path / "precious" / "recipe.json").touch()
    planted = tmp_path / "run" / name
    planted.parent.mkdir(exist_ok=True)
    planted.symlink_to(tmp_path / "precious" / "state") if kind == "link" else os.mkfifo(planted)
    with pytest.raises(ValueError, match=rf"{name} is a link or no regular file"):
        claim_run_folder(tmp_path / "run", recipe_json="{}", write=False)


def test_run_goes_on_with_states_on_another_disk_and_links_of_the_user(tmp_path) -> None:
    disk, run = tmp_path / "disk", tmp_path / "run"
    disk.mkdir()
    run.mkdir()
    (run / "state").symlink_to(disk)
    (run / "latest").symlink_to(disk / "nowhere")
    make_trainer(run).fit()
    assert make_trainer(run).fit().status == "already_finished"
    assert list(disk.glob("step_*"))
    assert (run / "state").is_symlink()


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000])
def test_damaged_recipe_is_named(tmp_path, content) -> None:
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(ValueError, match=r"recipe\.json is no JSON .*restore it"):
        claim_run_folder(tmp_path, recipe_json="{}", write=False)


def test_settings_that_change_no_result_may_change_and_are_kept(tmp_path, caplog) -> None:
    def claim(workers: int, *, size: int = 8, write: bool = True) -> int:
        recipe = {
            "loader": {"num_workers": workers, "size": size},
            "trainer": {"engine": {"compile": False}},
        }
        claim_run_folder(tmp_path, recipe_json=json.dumps(recipe), write=write)
        return json.loads((tmp_path / "recipe.json").read_text())["loader"]["num_workers"]

    assert claim(8) == 8
    assert claim(2, write=False) == 8
    with caplog.at_level(logging.INFO):
        assert claim(2) == 2
    assert "goes on with other settings: loader.num_workers was 8 and is now 2" in caplog.text
    with pytest.raises(ValueError, match=r"recipe: loader\.size was 8 and is now 9"):
        claim(1, size=9)


def test_names_of_settings_that_may_change_are_those_of_recipes() -> None:
    recipe = json.loads(find_recipe("base-stage3").to_json())
    for name in MAY_DIFFER:
        part = recipe
        for key in name.rstrip(".").split("."):
            part = part[key]


def test_states_wait_longer_than_a_hang_takes_to_be_noticed(tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(checkpoint, "world_size", lambda: 2)
    monkeypatch.setattr(checkpoint.dist, "new_group", lambda **settings: asked.append(settings))
    StateStore(tmp_path, keep=1)
    assert asked == [{"backend": "gloo", "timeout": timedelta(hours=4)}]


def test_run_folder_of_another_recipe_is_refused_by_the_names_of_what_differs(tmp_path) -> None:
    claim_run_folder(
        tmp_path,
        recipe_json='{"optimizer": {"lr": 0.1, "eps": 1}, "seed": 1, "gone": 1}',
        write=True,
    )
    differing = "gone is only in the old one; new is only in the new one; optimizer.lr was 0.1 and is now 0.2; give"
    with pytest.raises(ValueError, match=f"another recipe: {differing}"):
        claim_run_folder(
            tmp_path,
            recipe_json='{"optimizer": {"lr": 0.2, "eps": 1}, "seed": 1, "new": 1}',
            write=True,
        )
