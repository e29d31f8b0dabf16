from __future__ import annotations

import pytest

from vlmo.training.schedule import ScheduleConfig, lr_at


@pytest.mark.parametrize(
    ("kind", "min_ratio", "expected"),
    [
        # Two steps of warm-up, then four of decay; the seventh number is what a step beyond the end would have.
        ("linear", 0.0, [1.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0]),
        ("linear", 0.5, [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0]),
        ("cosine", 0.0, [1.0, 2.0, 2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5, 0.0]),
        ("constant", 0.0, [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
    ],
)
def test_lr_follows_the_curve_worked_out_by_hand(kind, min_ratio, expected) -> None:
    config = ScheduleConfig(warmup_steps=2, kind=kind, min_ratio=min_ratio)
    assert [lr_at(step, base_lr=2.0, max_steps=6, config=config) for step in range(7)] == pytest.approx(expected)


def test_lr_without_warmup_starts_at_the_full_rate() -> None:
    assert lr_at(0, base_lr=3.0, max_steps=10, config=ScheduleConfig()) == 3.0


def test_lr_of_a_run_shorter_than_its_warmup_only_rises() -> None:
    config = ScheduleConfig(warmup_steps=100)
    assert [lr_at(step, base_lr=1.0, max_steps=3, config=config) for step in range(3)] == [0.01, 0.02, 0.03]


@pytest.mark.parametrize("wrong", [{"warmup_steps": -1}, {"kind": "step"}, {"min_ratio": 1.5}])
def test_schedule_names_a_wrong_setting(wrong) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        ScheduleConfig(**wrong)
