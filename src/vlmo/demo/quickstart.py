"""`vlmo quickstart`: every stage on scenes of shapes, what the encoders know then, and a page that shows it."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jinja2 import Environment, PackageLoader
from PIL import Image
from rich.console import Console
from rich.table import Table

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.data.rows import select_rows
from vlmo.data.sources import decode_image, open_source
from vlmo.folder.atomic import write_file
from vlmo.recipes import describe, find_recipe
from vlmo.recipes.quickstart import (
    CROWDED_IMAGE_RECALL,
    CROWDED_TEXT_RECALL,
    DUAL,
    FUSION,
    HALF_TRUTH_ROW,
    IMAGE_RECALL,
    QUESTION_ROW,
    STATEMENT_ROW,
    TEXT_RECALL,
    WHICH_RUNS,
    over_seeds,
)
from vlmo.recipes.schema import Recipe, scaled
from vlmo.retrieval import Encoder
from vlmo.run.build import build
from vlmo.tasks import TaskResult, VisionTask, evaluate
from vlmo.tasks.pair_sets import CompositionSet
from vlmo.tasks.result import Prediction
from vlmo.visualization import data_uri, heat_map

TOKENIZER = "shapes-tokenizer"
STAGE3 = "shapes-stage3"
SHAPES = "shapes"
CROWDED = "shapes-crowded"
BINDING = "shapes-binding"
HALF_TRUTHS = "shapes-half-truths"
QUESTIONS = "shapes-questions"
STATEMENTS = "shapes-statements"
CONTRAST = "shapes-contrast"
CHANCE = "Chance"
# Images that the fusion encoder orders.
SHORTLIST = 32

_NUM_SHOWN = 6
_TOP = 5
# Statements with the same sentence stand together.
_GROUP = 4
_KINDS = {
    "object": "another shape",
    "color": "another color",
    "relation": "the opposite side",
    "swap": "two swapped",
}


class Step(NamedTuple):
    """Losses of a run, and about how many seconds it takes on two CPU cores."""

    losses: tuple[str, ...]
    seconds: float


STEPS = {
    TOKENIZER: Step(("reconstruction", "commitment"), 15),
    "shapes-stage1": Step(("mim",), 13),
    "shapes-stage2": Step(("mlm",), 6),
    CONTRAST: Step(("itc",), 121),
    STAGE3: Step(("itc", "mlm", "itm"), 182),
    QUESTIONS: Step(("vqa",), 70),
    STATEMENTS: Step(("nlvr2",), 65),
}
# Seconds of all that follows the last stage.
EVALUATION_SECONDS = 35.0


def quickstart_recipes(run: Path, *, scale: float = 1.0, seed: int = 0) -> dict[str, Recipe]:
    """Return the recipes of a quickstart in their order, by the names of their folders below `run`."""
    recipes = {}
    for name in STEPS:
        # All is measured once, at the end.
        recipe = dataclasses.replace(find_recipe(name), seed=seed, evaluate_on=None)
        # Stages start from the models of this quickstart, not from those of the recipes' own runs.
        if isinstance(recipe.task, VisionTask):
            recipe = dataclasses.replace(recipe, task=VisionTask(str(run / TOKENIZER / "model")))
        if recipe.init is not None:
            recipe = dataclasses.replace(
                recipe, init=str(run / Path(recipe.init).parent.name / "model")
            )
        recipes[name] = scaled(recipe, scale=scale)
    return recipes


def run_quickstart(
    run: str | Path, *, scale: float = 1.0, seed: int = 0, console: Console | None = None
) -> dict[str, dict[str, float]]:
    """Train every stage, evaluate on new images of scenes and write `report.html`; continue after an interruption.

    Return the table that it prints: for each column its values by row, as fractions.

    Args:
        scale: Share of the steps of each stage, and of the test rows if it is below 1.
        seed: Of all stages: weights, order of the scenes, masks and negatives. The scenes are the same.

    Raises:
        ValueError: `scale` is not above 0.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; give a number above 0")
    run = Path(run)
    console = console or Console(quiet=True)
    for source in (SHAPES, CROWDED, QUESTIONS, STATEMENTS):
        console.print(f"scenes of {source}, built once", highlight=False)
        open_source(source)
    seconds = _train(run, scale=scale, seed=seed, console=console)
    results = _evaluate(run, scale=scale, console=console)
    metrics = _metrics(results)
    path = _write(run, results, metrics=metrics)
    table = Table("", title="New images of scenes, percent")
    for header in metrics:
        table.add_column(header, justify="right")
    for row in metrics[CHANCE]:
        columns = metrics.values()
        table.add_row(
            row, *(f"{100 * values[row]:.1f}" if row in values else "" for values in columns)
        )
    console.print(table)
    console.print(
        f"Trained for {seconds:.0f} s. Model folder: {run / STAGE3 / 'model'}\nReport: {path}"
    )
    return metrics


