"""DDP and FSDP2 on several processes do what one process does; what two have saved, one and four go on with."""

import functools
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.gloo import run_processes
from tests.distributed.toy_engines import MUON, STOP_AFTER, make_objective, one_update, run, whole
from vlmo.distributed import rank
from vlmo.training import EngineConfig, read_metrics
from vlmo.training.checkpoint import StateStore, newest_state
from vlmo.training.engine import Engine
from vlmo.training.errors import TrainingError

ATOL = 1e-5  # float32 sums in another order
BF16_ATOL = (
    0.05  # bf16 keeps 8 bits; on sharded blocks norms and scales have no more of them than matrices
)
MUON_ATOL = 1e-4  # Newton-Schulz steps are in bf16 and enlarge what rounds the other way; of updates up to 1.5e-3
DDP, FSDP = EngineConfig(), EngineConfig(data_parallel="fsdp")
CASES: dict[str, dict[str, Any]] = {
    "ddp": {"engine": DDP},
    "fsdp": {"engine": FSDP},
    "fsdp, accumulated": {"engine": FSDP, "accumulation": 2},
    "fsdp, compiled, checkpointed": {
        "engine": replace(FSDP, compile=True, activation_checkpointing=True),
        "num_hidden_layers": 1,
        "without": ("mlm", "itm"),  # each pass is traced
    },
    "fsdp, cached, checkpointed": {  # of four rows each, four and three have a false caption
        "engine": replace(FSDP, activation_checkpointing=True),
        "cache_chunk": 1,
        "false": True,
    },
    "fsdp, bf16": {"engine": FSDP, "precision": "bf16"},
    "ddp, Muon": {"engine": DDP, "config": MUON},
    "fsdp, Muon": {"engine": FSDP, "config": MUON},
}
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {"engine": DDP},
    "fsdp": {"engine": FSDP},
    "fsdp, Muon": {"engine": FSDP, "optimizer": MUON},
}


def failed_save(folder: Path) -> dict[str, str]:
    """The error of each process when the disk of the second one is full."""

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    store, fsync = StateStore(folder, keep=1), os.fsync
    try:
        if rank() == 1:
            os.fsync = full_disk
        store.save(
            {name: torch.ones(4) for name in "ab"}, progress={"step": 1}
        )  # one for each process
        store.wait()
    except TrainingError as error:
        return {"message": str(error)}
    finally:
        os.fsync = fsync
    return {}


def two_processes(folder: str) -> dict[str, dict[str, Any]]:
    """All that two processes are asked for: they take seconds to start, so they start once."""
    for name, settings in RUNS.items():
        result = run(Path(folder) / name, **settings, stops=True)
        assert (result.status, result.steps) == ("stopped", STOP_AFTER)
    updates = {name: one_update(**case) for name, case in CASES.items()}
    updates["buffers"] = {
        name: buffers_of(engine) for name, engine in (("ddp", DDP), ("fsdp", FSDP))
    }
    return updates | {"failed save": failed_save(Path(folder) / "failed")}


def buffers_of(engine: EngineConfig) -> dict[str, torch.Tensor]:
    """What a state, an evaluation and the model folder hold of a statistic that differs between processes."""
    objective = make_objective()
    objective.model.register_buffer("statistic", torch.zeros(1))
    running = Engine(objective, config=engine)

    def evaluated() -> dict[str, torch.Tensor]:
        with running.evaluation() as model:
            return {"model.statistic": model.statistic.clone()}

    found = {}
    for name, look in (
        (
            "state",
            lambda: running.training_state(torch.optim.SGD(objective.parameters()))["objective"],
        ),
        ("evaluation", evaluated),
        (
            "weights",
            lambda: {"model.statistic": running.weights().get("statistic", torch.zeros(1))},
        ),
    ):
        objective.model.statistic.fill_(rank() + 1.0)
        found[name] = whole(look()["model.statistic"])
    return found


def go_on(folder: str) -> None:
    for name, settings in RUNS.items():
        assert run(Path(folder) / name, **settings).status == "finished"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def processes(folder) -> list[dict[str, dict[str, Any]]]:
    """Results of two processes, which also leave stopped runs in `folder`."""
    return run_processes(two_processes, str(folder))


@functools.cache
def alone(**changes: Any) -> dict[str, dict[str, Any]]:
    """The update of one process, neither compiled nor checkpointed."""
    return one_update(DDP, **changes)


