from __future__ import annotations

import io
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlmo.training import tracking
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


def test_skipped_step_is_valid_json_and_names_its_samples(tmp_path, caplog) -> None:
    with Tracker(tmp_path, step=0, max_steps=9, title="toy", console=None) as tracker:
        losses = {"loss": float("nan"), "itc": 1.5}
        tracker.log_skipped(4, losses=losses, grad_norm=float("inf"), sample_ids=[3, 8], skipped=2)
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {
        "step": 4,
        "skipped": 2,
        "losses": {"loss": "nan", "itc": 1.5},
        "grad_norm": "inf",
        "sample_ids": [3, 8],
    }
    assert "step 4 was skipped" in caplog.text
    assert "[3, 8]" in caplog.text


def test_lines_stand_in_for_the_bar_without_a_terminal(tmp_path, monkeypatch) -> None:
    file = Console(file=io.StringIO(), force_terminal=False)
    track(tmp_path, step=0, upto=3, console=file)
    assert file.file.getvalue() == ""  # too soon
    monkeypatch.setattr(tracking, "LINE_EVERY_S", 0.0)
    track(tmp_path, step=3, upto=4, console=file)
    assert "toy: 4 of 9, loss 0.25 | 12 samples/s, " in file.file.getvalue()
    track(tmp_path, step=4, upto=5, console=file, note=lambda step: f"{9 - step} to the end")
    assert "toy: 5 of 9, 4 to the end, loss 0.2 | 12 samples/s, " in file.file.getvalue()


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
