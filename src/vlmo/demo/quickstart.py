"""`vlmo quickstart`: every stage on scenes of shapes, what the encoders know then, and a page that shows it."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from vlmo.data.rows import column
from vlmo.data.sources import decode_image, open_source
from vlmo.demo.examples import Decision, decision_sheet, decisions, example_queries
from vlmo.demo.report import AttentionMap, Report, write_report
from vlmo.distributed import choose_device
from vlmo.recipes import describe, find_recipe
from vlmo.recipes.schema import Recipe, scaled
from vlmo.retrieval import Encoder
from vlmo.run.build import build
from vlmo.tasks import TaskResult, VisionStage, evaluate
from vlmo.training import read_metrics
from vlmo.training.engine import choose_precision

TOKENIZER, STAGE1, STAGE2, STAGE3 = "shapes-tokenizer", "shapes-stage1", "shapes-stage2", "shapes-stage3"
MATCHING, QUESTIONS, STATEMENTS = "shapes-matching", "shapes-questions", "shapes-statements"
DUAL, FUSION, BLIND, CHANCE = "Dual encoder", "Fusion encoder", "Without the image", "Chance"
"""Columns of the table; without the image, the answer to a question is the most frequent one in training."""

_SHORTLIST, _NUM_DECISIONS, _NUM_EXAMPLES = 32, 6, 8
_KINDS = {"object": "another shape", "color": "another color", "relation": "the opposite side", "swap": "two swapped"}


class Step(NamedTuple):
    """Title of a run, its losses, and about how many seconds it takes beside the others, in bf16 and in float32."""

    title: str
    losses: tuple[str, ...]
    bf16: float
    float32: float


STEPS = {
    TOKENIZER: Step("Visual tokenizer", ("reconstruction", "commitment"), 17, 15),
    STAGE1: Step("Stage 1: masked image modelling", ("mim",), 47, 40),
    STAGE2: Step("Stage 2: masked language modelling", ("mlm",), 20, 23),
    STAGE3: Step("Stage 3: contrast, words, matching", ("itc", "mlm", "itm"), 264, 317),
    MATCHING: Step("Stage 3, more of it for matching", ("itc", "mlm", "itm"), 117, 150),
    QUESTIONS: Step("Fine-tuning on questions", ("vqa",), 49, 54),
    STATEMENTS: Step("Fine-tuning on statements about two scenes", ("nlvr2",), 75, 95),
}
EVALUATION_SECONDS = 30.0


def quickstart_recipes(run: Path, *, scale: float = 1.0) -> dict[str, Recipe]:
    """Return the recipes of a quickstart in their order, by the names of their folders below `run`."""
    recipes = {}
    for name in STEPS:
        recipe = find_recipe(name)
        if isinstance(recipe.stage, VisionStage):
            recipe = dataclasses.replace(recipe, stage=VisionStage(str(run / TOKENIZER / "model")))
        if recipe.init is not None:
            recipe = dataclasses.replace(recipe, init=str(run / Path(recipe.init).parent.name / "model"))
        recipes[name] = scaled(recipe, scale=scale)
    return recipes


def run_quickstart(run: str | Path, *, scale: float = 1.0, console: Console | None = None) -> None:
    """Train every stage, evaluate on unseen scenes and write `report.html`; continue after an interruption.

    Args:
        run: Folder for everything.
        scale: Share of the steps of each stage.
        console: Where progress is shown; None shows nothing.

    Raises:
        ValueError: `scale` is not above 0.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; give a number above 0")
    run, console = Path(run), console or Console(quiet=True)
    seconds, began = {}, time.monotonic()
    for source in ("shapes", QUESTIONS, STATEMENTS):
        console.print(f"scenes of {source}, built once", highlight=False)
        open_source(source)
    seconds["data"] = time.monotonic() - began
    recipes, in_bf16 = quickstart_recipes(run, scale=scale), choose_precision("auto", device=choose_device()) == "bf16"
    for number, (name, recipe) in enumerate(recipes.items(), start=1):
        after = timedelta(seconds=round(seconds_after(name, seconds, scale=scale, in_bf16=in_bf16)))
        about, title = describe(name).splitlines()[0], f"{number} of {len(recipes)}, {name} (then about {after})"
        original = find_recipe(name)
        trainer = build(recipe, run_dir=run / name, console=console, title=name, about=about, original=original)
        trainer.title = title
        trained = trainer.fit()
        if trained.status == "stopped":
            console.print("stopped; the same command goes on")
            sys.exit(0)
        seconds[name] = trained.seconds
    began = time.monotonic()
    results = _evaluate(run, console=console)
    seconds["evaluation"] = time.monotonic() - began
    metrics = _metrics(results)
    path = _write(run, results, metrics=metrics, seconds=seconds)
    table = Table("", title="Unseen scenes, percent")
    for header in metrics:
        table.add_column(header, justify="right")
    for row in metrics[CHANCE]:
        table.add_row(row, *(f"{100 * cells[row]:.1f}" if row in cells else "" for cells in metrics.values()))
    console.print(table)
    console.print(f"{sum(seconds.values()):.0f} s in all. Model folder: {run / MATCHING / 'model'}\nReport: {path}")


def seconds_after(name: str, seconds: Mapping[str, float], *, scale: float, in_bf16: bool) -> float:
    """Return about how long all that follows a run will take, from how long the runs before it took."""
    known = {each: scale * (step.bf16 if in_bf16 else step.float32) for each, step in STEPS.items()}
    done = [each for each in known if seconds.get(each)]
    speed = sum(seconds[each] for each in done) / sum(known[each] for each in done) if done else 1.0
    later = list(known)[list(known).index(name) + 1 :]
    return speed * (sum(known[each] for each in later) + EVALUATION_SECONDS)