# Torch's compiler looks at this attribute of every input, and silences the warning unless warnings are errors.
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"
)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_update_as_one(case, processes) -> None:
    atol = BF16_ATOL if "bf16" in case else MUON_ATOL if "Muon" in case else ATOL
    expected = alone(**{name: value for name, value in CASES[case].items() if name != "engine"})
    results = [process[case] for process in processes]
    torch.testing.assert_close(results[0]["weights"], expected["weights"], atol=atol, rtol=0)
    assert sum(gradient.abs().sum() for gradient in expected["gradients"].values()) > 1
    for result in results:
        result.pop("weights", None)
        torch.testing.assert_close(
            result["losses"]["loss"], expected["losses"]["loss"], atol=atol, rtol=0
        )
        torch.testing.assert_close(result["after"], expected["after"], atol=atol, rtol=atol)
        rtol = 0.1 if "bf16" in case else 1e-4
        torch.testing.assert_close(result["gradients"], expected["gradients"], atol=atol, rtol=rtol)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_statistics_are_those_of_the_main_process_in_states_evaluations_and_models(
    processes, name
) -> None:
    for process in processes:
        found = process["buffers"][name]
        assert (found["state"], found["evaluation"]) == (1.0, 1.0)
    assert processes[0]["buffers"][name]["weights"] == 1.0  # only the main one writes the folder


@pytest.fixture(scope="module")
def resumed(processes, folder) -> dict[int, Path]:
    """By number of processes: the folder where that many have gone on with what two had saved."""
    folders = {number: folder.with_name(f"on_{number}") for number in (1, 4)}
    for number, copy in folders.items():
        shutil.copytree(folder, copy)
        if number == 1:
            go_on(str(copy))
        else:
            run_processes(go_on, str(copy), world_size=number)
    return folders


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory) -> dict[str, Path]:
    """By name: the folder where one process has trained from start to end."""
    folder = tmp_path_factory.mktemp("whole")
    for name, settings in RUNS.items():
        if name != "fsdp":  # as "ddp"
            run(folder / name, **settings | {"engine": DDP})
    return {name: folder / ("ddp" if name == "fsdp" else name) for name in RUNS}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("name", RUNS)
def test_run_saved_by_two_processes_goes_on_with_another_number(
    resumed, whole_runs, name, world_size
) -> None:
    run_dir, whole_run = resumed[world_size] / name, whole_runs[name]
    atol, rel = (10 * MUON_ATOL, 1e-2) if "Muon" in name else (ATOL, 1e-4)  # six updates
    lines, expected = read_metrics(run_dir), read_metrics(whole_run)
    assert (
        [line["step"] for line in lines]
        == [line["step"] for line in expected]
        == [1, 2, 3, 4, 5, 6, 6]
    )
    for line, other in zip(lines, expected, strict=True):
        for word in ("sample_ids_digest", "precision"):
            assert line.get(word) == other.get(word)
        for figure in line.keys() - {"seconds", "samples_per_s", "sample_ids_digest", "precision"}:
            assert line[figure] == pytest.approx(
                other[figure], abs=atol, rel=rel if figure == "grad_norm" else 0
            )
    weights, expected_weights = (
        load_file(folder / "model" / "model.safetensors") for folder in (run_dir, whole_run)
    )
    torch.testing.assert_close(weights, expected_weights, atol=atol, rtol=0)


def share_of(rank: int) -> str:
    return f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"


def test_each_process_writes_its_share_of_a_state(processes, folder) -> None:
    for name in ("ddp", "fsdp"):
        state = folder / name / "state" / f"step_{STOP_AFTER:08d}"
        assert {path.name for path in state.iterdir()} == {
            *map(share_of, range(2)),
            "manifest.json",
        }
        shares = [(state / share_of(rank)).stat().st_size for rank in range(2)]
        assert min(shares) > max(shares) / 3


def test_state_that_lacks_the_share_of_one_process_is_not_used(
    processes, folder, tmp_path, caplog
) -> None:
    states = shutil.copytree(folder / "fsdp" / "state", tmp_path / "state")
    (states / f"step_{STOP_AFTER:08d}" / share_of(1)).unlink()
    with caplog.at_level(logging.WARNING):
        state = newest_state(states)
    assert state is not None
    assert state[0].name == "step_00000002"
    assert f"step_{STOP_AFTER:08d} is damaged" in caplog.text


def test_process_that_cannot_write_its_share_is_named_on_all(processes, folder) -> None:
    for process in processes:
        message = process["failed save"]["message"]
        assert "could not be written by process 1 (No space left on device)" in message
    assert not list((folder / "failed").iterdir())