def _train(run: Path, *, scale: float, seed: int, console: Console) -> float:
    """Train all stages, and return the seconds that they took; exit if one was stopped."""
    seconds = 0.0
    # Seconds that the stages so far were to take.
    expected = 0.0
    remaining = scale * sum(step.seconds for step in STEPS.values()) + EVALUATION_SECONDS
    recipes = quickstart_recipes(run, scale=scale, seed=seed)
    for number, (name, recipe) in enumerate(recipes.items(), start=1):
        # By the speed so far: machines differ several times.
        pace = seconds / expected if seconds else 1.0
        left = timedelta(seconds=round(remaining * pace))
        console.print(
            f"{number} of {len(STEPS)}, {name}: about {left} to the end on two CPU cores",
            highlight=False,
        )
        result = build(
            recipe,
            run_dir=run / name,
            console=console,
            title=name,
            about=describe(name).splitlines()[0],
            original=find_recipe(name),
        ).fit()
        if result.status == "stopped":
            console.print("stopped; the same command goes on")
            sys.exit(0)
        seconds += result.seconds
        expected += scale * STEPS[name].seconds
        remaining -= scale * STEPS[name].seconds
    return seconds


def _evaluate(run: Path, *, scale: float, console: Console) -> dict[str, TaskResult]:
    results = {}
    folders = {SHAPES: STAGE3, CROWDED: STAGE3, QUESTIONS: QUESTIONS, STATEMENTS: STATEMENTS}
    for source, folder in folders.items():
        model = run / folder / "model"
        rows = open_source(source, split="test")
        limit = None
        if scale < 1:
            # Whole groups of statements with the same sentence.
            limit = max(2 * SHORTLIST, _GROUP * round(scale * len(rows) / _GROUP))
        results[source] = evaluate(
            model,
            source=source,
            split="test",
            console=console,
            rerank=SHORTLIST if folder == STAGE3 else None,
            limit=limit,
        )
        if source != CROWDED:  # a card has the numbers of one gallery
            results[source].write_card(model, measured_by="`vlmo quickstart`")
        results[source].write_json(run / f"{source}.json", folder=model, predictions=False)
    model = run / STAGE3 / "model"
    loaded, processor = load_retrieval_model(model, device=None)
    for source in (BINDING, HALF_TRUTHS):
        rows = open_source(source, split="test")
        # Pairs of rows have the same captions, and stand kind after kind: a small scale reads pairs at equal distances.
        step = max(1, len(rows) // max(SHORTLIST, round(min(scale, 1) * len(rows))))
        rows = select_rows(rows, [row for row in range(len(rows)) if row // 2 % step == 0])
        pairs = CompositionSet(rows, source=source, split="test", processor=processor)
        results[source] = pairs.result(pairs.outputs(loaded, console=console))
        results[source].write_json(run / f"{source}.json", folder=model, predictions=False)
    return results


Scores: TypeAlias = tuple[float | None, float, float]
"""Values of dual encoder, fusion encoder and chance."""

_RECALLS = {
    SHAPES: {IMAGE_RECALL: "ir@1", TEXT_RECALL: "tr@1"},
    CROWDED: {CROWDED_IMAGE_RECALL: "ir@1", CROWDED_TEXT_RECALL: "tr@1"},
}


def scores_by_row(results: Mapping[str, TaskResult]) -> dict[str, Scores]:
    """Return the scores of both encoders and chance by row, from the results by the names of the sets."""
    rows: dict[str, Scores] = {}
    for source, metrics in _RECALLS.items():
        result = results[source]
        for row, metric in metrics.items():
            reranked = result.metrics[f"rerank_{metric}"]
            rows[row] = (result.metrics[metric], reranked, result.chance[metric])
    binding = results[BINDING].metrics
    for kind, meaning in _KINDS.items():
        dual = binding[f"dual[{kind}]"]
        rows[f"Caption or one with {meaning}"] = (dual, binding[f"fusion[{kind}]"], 0.5)
    half_truths = results[HALF_TRUTHS].metrics
    dual = half_truths["dual[half-truth]"]
    rows[HALF_TRUTH_ROW] = (dual, half_truths["fusion[half-truth]"], 0.5)
    questions = results[QUESTIONS]
    # The first metric is that of all questions; others are of their kinds.
    accuracy = next(iter(questions.metrics))
    rows[QUESTION_ROW] = (None, questions.metrics[accuracy], questions.chance[accuracy])
    rows[STATEMENT_ROW] = (None, results[STATEMENTS].metrics["accuracy"], 0.5)
    return rows


def _metrics(results: Mapping[str, TaskResult]) -> dict[str, dict[str, float]]:
    columns: dict[str, dict[str, float]] = {DUAL: {}, FUSION: {}, CHANCE: {}}
    for row, scores in scores_by_row(results).items():
        for column, score in zip(columns.values(), scores, strict=True):
            if score is not None:
                column[row] = score
    return columns


def _write(
    run: Path, results: Mapping[str, TaskResult], *, metrics: Mapping[str, Mapping[str, float]]
) -> Path:
    # Decisions are shown on crowded scenes, where the two encoders differ.
    result = results[CROWDED]
    rows = open_source(CROWDED, split="test")
    count = result["ir@1"].n
    images = {
        name: decode_image(rows[number]["image"]) for number, name in enumerate(rows["image_id"])
    }
    encoder = Encoder(run / STAGE3 / "model")
    gained, lost, queries = examples(result.predictions, images=images)
    shown = _spread(queries)
    asked = [(query["answer"], query["text"]) for query in shown[:3]]
    attention = [(image, *encoder.attention(image, text)) for image, text in asked]
    return write_report(
        run / "report.html",
        title="VLMo quickstart",
        summary=(
            "A small VLMo went through all three stages on scenes of shapes and their captions, then through "
            "fine-tuning on questions and on statements about two scenes. The dual encoder is fast; the fusion encoder "
            "reads the caption beside the image. After whole runs both know scenes of two shapes. They differ where "
            "more is to be compared: among crowded scenes the dual encoder puts the right image first for "
            f"{over_seeds(DUAL, CROWDED_IMAGE_RECALL)} % of the captions, with the fusion encoder "
            f"{over_seeds(FUSION, CROWDED_IMAGE_RECALL)} %; of a true caption and a longer half-truth they prefer the "
            f"true one in {over_seeds(DUAL, HALF_TRUTH_ROW)} and {over_seeds(FUSION, HALF_TRUTH_ROW)} % "
            f"({WHICH_RUNS})."
        ),
        metrics=metrics,
        metrics_note=(
            f"Recall among {count:,} new images with as many captions, all true of one alone; most captions of two "
            "shapes stand word for word in training, beside other images. Crowded scenes show three or four shapes and "
            "stand in pairs in which two shapes or their colors have changed places. The fusion encoder reorders the "
            f"{result.settings['rerank']} best of the dual encoder. Of a scene's true caption and one with a change, "
            "the encoder prefers the right one; a half-truth says all that the true caption says and adds a wrong "
            "detail. A caption is true of one scene and false of another, a statement true of two pairs of scenes and "
            "false of two others, so the text alone does not help."
        ),
        decisions=_spread(gained),
        decisions_note=(
            f"Captions of crowded scenes for which the two encoders put different images first. The fusion encoder "
            f"alone is right for {len(gained)} of {count:,} texts, the dual encoder alone for {lost}."
        ),
        text_to_image=shown,
        attention=attention,
    )


def _spread(examples: Sequence[Prediction]) -> Sequence[Prediction]:
    """Return a few examples at equal distances."""
    # Neighbors in a split may be variations of one scene.
    return examples[:: max(1, len(examples) // _NUM_SHOWN)][:_NUM_SHOWN]


def examples(
    predictions: Sequence[Prediction], *, images: Mapping[str, Image.Image]
) -> tuple[list[Prediction], int, list[Prediction]]:
    """Return the texts that the fusion encoder alone finds the image of, how many the dual encoder alone, and all.

    Of all texts, with the first five images of the fusion encoder, and the number of the right one among them, if any.
    """
    gained = []
    lost = 0
    queries = []
    for row in predictions:
        if row["query"] != "caption":
            continue
        names = row["rerank_found"][:_TOP]
        image = images[row["image_id"]]
        # Ranks count from 1: the first one is the dual encoder's.
        if row["rank"] == 1 < row["rerank_rank"]:
            lost += 1
        if row["rank"] > 1 == row["rerank_rank"]:
            gained.append(
                {"text": row["caption"], "dual": images[row["found"][0]], "fusion": image}
            )
        queries.append(
            {
                "text": row["caption"],
                "rank": row["rerank_rank"],
                "images": [images[name] for name in names],
                "correct": names.index(row["image_id"]) if row["image_id"] in names else None,
                "answer": image,
            }
        )
    return gained, lost, queries


def write_report(path: Path, **parts: Any) -> Path:
    """Write a page with images inside it, which loads nothing and runs no script, and return its path.

    Args:
        parts: Contents by their names in `report.html`; sections whose contents are missing are left out.
    """
    loader = PackageLoader("vlmo.demo", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = data_uri
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, environment.get_template("report.html").render(heat_map=heat_map, **parts))
    return path
