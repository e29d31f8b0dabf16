import time

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlmo.training.tracking import Tracker, read_metrics


def track(run_dir, *, step: int, upto: int) -> None:
    with Tracker(run_dir, step=step, max_steps=9, title="toy", console=None) as tracker:
        for number in range(step + 1, upto + 1):
            tracker.log(number, {"loss": 1 / number, "samples_per_s": 12.0}, prefix="train/")
            tracker.advance(number)
            if number % 2 == 0:
                tracker.log(number, {"test/retrieval/ir_at_1": 0.5, "test/retrieval/tr_at_1": 0.25})


def test_each_line_tells_of_one_step(tmp_path) -> None:
    track(tmp_path, step=0, upto=2)
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 1.0, "samples_per_s": 12.0},
        {"step": 2, "loss": 0.5, "samples_per_s": 12.0},
        {"step": 2, "test/retrieval/ir_at_1": 0.5, "test/retrieval/tr_at_1": 0.25},
    ]


def test_each_step_is_there_once_after_a_resume(tmp_path) -> None:
    track(tmp_path, step=0, upto=5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # the process died here
    track(tmp_path, step=3, upto=6)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("test/retrieval/ir_at_1")] == [2, 4, 6]


def test_clock_that_is_set_back_between_two_starts_hides_no_step(tmp_path, monkeypatch) -> None:
    track(tmp_path, step=0, upto=3)
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    track(tmp_path, step=3, upto=6)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
