"""The whole of `vlmo quickstart`, a handful of steps a stage on few rows: all is there and is not done twice."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.few_rows import few_rows
from vlmo.cli import main
from vlmo.demo import quickstart
from vlmo.training import tracking

pytestmark = pytest.mark.slow

SCALE = "0.004"
NUM_ROWS, TEST_ROWS = 256, 32
STAGES = tuple(quickstart.STEPS)
SETS = (
    "shapes",
    "shapes-crowded",
    "shapes-binding",
    "shapes-half-truths",
    "shapes-questions",
    "shapes-statements",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("quickstart")
    file = (folder / "shown.txt").open("w")
    with few_rows(NUM_ROWS), pytest.MonkeyPatch.context() as patch, file:
        patch.setattr(tracking, "LINE_EVERY_S", 0.0)
        patch.setattr(quickstart, "SHORTLIST", TEST_ROWS // 2)
        with contextlib.redirect_stdout(file):
            main(["quickstart", "--run-dir", str(folder), "--scale", SCALE])
        yield folder


def test_each_stage_shows_the_time_to_the_end_and_leaves_a_whole_folder(run):
    shown = (run / "shown.txt").read_text()
    for number, stage in enumerate(STAGES, start=1):
        line = rf"^{number} of 7, {stage}: about 0:\d\d:\d\d to the end on two CPU cores$"
        assert re.search(line, shown, re.MULTILINE)
        assert (run / stage / "model" / "model.safetensors").is_file()
        for name in ("recipe.json", "metrics.jsonl", "quarantine.jsonl", "state", "tensorboard"):
            assert (run / stage / name).exists(), f"{stage}/{name}"


def test_figures_stand_beside_chance(run):
    figures = json.loads((run / "shapes.json").read_text())
    assert figures["chance"]["ir@1"] == pytest.approx(1 / TEST_ROWS)
    assert {"ir@1", "tr@10", "rerank_ir@1"} <= figures["metrics"].keys()
    for name in ("ir@1", "tr@10", "rerank_ir@1"):
        low, high = figures["intervals"][name]
        assert low <= figures["metrics"][name] <= high
    for source in SETS:
        metrics = json.loads((run / f"{source}.json").read_text())["metrics"]
        assert all(0 <= value <= 1 for value in metrics.values())
    binding = json.loads((run / "shapes-binding.json").read_text())
    assert binding["num_predictions"] == TEST_ROWS // 2
    kinds = {f"dual[{kind}]" for kind in ("object", "color", "relation", "swap")}
    assert kinds < binding["metrics"].keys()


def test_cards_show_figures_data_and_licences(run):
    figures = json.loads((run / "shapes.json").read_text())
    card = (run / "shapes-stage3" / "model" / "README.md").read_text()
    for metric, value in figures["metrics"].items():
        low, high = figures["intervals"].get(metric, (0, 0))
        interval = f" ({round(100 * low, 1)} to {round(100 * high, 1)})" if high else ""
        shown = f"{round(100 * value, 2)} %{interval}"
        label = f"{metric.removeprefix('rerank_').upper()}, dual encoder"
        (row,) = [line for line in card.splitlines() if f" | {label} | " in line]
        assert f" | {shown} | " in row
        assert f" | {round(100 * figures['chance'][metric], 2)} % | " in row
    # Fewer steps than the recipe's, so its first line is not claimed.
    settings = "`schedule.warmup_steps`, `trainer.max_steps`"
    derived = f"derived from `shapes-stage3`, with other settings: {settings}"
    assert all(words in card for words in ("# shapes-stage3\n", derived, "CC0-1.0"))
    for use in ("stage 1", "stage 2", "stage 3", "visual tokenizer", "vocabulary"):
        assert re.search(rf"[|;] {use}", card)
    assert "Not measured." in (run / "shapes-stage2" / "model" / "README.md").read_text()
    assert "Questions" not in card


def test_report_shows_images_and_attention(run):
    page = (run / "report.html").read_text()
    for words in ("data:image/", "Chance", "Text to image", "Attention of words"):
        assert words in page
    assert "What false captions teach" not in page  # which takes a whole run


def test_second_run_trains_nothing_again(run, capsys, monkeypatch):
    before = {stage: (run / stage / "metrics.jsonl").read_bytes() for stage in STAGES}
    weights = (run / "shapes-stage3" / "model" / "model.safetensors").read_bytes()

    def stop(*_, **__):
        raise ValueError("all stages are done")

    monkeypatch.setattr(quickstart, "evaluate", stop)
    with pytest.raises(SystemExit):
        main(["quickstart", "--run-dir", str(run), "--scale", SCALE])
    assert "all stages are done" in capsys.readouterr().err
    assert {stage: (run / stage / "metrics.jsonl").read_bytes() for stage in STAGES} == before
    assert (run / "shapes-stage3" / "model" / "model.safetensors").read_bytes() == weights


def test_evaluate_repeats_the_figures(run, tmp_path):
    out = tmp_path / "figures.json"
    model, limit = str(run / "shapes-stage3" / "model"), str(TEST_ROWS)
    main(f"evaluate {model} --data shapes --rerank 0 --limit {limit} --out {out}".split())
    again = json.loads(out.read_text())["metrics"]
    first = json.loads((run / "shapes.json").read_text())["metrics"]
    assert again == {name: first[name] for name in again}
