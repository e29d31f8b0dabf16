"""What an evaluation leaves: a table, a file to score again from, and figures for the card."""

import json
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from vlmo.tasks import result
from vlmo.tasks.result import Metric, TaskResult, circumstances, data_name

RESULT = TaskResult(
    task="vqa",
    source="/private/way/questions",
    split="test",
    measured=[
        Metric("accuracy", 0.75, 0.25, n=4, label="VQA accuracy", meaning="share of right answers"),
        Metric("accuracy[other]", 0.5),
    ],
    predictions=[{"question_id": "1", "answer": "café"}, {"question_id": "2", "answer": "no"}],
    settings={"top": 1},
    hub_task="visual-question-answering",
)


def test_table_shows_percent_chance_and_meaning():
    console = Console(width=160)
    with console.capture() as shown:
        console.print(RESULT.table())
    lines = [line.strip("│").split("│") for line in shown.get().splitlines() if line[:1] == "│"]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["VQA accuracy", "75.0", "30.1 to 95.4", "25.0", "share of right answers"],
        ["accuracy[other]", "50.0", "", "", ""],
    ]
    assert "vqa, questions test, 2 rows, percent" in shown.get()
    assert "private" not in shown.get()


def test_joined_sources_are_all_named(tmp_path):
    assert data_name(f"{tmp_path}/coco+{tmp_path}/sbu+emoji-pairs") == "coco + sbu + emoji-pairs"
    (tmp_path / "a+b").mkdir()
    assert data_name(str(tmp_path / "a+b")) == "a+b"


def test_file_holds_what_it_takes_to_score_again(tmp_path):
    run = tmp_path / "runs" / "mine"
    (run / "model").mkdir(parents=True)
    (run / "recipe.json").write_text('{"seed": 3}')
    (run / "metrics.jsonl").write_text('{"step": 20, "loss": 0.5, "seconds": 5.5}\n{"step": 20}\n')
    text = RESULT.write_json(tmp_path / "new" / "figures.json", folder=run / "model").read_text()
    read = json.loads(text)
    assert read["versions"].keys() >= {"python", "vlmo", "torch"}
    assert read["hardware"]["cores"] > 0
    assert (
        read.items()
        >= {
            "task": "vqa",
            "data": "questions",
            "split": "test",
            "settings": {"top": 1},
            "metrics": RESULT.metrics,
            "chance": RESULT.chance,
            "predictions": RESULT.predictions,
            "recipe": {"seed": 3},
            "training": {"step": 20, "seconds": 5.5},
            "model": "runs/mine/model",
        }.items()
    )
    assert "private" not in text
    assert '\n  {"question_id": "1", "answer": "café"},\n' in text  # a line each
    file = tmp_path / "small.json"
    RESULT.write_json(file, folder=run / "model", predictions=False)
    small = json.loads(file.read_text())
    assert small["num_predictions"] == 2
    assert "predictions" not in small


def test_commit_is_that_of_this_checkout():
    folder = Path(result.__file__).parent
    head = ["git", "rev-parse", "HEAD"]
    described = subprocess.run(head, cwd=folder, capture_output=True, text=True, check=False)
    commit = circumstances("nowhere")["commit"]
    if described.returncode:  # a package without its repository
        assert commit is None
    else:
        assert commit.removesuffix("-dirty") == described.stdout.strip()
    assert circumstances("nowhere")["recipe"] is circumstances("nowhere")["training"] is None


def test_numbers_that_are_none_are_refused(tmp_path):
    bad = TaskResult(
        task="vqa", source="x", split="test", measured=[Metric("accuracy", float("nan"))]
    )
    with pytest.raises(ValueError, match="JSON"):
        bad.write_json(tmp_path / "figures.json", folder=tmp_path)
    assert not (tmp_path / "figures.json").exists()
