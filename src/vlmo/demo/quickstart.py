"""`vlmo quickstart`: every stage on scenes of shapes, what the encoders know then, and a page that shows it."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from vlmo.data.rows import column
from vlmo.data.sources import decode_image, open_source
from vlmo.demo.report import write_report
from vlmo.distributed import choose_device
from vlmo.recipes import describe, find_recipe
from vlmo.recipes.quickstart import (
    DUAL,
    FUSION,
    IMAGE_RECALL,
    QUESTION_ROW,
    SIDES,
    STATEMENT_ROW,
    TEXT_RECALL,
    over_seeds,
    which_runs,
)
from vlmo.recipes.schema import Recipe, scaled
from vlmo.retrieval import Encoder
from vlmo.run.build import build
from vlmo.tasks import TaskResult, VisionTask, evaluate
from vlmo.training import read_metrics
from vlmo.training.engine import choose_precision

TOKENIZER, STAGE1, STAGE2, STAGE3 = "shapes-tokenizer", "shapes-stage1", "shapes-stage2", "shapes-stage3"
MATCHING, QUESTIONS, STATEMENTS = "shapes-matching", "shapes-questions", "shapes-statements"
BLIND, CHANCE = "Without the image", "Chance"
"""Further columns of the table; without the image, the answer to a question is the most frequent one in training."""

_SHORTLIST, _NUM_DECISIONS, _NUM_EXAMPLES, _TOP = 32, 6, 8, 5
_GROUP = 4  # statements with the same sentence stand together
_KINDS = {"object": "another shape", "color": "another color", "relation": "the opposite side", "swap": "two swapped"}


class Step(NamedTuple):
    """Title of a run, its losses, and expected seconds of its steps, between an Intel Xeon's and an AMD EPYC's."""

    title: str
    losses: tuple[str, ...]
    bf16: float
    float32: float


STEPS = {
    TOKENIZER: Step("Visual tokenizer", ("reconstruction", "commitment"), 14, 16),
    STAGE1: Step("Stage 1: masked image modelling", ("mim",), 43, 44),
    STAGE2: Step("Stage 2: masked language modelling", ("mlm",), 19, 24),
    STAGE3: Step("Stage 3: contrast, words, matching", ("itc", "mlm", "itm"), 286, 384),
    MATCHING: Step("Stage 3, more of it for matching", ("itc", "mlm", "itm"), 120, 180),
    QUESTIONS: Step("Fine-tuning on questions", ("vqa",), 41, 50),
    STATEMENTS: Step("Fine-tuning on statements about two scenes", ("nlvr2",), 82, 100),
}
BETWEEN_SECONDS, EVALUATION_SECONDS = 4.0, 33.0
"""Expected seconds before and after the steps of a stage, and of all that follows the last stage."""
_DISCOUNT_SECONDS = 40.0


def quickstart_recipes(run: Path, *, scale: float = 1.0, seed: int = 0) -> dict[str, Recipe]:
    """Return the recipes of a quickstart in their order, by the names of their folders below `run`."""
    recipes = {}
    for name in STEPS:
        # All is measured once, at the end.
        recipe = dataclasses.replace(find_recipe(name), seed=seed, evaluate_on=None)
        if isinstance(recipe.task, VisionTask):
            recipe = dataclasses.replace(recipe, task=VisionTask(str(run / TOKENIZER / "model")))
        if recipe.init is not None:
            recipe = dataclasses.replace(recipe, init=str(run / Path(recipe.init).parent.name / "model"))
        recipes[name] = scaled(recipe, scale=scale)
    return recipes


def run_quickstart(
    run: str | Path, *, scale: float = 1.0, seed: int = 0, console: Console | None = None
) -> dict[str, dict[str, float]]:
    """Train every stage, evaluate on new images of scenes and write `report.html`; continue after an interruption.

    Return the table that it prints: for each column its values by row, as fractions.

    Args:
        run: Folder for everything.
        scale: Share of the steps of each stage, and of the test rows if it is below 1.
        seed: Of all stages: weights, order of the scenes, masks and negatives. The scenes are the same.
        console: Where progress is shown; None shows nothing.

    Raises:
        ValueError: `scale` is not above 0.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; give a number above 0")
    run, console = Path(run), console or Console(quiet=True)
    recipes = quickstart_recipes(run, scale=scale, seed=seed)
    precision = choose_precision("auto", device=choose_device())
    remaining = RemainingTime([scale * getattr(step, precision) for step in STEPS.values()])
    finished = sum((run / name / "model").exists() for name in recipes)
    console.print(f"about {remaining.to_end(finished)} to the end on two CPU cores", highlight=False)
    seconds, began = {}, time.monotonic()
    for source in ("shapes", QUESTIONS, STATEMENTS):
        console.print(f"scenes of {source}, built once", highlight=False)
        open_source(source)
    seconds["data"] = time.monotonic() - began
    for number, (name, recipe) in enumerate(recipes.items(), start=1):
        about, original = describe(name).splitlines()[0], find_recipe(name)
        trainer = build(recipe, run_dir=run / name, console=console, title=name, about=about, original=original)
        trainer.title = f"{number} of {len(recipes)}, {name}"
        trainer.note = remaining.note(number - 1, max_steps=trainer.config.max_steps)
        trained = trainer.fit()
        if trained.status == "stopped":
            console.print("stopped; the same command goes on")
            sys.exit(0)
        seconds[name] = trained.seconds
    began = time.monotonic()
    results = _evaluate(run, scale=scale, console=console)
    seconds["evaluation"] = time.monotonic() - began
    metrics = _metrics(results)
    path = _write(run, results, metrics=metrics, seconds=seconds, seed=seed)
    table = Table("", title="New images of scenes, percent")
    for header in metrics:
        table.add_column(header, justify="right")
    for row in metrics[CHANCE]:
        table.add_row(row, *(f"{100 * cells[row]:.1f}" if row in cells else "" for cells in metrics.values()))
    console.print(table)
    console.print(f"{sum(seconds.values()):.0f} s in all. Model folder: {run / MATCHING / 'model'}\nReport: {path}")
    return metrics


