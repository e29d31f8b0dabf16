from __future__ import annotations

import pytest
from PIL import Image

from vlmo.demo import quickstart
from vlmo.demo.quickstart import BETWEEN_SECONDS, EVALUATION_SECONDS, RemainingTime

KNOWN = [20.0, 300.0, 100.0]
END_OF_SECOND = 100 + BETWEEN_SECONDS + EVALUATION_SECONDS


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(quickstart.time, "monotonic", lambda: now[0])
    return now


def train(remaining: RemainingTime, stage: int, clock, *, seconds: list[float], first_step: int = 0) -> list[float]:
    """Train a stage of one step for each known second; return the time to the end, without the rest of the stage."""
    max_steps = round(KNOWN[stage])
    note = remaining.note(stage, max_steps=max_steps)
    note(first_step)
    told = []
    for step, took in enumerate(seconds, start=first_step + 1):
        clock[0] += took
        assert note(step) == f"{remaining.to_end(stage + step / max_steps)} to the end"
        told.append(remaining.to_end(stage + 1).total_seconds())
    return told


def test_time_to_the_end_is_by_the_speed_of_this_machine(clock):
    remaining = RemainingTime(KNOWN)
    assert remaining.to_end(0).total_seconds() == 420 + 3 * BETWEEN_SECONDS + EVALUATION_SECONDS
    assert remaining.to_end(1.5).total_seconds() == 250 + 1.5 * BETWEEN_SECONDS + EVALUATION_SECONDS
    assert remaining.to_end(3).total_seconds() == EVALUATION_SECONDS
    # The first step is later than the others: workers start, the first batch is read.
    train(remaining, 0, clock, seconds=[30.0] + [2.0] * 19)
    clock[0] += 60  # between two stages
    told = train(remaining, 1, clock, seconds=[2.0] * 300)
    assert told[0] == pytest.approx(2 * END_OF_SECOND, rel=0.05)
    assert told[-1] == pytest.approx(2 * END_OF_SECOND, rel=0.01)


def test_other_work_on_the_machine_counts_while_it_lasts(clock):
    told = train(RemainingTime(KNOWN), 1, clock, seconds=[3.0] * 150 + [1.0] * 150)
    assert told[149] == pytest.approx(3 * END_OF_SECOND, rel=0.05)
    assert told[249] == pytest.approx(END_OF_SECOND, rel=0.2)
    assert told[299] == pytest.approx(END_OF_SECOND, rel=0.05)


def test_steps_before_an_interruption_took_no_time(clock):
    told = train(RemainingTime(KNOWN), 1, clock, seconds=[2.0] * 150, first_step=150)
    assert told[0] == END_OF_SECOND
    assert told[-1] == pytest.approx(2 * END_OF_SECOND, rel=0.05)


def test_a_seed_is_that_of_every_stage(tmp_path):
    recipes = quickstart.quickstart_recipes(tmp_path, seed=7)
    assert {recipe.seed for recipe in recipes.values()} == {7}


def test_examples_come_from_predictions():
    images = {name: Image.new("RGB", (4, 4)) for name in "uvwxyz"}
    predictions = [
        {"caption": "a", "image_id": "x", "rank": 2, "rerank_rank": 1, "rerank_found": [*"xzyuvw"], "found": [*"zxy"]},
        {"caption": "b", "image_id": "y", "rank": 6, "rerank_rank": 6, "rerank_found": [*"xzuvwy"], "found": [*"xzu"]},
        {"caption": "c", "image_id": "y", "rank": 1, "rerank_rank": 2, "rerank_found": [*"xyzuvw"], "found": [*"yzx"]},
    ]
    predictions = [row | {"query": "caption"} for row in predictions] + [{"query": "image"}]
    gained, lost, queries = quickstart.examples(predictions, images=images)
    assert (gained, lost) == ([{"text": "a", "dual": images["z"], "fusion": images["x"]}], 1)
    assert [(query["text"], query["correct"], query["rank"]) for query in queries] == [
        ("a", 0, 1),
        ("b", None, 6),
        ("c", 1, 2),
    ]
    assert queries[1]["images"] == [images[name] for name in "xzuvw"]
    assert queries[1]["answer"] is images["y"]
