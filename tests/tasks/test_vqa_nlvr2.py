"""Fine-tuning on questions and on sentences about two pictures, from a recipe to figures, submissions and answers."""

import json
from unittest.mock import Mock

import pytest
import torch
from datasets import Dataset
from PIL import Image
from tests.recipes.toy_recipes import tiny
from tests.toy_model import toy
from tests.toy_questions import (
    ANSWERS,
    COLORS,
    processor,
    question_row,
    reasoning_row,
    write_prepared,
)

from vlmo.data import validation
from vlmo.data.schema import QUESTION_FEATURES, REASONING_FEATURES
from vlmo.folder.card import read_results
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.processing import TransformConfig
from vlmo.recipes.schema import DataConfig, Recipe
from vlmo.run.build import build
from vlmo.tasks import Inputs, NLVR2Task, VQATask, evaluate, write_submission
from vlmo.tasks.vqa import QuestionSet
from vlmo.training import read_metrics

HERE = {"device": "cpu"}
STEPS = 40
PERCENT = 0.005  # the card has two decimals
LIVELY = {"initializer_range": 0.2, "layer_scale_init": None}


def recipe(task, source, **changes) -> Recipe:
    plain = DataConfig(
        source=str(source), transform=TransformConfig(rand_augment_ops=0, horizontal_flip=0)
    )
    return tiny(task, source, sizes=LIVELY, steps=STEPS, batch=16, lr=3e-3, data=plain, **changes)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    words = processor()
    toy(VLMoForImageTextRetrieval, vocab_size=words.vocab_size, **LIVELY).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(start, sets, tmp_path_factory):
    stages = {"vqa": VQATask(head_lr_scale=2), "nlvr2": NLVR2Task()}
    done = {}
    for task, stage in stages.items():
        folder = tmp_path_factory.mktemp(task)
        result = build(
            recipe(stage, sets[task], init=str(start)), run_dir=folder, title=task, **HERE
        ).fit()
        assert result.status == "finished"
        done[task] = folder
    return done


@pytest.mark.parametrize(("task", "figure"), [("vqa", "vqa_score"), ("nlvr2", "nlvr2_accuracy")])
def test_training_learns_and_measures(task, figure, runs):
    lines = read_metrics(runs[task])
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert figure in lines[0]
    evaluated = [line for line in lines if "test/accuracy" in line]
    assert len(evaluated) == 1
    assert not any("[" in name for name in evaluated[0])


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_figures_are_those_of_the_run_and_on_its_card(task, runs, sets):
    result = evaluate(
        runs[task] / "model", source=str(sets[task]), split="test", batch_size=5, **HERE
    )
    line = next(line for line in read_metrics(runs[task]) if "test/accuracy" in line)
    assert result.metrics["accuracy"] == line["test/accuracy"]
    assert result.metrics.keys() == result.chance.keys()
    assert all(each.meaning for each in result.measured)
    assert len(result.predictions) == 16
    assert {each.name: each.n for each in result.measured if each.n} == {"accuracy": 16}
    figures = {figure.metric_type: figure for figure in read_results(runs[task] / "model")}
    assert (figures["accuracy"].task_type == "visual-question-answering") == (task == "vqa")
    assert figures["accuracy"].metric_value == pytest.approx(
        100 * result.metrics["accuracy"], abs=PERCENT
    )
    json.dumps(result.predictions)


def test_head_has_a_learning_rate_of_its_own(start, sets, tmp_path):
    for task, stage, head in (
        ("vqa", VQATask(), "answer_head"),
        ("nlvr2", NLVR2Task(head_lr_scale=5), "reasoning_head"),
    ):
        trainer = build(recipe(stage, sets[task], init=str(start)), run_dir=tmp_path / task, **HERE)
        scales = {
            id(p): group["lr_scale"]
            for group in trainer.optimizer.param_groups
            for p in group["params"]
        }
        for name, parameter in trainer.objective.model.named_parameters():
            expected = stage.head_lr_scale if name.startswith(f"{head}.") else 1
            assert scales[id(parameter)] == expected, name


def test_submissions_need_no_answers(runs, sets, tmp_path):
    file, where = (
        tmp_path / "new" / "vqa.json",
        {"source": str(sets["vqa"]), "split": "test_dev", **HERE},
    )
    assert write_submission(runs["vqa"] / "model", file, **where) == 4
    rows = json.loads(file.read_text())
    assert [row["question_id"] for row in rows] == [100, 101, 102, 103]
    assert all(row.keys() == {"question_id", "answer"} and row["answer"] in ANSWERS for row in rows)
    other = [{"question_id": "a-1", "answer": "yes"}]  # an identifier that is no number
    assert json.loads(QuestionSet.submission(other)) == other
    with pytest.raises(ValueError, match="a submission is for the task vqa; this is nlvr2"):
        write_submission(runs["nlvr2"] / "model", file, source="shapes")


def test_sentences_about_two_pictures_are_answered():
    asked_of_two = Inputs((), texts=("both pictures are red",))
    images = [Image.new("RGB", (40, 30), COLORS["red"])] * 2
    model = Mock(device="cpu")
    for logits, prediction in (([1.0, 0.0], False), ([0.0, 1.0], True)):
        model.return_value.logits = torch.tensor([logits])
        (answered,) = NLVR2Task.answer(model, processor(), images, asked_of_two)
        assert answered == {
            "prediction": prediction,
            "confidence": 0.7311,
        }  # of the answer: e / (1 + e)


def changed(folder, rows, *, kind, features):
    parts = {"test": Dataset.from_list(rows, features=features)}
    return str(write_prepared(folder, parts, labels=ANSWERS if kind == "vqa" else None))


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("vqa", {"answers": ["yes", "no", "no"]}, r"question '101' has 3 answers \(yes, no, no\)"),
        (
            "nlvr2",
            {"label": 7},
            r"image_id 'toy-0-1-0'\) has label 7; expected 1 \(true\) or 0 \(false\)",
        ),
    ],
)
def test_labels_outside_the_range_are_named_before_any_work(
    task, change, words, runs, tmp_path, monkeypatch
):
    make, features = {
        "vqa": (question_row, QUESTION_FEATURES),
        "nlvr2": (reasoning_row, REASONING_FEATURES),
    }[task]
    source = changed(tmp_path / "odd", [make(0), make(1, **change)], kind=task, features=features)
    monkeypatch.setattr(
        validation, "filter_invalid_rows", lambda *_, **__: pytest.fail("pictures were looked at")
    )
    with pytest.raises(ValueError, match=words):
        evaluate(runs[task] / "model", source=source, split="test", **HERE)


def test_second_pictures_that_cannot_be_read_are_quarantined(runs, tmp_path):
    rows = [reasoning_row(number) for number in range(120)]
    rows[5]["second_image"] = {"bytes": b"no picture", "path": "right.png"}
    source = changed(tmp_path / "broken", rows, kind="nlvr2", features=REASONING_FEATURES)
    result = evaluate(runs["nlvr2"] / "model", source=source, split="test", **HERE)
    assert len(result.predictions) == 119
    assert "right.png" in (runs["nlvr2"] / "model" / "test.quarantine.jsonl").read_text()
