"""Every benchmark runs once at its smallest and writes a number that documents quote; peers compute what they claim.

Those of retrieval are in a file of their own, which another process runs.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tests.benchmarks.toy_benchmarks import number_at, quiet, run_small

import search
import search_engines
import stage3_step
import surroundings
from vectors import MadeVectors, Neighbours, Questions

TOLERANCE = 1e-5  # sums in another order


@pytest.mark.slow
@quiet
@pytest.mark.parametrize(
    ("name", "arguments", "path"),
    [
        (
            "dual_vs_fusion",
            "--preset tiny --counts 2 3 5 --shortlist 2 --batch 4 --threads 1",
            "rows/2/rerank/seconds",
        ),
        (
            "input_pipeline",
            "--samples 18 --image-size 64 --long-side 200 --batch-size 18 --turns 1 --min-crop 1",
            "pipelines/vlmo/ratio_to_open_clip_wall",
        ),
        ("parity", "--base --repeats 1 --threads 1", "import_base/peak_gib"),
        (
            "stage3_step",
            "--preset tiny --pairs 4 --rounds 1 --threads 1",
            "precisions/bf16/time_ratio",
        ),
    ],
)
def test_benchmark_writes_what_documents_quote(
    name, arguments, path, tmp_path, shared_folder
) -> None:
    assert number_at(path, run_small(name, arguments, tmp_path, shared_folder))


def test_search_gets_the_least_setting_that_reaches_the_recall() -> None:
    class Steps(search_engines.Engine):
        def search(self, query):
            reached = self.setting.effort >= 40 and self.setting.candidates >= 100
            return np.arange(10 if reached else 9)

    questions = Questions(np.zeros((3, 2), np.float32), np.arange(10)[None].repeat(3, axis=0))
    chosen = search.choose(Steps(most=500), questions, seconds=1)
    assert chosen.effort == 40
    assert chosen.candidates >= 100
    assert search.choose(Steps(most=30), questions, seconds=1) == search_engines.Setting(30, 800)


def test_results_of_a_changed_tree_are_refused(monkeypatch) -> None:
    described = SimpleNamespace(stdout="0123-dirty\n")
    monkeypatch.setattr(surroundings.subprocess, "run", lambda *_, **__: described)
    published = surroundings.ROOT / "benchmarks" / "results" / "x.json"
    with pytest.raises(SystemExit, match="commit"):
        surroundings.surroundings("x.py", ["--out", str(published)], packages=())
    trial = surroundings.surroundings("x.py", ["--out", "x.json"], packages=())
    assert trial["commit"] == "0123-dirty"
    described.stdout = "0123\n"
    clean = surroundings.surroundings("x.py", ["--out", str(published)], packages=())
    assert clean["commit"] == "0123"


def test_neighbours_are_those_of_all_blocks_together() -> None:
    among = np.concatenate(list(MadeVectors(dim=32).blocks(500)))
    neighbours = Neighbours(queries := MadeVectors(dim=32).queries(20)["texts"])
    for start, end in ((0, 4), (4, 200), (200, 500)):
        neighbours.see(among[start:end])
    nearest = np.argsort(-(queries @ among.T), axis=1)[:, :10]
    np.testing.assert_array_equal(neighbours.rows.numpy(), nearest)


def test_both_sides_of_a_stage_3_step_have_the_same_losses_and_gradients() -> None:
    options = stage3_step.Options(preset="tiny", pairs=5)
    model = stage3_step.make_model(options).double()
    settings = {"precision": "float32", "options": options}
    sides = (stage3_step.OURS, stage3_step.PLAIN)
    steps = {side: stage3_step.make_step(side, model, **settings) for side in sides}
    ours, plain = (steps[side]() for side in sides)
    assert ours == pytest.approx(plain, abs=TOLERANCE)
    assert all(value > 0 for value in ours.values())
    # the plain step's scores are float32
    assert stage3_step.compare_gradients(model, steps) < TOLERANCE