class RemainingTime:
    """Estimated time to the end of the quickstart.

    Known seconds are scaled by measured seconds over expected ones, both discounted exponentially with what was
    trained since, so that other work on the machine counts while it lasts.

    Args:
        known: Expected seconds of each stage.
    """

    def __init__(self, known: Sequence[float]) -> None:
        self._known, self._measured, self._expected = known, 1.0, 1.0

    def to_end(self, finished: float) -> timedelta:
        """Return the time to the end after so many stages, such as 2.5 in the middle of the third."""
        seconds = EVALUATION_SECONDS + sum(
            (known + BETWEEN_SECONDS) * min(1.0, number - finished)
            for number, known in enumerate(self._known, start=1)
            if number > finished
        )
        return timedelta(seconds=round(seconds * self._measured / self._expected))

    def note(self, stage: int, *, max_steps: int) -> Callable[[int], str]:
        """Return a function from the finished steps of a stage, counted from 0, to a text with the time to the end."""
        start: int | None = None
        last: tuple[int, float] | None = None

        def text(step: int) -> str:
            nonlocal start, last
            now = time.monotonic()
            start = step if start is None else start
            if last is not None:
                expected = self._known[stage] * (step - last[0]) / max_steps
                kept = math.exp(-expected / _DISCOUNT_SECONDS)
                self._measured = kept * self._measured + now - last[1]
                self._expected = kept * self._expected + expected
            # Before the first step there is more to do than a step.
            last = (step, now) if step > start else None
            return f"{self.to_end(stage + step / max_steps)} to the end"

        return text


def _evaluate(run: Path, *, scale: float, console: Console) -> dict[str, TaskResult]:
    """Return the results on the test scenes by their source."""
    results = {}
    models = {"shapes": MATCHING, "shapes-binding": MATCHING, QUESTIONS: QUESTIONS, STATEMENTS: STATEMENTS}
    for source, folder in models.items():
        options: dict[str, Any] = {"rerank": _SHORTLIST} if source == "shapes" else {}
        if scale < 1 and source != "shapes-binding":  # whose rows are sorted by kind
            rows = len(open_source(source, split="test"))
            options["limit"] = max(2 * _SHORTLIST, _GROUP * round(scale * rows / _GROUP))
        result = evaluate(run / folder / "model", source=source, split="test", console=console, **options)
        result.write_json(run / f"{source}.json", folder=run / folder / "model", predictions=False)
        if source != "shapes-binding":
            result.write_card(run / folder / "model", measured_by="`vlmo quickstart`")
        results[source] = result
    return results


def _metrics(results: Mapping[str, TaskResult]) -> dict[str, dict[str, float]]:
    """Return the table: for each column its values by row."""
    found, binding, questions = (results[name] for name in ("shapes", "shapes-binding", QUESTIONS))
    rows: dict[str, tuple[float | None, ...]] = {
        row: (found.metrics[metric], found.metrics[f"rerank_{metric}"], None, found.chance[metric])
        for row, metric in {IMAGE_RECALL: "ir@1", TEXT_RECALL: "tr@1"}.items()
    }
    for kind, meaning in _KINDS.items():
        scores = (binding.metrics[f"{encoder}[{kind}]"] for encoder in ("dual", "fusion"))
        rows[f"Caption or one with {meaning}"] = (*scores, 0.5, 0.5)
    accuracy = next(iter(questions.metrics))
    rows[QUESTION_ROW] = (None, questions.metrics[accuracy], blind_accuracy(), questions.chance[accuracy])
    rows[STATEMENT_ROW] = (None, results[STATEMENTS].metrics["accuracy"], 0.5, 0.5)
    return {
        name: {row: value for row, cells in rows.items() if (value := cells[number]) is not None}
        for number, name in enumerate((DUAL, FUSION, BLIND, CHANCE))
    }


