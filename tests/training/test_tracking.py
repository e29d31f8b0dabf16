from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlmo.training.tracking import Tracker, check_report_to, read_metrics


def track(run_dir, *, step: int, upto: int, console: Console | None = None, **services) -> None:
    with Tracker(run_dir, step=step, max_steps=9, title="toy", console=console, **services) as tracker:
        for number in range(step + 1, upto + 1):
            tracker.advance(number)
            tracker.log_training(number, losses={"loss": 1 / number}, numbers={"samples_per_s": 12.0})
            if number % 2 == 0:
                metrics = {"test/retrieval/ir_at_1": 0.5, "test/retrieval/tr_at_1": 0.25}
                tracker.log_evaluation(number, metrics, data="toys")


def test_each_line_tells_of_one_step(tmp_path) -> None:
    track(tmp_path, step=0, upto=2)
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 1.0, "samples_per_s": 12.0},
        {"step": 2, "loss": 0.5, "samples_per_s": 12.0},
        {"step": 2, "test/retrieval/ir_at_1": 0.5, "test/retrieval/tr_at_1": 0.25},
    ]


def test_lines_after_the_restored_step_are_removed(tmp_path) -> None:
    track(tmp_path, step=0, upto=5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # the process died here
    track(tmp_path, step=3, upto=4)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 2, 3, 4, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_tensorboard_has_each_step_once_after_a_resume(tmp_path) -> None:
    track(tmp_path, step=0, upto=5)
    track(tmp_path, step=3, upto=6)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("test/retrieval/ir_at_1")] == [2, 4, 6]


class Service(ModuleType):
    """The part of wandb's and trackio's interface that is used, with a record of the calls."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.starts, self.logged, self.finished = [], [], 0

    def init(self, *, project, name, config, resume, **others) -> SimpleNamespace:
        self.starts.append({"project": project, "name": name, "config": config, "resume": resume, **others})
        return SimpleNamespace(log=self.logged.append, finish=self.finish, define_metric=self.define_metric)

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.starts[-1]["steps"] = (name, step_metric)

    def finish(self) -> None:
        self.finished += 1


def test_services_get_the_same_numbers_and_resume_the_same_run(tmp_path, monkeypatch) -> None:
    services = {name: Service(name) for name in ("wandb", "trackio")}
    for name, service in services.items():
        monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    check_report_to(list(services))
    for step, upto in ((0, 2), (2, 3)):
        track(tmp_path, step=step, upto=upto, report_to=list(services), settings={"seed": 3})
    for service in services.values():
        assert service.logged == [
            {"step": 1, "train/loss": 1.0, "train/samples_per_s": 12.0},
            {"step": 2, "train/loss": 0.5, "train/samples_per_s": 12.0},
            {"step": 2, "test/retrieval/ir_at_1": 0.5, "test/retrieval/tr_at_1": 0.25},
            {"step": 3, "train/loss": 1 / 3, "train/samples_per_s": 12.0},
        ]
        first, second = service.starts
        assert first == second
        assert first["name"].startswith(f"{tmp_path.name}-")
        assert (first["resume"], first["config"], service.finished) == ("allow", {"seed": 3}, 2)
    assert services["wandb"].starts[0]["project"] == "mine"
    assert services["wandb"].starts[0]["steps"] == ("*", "step")
    assert services["wandb"].starts[0]["id"] == services["trackio"].starts[0]["name"].removeprefix(f"{tmp_path.name}-")
    assert services["trackio"].starts[0]["project"] == "vlmo"


def test_service_that_is_not_installed_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ModuleNotFoundError, match="trackio, which is not installed; pip install trackio"):
        check_report_to(["trackio"])