def _evaluate(run: Path, *, console: Console) -> dict[str, TaskResult]:
    """Return the results on the test scenes by their source."""
    results = {}
    models = {"shapes": MATCHING, "shapes-binding": MATCHING, QUESTIONS: QUESTIONS, STATEMENTS: STATEMENTS}
    for source, folder in models.items():
        options: dict[str, Any] = {"rerank": _SHORTLIST} if source == "shapes" else {}
        result = evaluate(run / folder / "model", source=source, split="test", console=console, **options)
        result.write_json(run / f"{source}.json", folder=run / folder / "model", predictions=False)
        if source != "shapes-binding":
            result.write_card(run / folder / "model", measured_by="`vlmo quickstart`")
        results[source] = result
    return results


def _metrics(results: Mapping[str, TaskResult]) -> dict[str, dict[str, float]]:
    """Return the table: for each column its values by row."""
    columns: dict[str, dict[str, float]] = {name: {} for name in (DUAL, FUSION, BLIND, CHANCE)}

    def add(row: str, **values: float) -> None:
        for name, value in values.items():
            columns[{"dual": DUAL, "fusion": FUSION, "blind": BLIND, "chance": CHANCE}[name]][row] = value

    found, told = results["shapes"], results["shapes-binding"].metrics
    for row, metric in {"Text to image R@1": "ir@1", "Image to text R@1": "tr@1"}.items():
        dual, fusion = found.metrics[metric], found.metrics[f"rerank_{metric}"]
        add(row, dual=dual, fusion=fusion, chance=found.chance[metric])
    for kind, meaning in _KINDS.items():
        add(
            f"Caption or one with {meaning}",
            dual=told[f"dual[{kind}]"],
            fusion=told[f"fusion[{kind}]"],
            blind=0.5,
            chance=0.5,
        )
    questions = results[QUESTIONS]
    name = next(iter(questions.metrics))
    add("Questions", fusion=questions.metrics[name], blind=blind_accuracy(), chance=questions.chance[name])
    add("Two scenes, true or false", fusion=results[STATEMENTS].metrics["accuracy"], blind=0.5, chance=0.5)
    return columns


def blind_accuracy() -> float:
    """Return the accuracy of the most frequent training answer to each question, or else to its kind of question."""
    train, test = (open_source(QUESTIONS, split=split) for split in ("train", "test"))
    asked: dict[str, Counter[str]] = {}
    for question, kind, answers in zip(*(column(train, name) for name in _ASKED), strict=True):
        for key in (question, kind):
            asked.setdefault(key, Counter()).update(answers)
    right = [
        asked.get(question, asked[kind]).most_common(1)[0][0] in answers
        for question, kind, answers in zip(*(column(test, name) for name in _ASKED), strict=True)
    ]
    return sum(right) / len(right)


_ASKED = ("question", "question_type", "answers")


def _write(
    run: Path,
    results: Mapping[str, TaskResult],
    *,
    metrics: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
) -> Path:
    """Write the report and the sheet of decisions; return the report's path."""
    result = results["shapes"]
    rows = open_source("shapes", split="test")
    images = {name: decode_image(rows[number]["image"]) for number, name in enumerate(rows["image_id"])}
    encoder = Encoder(run / MATCHING / "model")
    gained, lost = decisions(result.predictions)
    shown = [
        Decision(row["caption"], dual=images[row["found"][0]], fusion=images[row["image_id"]])
        for row in gained[:: max(1, len(gained) // _NUM_DECISIONS)][:_NUM_DECISIONS]
    ]
    if shown:
        decision_sheet(shown).save(run / "decisions.png")
    text_to_image, image_to_text = example_queries(
        result.predictions, images=images, count=_NUM_EXAMPLES, prefix="rerank_"
    )
    charts = {}
    for name, step in STEPS.items():
        lines = read_metrics(run / name)
        charts[step.title] = {
            loss: [(line["step"], line[loss]) for line in lines if loss in line] for loss in step.losses
        }
    report = Report(
        title="VLMo quickstart",
        summary=(
            "A small VLMo went through all three stages on scenes of shapes and their captions, then through "
            "fine-tuning on questions and on statements about two scenes. The dual encoder is fast, but sees what is "
            "there rather than where; the fusion encoder reads the caption beside the image and corrects it."
        ),
        metrics=metrics,
        headline=(
            "Text to image R@1",
            f"Caption or one with {_KINDS['relation']}",
            "Questions",
        ),
        metrics_note=(
            f"Recall among {len(images):,} unseen scenes with as many captions, each true of one alone; the fusion "
            f"encoder reorders the {result.settings['rerank']} best of the dual encoder. Of a scene's own caption and "
            "one with a change, the encoder prefers the right one. Each caption is true of one scene and false of "
            "another, each statement true of two pairs of scenes and false of two others, so no text alone tells."
        ),
        decisions=shown,
        decisions_note=(
            f"Texts for which the two encoders put different images first. The fusion encoder alone is right for "
            f"{len(gained)} of {len(images):,} texts, the dual encoder alone for {len(lost)}."
        ),
        seconds={STEPS[name].title if name in STEPS else name.capitalize(): value for name, value in seconds.items()},
        charts=charts,
        text_to_image=text_to_image,
        image_to_text=image_to_text,
        attention=[AttentionMap(each.fusion, *encoder.attention(each.fusion, each.text)) for each in shown[:3]],
        details={
            "Machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads",
            "Python": platform.python_version(),
            "Packages": ", ".join(f"{name} {version(name)}" for name in ("vlmo", "torch", "transformers")),
            "Seed": str(find_recipe(STAGE3).seed),
        },
    )
    return write_report(run / "report.html", report)