def blind_accuracy() -> float:
    """Return the accuracy of the most frequent training answer to each question, or else to its kind of question."""
    train, test = (
        [column(open_source(QUESTIONS, split=split), name) for name in ("question", "question_type", "answers")]
        for split in ("train", "test")
    )
    asked: dict[str, Counter[str]] = {}
    for question, kind, answers in zip(*train, strict=True):
        for key in (question, kind):
            asked.setdefault(key, Counter()).update(answers)
    right = [
        asked.get(question, asked[kind]).most_common(1)[0][0] in answers
        for question, kind, answers in zip(*test, strict=True)
    ]
    return sum(right) / len(right)


def _write(
    run: Path,
    results: Mapping[str, TaskResult],
    *,
    metrics: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    seed: int,
) -> Path:
    """Write the report and return its path."""
    result, rows = results["shapes"], open_source("shapes", split="test")
    count = result["ir@1"].n
    trained = {text for texts in column(open_source("shapes", split="train"), "captions") for text in texts}
    repeated = sum(text in trained for texts in column(rows, "captions")[:count] for text in texts)
    images = {name: decode_image(rows[number]["image"]) for number, name in enumerate(rows["image_id"])}
    encoder = Encoder(run / MATCHING / "model")
    gained, lost, queries = examples(result.predictions, images=images)
    charts = {}
    for name, step in STEPS.items():
        lines = read_metrics(run / name)
        charts[step.title] = {
            loss: [(line["step"], line[loss]) for line in lines if loss in line] for loss in step.losses
        }
    headline = (IMAGE_RECALL, SIDES, QUESTION_ROW)
    return write_report(
        run / "report.html",
        title="VLMo quickstart",
        summary=(
            "A small VLMo went through all three stages on scenes of shapes and their captions, then through "
            "fine-tuning on questions and on statements about two scenes. The dual encoder is fast, but sees what is "
            "there rather than where; the fusion encoder reads the caption beside the image and can correct it."
        ),
        metrics=metrics,
        headline=headline,
        metrics_note=(
            f"Recall among {count:,} images that training did not show, with as many captions, each true of one "
            f"alone; {repeated:,} of the captions stand word for word in training, beside other images. The fusion "
            f"encoder reorders the {result.settings['rerank']} best of the dual encoder. Of a scene's own caption and "
            "one with a change, the encoder prefers the right one. Each caption is true of one scene and false of "
            "another, each statement true of two pairs of scenes and false of two others, so no text alone tells. "
            f"Whole runs reached with the fusion encoder, {which_runs()}, percent: "
            f"{'; '.join(f'{row} {over_seeds(FUSION, row)}' for row in headline)}."
        ),
        decisions=(shown := gained[:: max(1, len(gained) // _NUM_DECISIONS)][:_NUM_DECISIONS]),
        decisions_note=(
            f"Texts for which the two encoders put different images first. The fusion encoder alone is right for "
            f"{len(gained)} of {count:,} texts, the dual encoder alone for {lost}."
        ),
        seconds={STEPS[name].title if name in STEPS else name.capitalize(): value for name, value in seconds.items()},
        charts=charts,
        text_to_image=queries[:: max(1, len(queries) // _NUM_EXAMPLES)][:_NUM_EXAMPLES],
        attention=[(each["fusion"], *encoder.attention(each["fusion"], each["text"])) for each in shown[:3]],
        details={
            "Machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads",
            "Python": platform.python_version(),
            "Packages": ", ".join(f"{name} {version(name)}" for name in ("vlmo", "torch", "transformers")),
            "Seed": str(seed),
        },
    )


def examples(
    predictions: Sequence[dict[str, Any]], *, images: Mapping[str, Image.Image]
) -> tuple[list[dict[str, Any]], int, list[dict[str, Any]]]:
    """Return the texts that the fusion encoder alone finds the image of, how many the dual encoder alone, and all.

    Of all texts, with the first five images of the fusion encoder, and the number of the right one among them, if any.
    """
    gained, lost, queries = [], 0, []
    for row in predictions:
        if row["query"] != "caption":
            continue
        found, right = row["rerank_found"][:_TOP], images[row["image_id"]]
        lost += row["rank"] == 1 < row["rerank_rank"]
        if row["rank"] > 1 == row["rerank_rank"]:
            gained.append({"text": row["caption"], "dual": images[row["found"][0]], "fusion": right})
        correct = found.index(row["image_id"]) if row["image_id"] in found else None
        shown = {"images": [images[name] for name in found], "correct": correct, "answer": right}
        queries.append({"text": row["caption"], "rank": row["rerank_rank"], **shown})
    return gained, lost, queries
