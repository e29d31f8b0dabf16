"""Classification and segmentation on small real data: from the small model, from nothing, and plain baselines.

    PYTHONPATH=. python benchmarks/vision_tasks.py --out benchmarks/results/vision-tasks.json

All are measured on the same test rows. Baselines know pixels alone: logistic regression on small images for classes
(its penalty chosen on training rows), and for the pixels of a scene the most frequent class, and the class that each
color has most often in the training scenes.
"""

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.logging import RichHandler
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import worlds  # noqa: F401  (registers its recipes and sets)
from surroundings import surroundings, write_result
from vlmo.checkpoints.loading import load_model
from vlmo.data.sources import decode_image
from vlmo.evaluation.metrics import count_pixels
from vlmo.processing import EvalTransform, TransformConfig
from vlmo.processing.segmentation import IGNORED_CLASS
from vlmo.recipes import Recipe, find_recipe
from vlmo.released import SMALL
from vlmo.run import build
from vlmo.tasks import evaluate
from vlmo.tasks.classification import ClassSet, class_numbers
from vlmo.tasks.result import TaskResult
from vlmo.tasks.segmentation import SegmentRows, SegmentSet
from vlmo.training.checkpoint import newest_state

CLASS_RECIPES = {"scenes-kinds": 16}
"""Recipes for classification, and the side of the images that the baseline reads."""
SEGMENT_RECIPE = "scenes-masks"
FROM_NOTHING = "-from-nothing"
_COLOR_LEVELS = 16


@dataclass(frozen=True)
class Options:
    """Trains the small recipes of the vision tasks and measures them beside plain baselines."""

    run: Path = Path("runs/vision_tasks")
    """Folder of the runs; those that have finished there are taken as they are."""
    start: str = SMALL
    """Model to start from: a folder or a name."""
    tasks: tuple[str, ...] = (*CLASS_RECIPES, SEGMENT_RECIPE)
    """Recipes to run, each from `start` and from nothing."""
    scale: float = 1.0
    """Share of the steps of each recipe; small values only show that everything works."""
    seed: int = 0
    """Seed of every run."""
    threads: int = 2
    """CPU threads of PyTorch."""
    out: Path | None = None
    """JSON file for the result."""


def train(name: str, options: Options, *, console: Console) -> tuple[Path, dict[str, Any]]:
    """Model folder of a recipe, and what it took; the time is that of the run, whenever it was."""
    recipe, folder = settings_of(name, options), options.run / name
    original = find_recipe(name.removesuffix(FROM_NOTHING))
    found = newest_state(folder / "state") if (folder / "model").exists() else None
    if found is None:
        result = build(recipe, run_dir=folder, console=console, title=name, original=original).fit()
        if result.status == "stopped":
            sys.exit("stopped; the same command goes on")
        progress = dataclasses.asdict(result)
    else:
        progress = found[1] | {"steps": found[1]["step"]}
    spent = {key: progress[key] for key in ("steps", "samples_seen", "seconds")}
    return folder / "model", spent | {"trained_in_this_call": found is None}


def settings_of(name: str, options: Options) -> Recipe:
    """The recipe with this call's start folder, seed and share of the steps."""
    recipe = find_recipe(name.removesuffix(FROM_NOTHING))
    steps = max(1, round(recipe.trainer.max_steps * options.scale))
    return dataclasses.replace(
        recipe,
        init=None if name.endswith(FROM_NOTHING) else options.start,
        seed=options.seed,
        schedule=dataclasses.replace(
            recipe.schedule, warmup_steps=min(recipe.schedule.warmup_steps, steps // 2)
        ),
        trainer=dataclasses.replace(recipe.trainer, max_steps=steps),
    )


def mean_of_patches(rows: ClassSet, encoder: Any) -> Tensor:
    """Return the mean state of the patches of each row."""
    transform = EvalTransform(TransformConfig(image_size=encoder.config.image_size))

    def encode(part: range) -> Tensor:
        pixels = torch.stack([transform(decode_image(rows.rows[row]["image"])) for row in part])
        return (
            encoder(pixel_values=pixels.to(encoder.device))
            .image_hidden_state[:, 1:]
            .mean(dim=1)
            .float()
            .cpu()
        )

    return torch.cat(rows.map(encode, encoder, batch=rows.batch_size, console=None))


def classification(name: str, options: Options, *, console: Console) -> dict[str, Any]:
    """Fine-tuned and probed figures, and logistic regression on pixels."""
    settings = settings_of(name, options)
    source, tested = settings.evaluate_on or name, settings.evaluate_split
    rows = {
        split: ClassSet.read(source=source, split=split, notes=options.run / name)
        for split in ("train", tested)
    }
    where: dict[str, Any] = {"source": source, "split": tested}
    models: dict[str, Any] = {}
    for recipe in (name, name + FROM_NOTHING):
        folder, spent = train(recipe, options, console=console)
        models[recipe] = spent | figures(evaluate(folder, **where))
    began = time.monotonic()
    vectors = [pixel_vectors(each, side=CLASS_RECIPES[name]) for each in rows.values()]
    baseline = logistic_regression(rows["train"], rows[tested], vectors)
    models["logistic regression on pixels"] = {"seconds": time.monotonic() - began} | figures(
        baseline
    )
    encoder = load_model(options.start).backbone
    vectors = [mean_of_patches(each, encoder) for each in rows.values()]
    probe = logistic_regression(rows["train"], rows[tested], vectors)
    models["linear probe of the start, mean"] = figures(probe)
    labels = {split: class_numbers(each.rows) for split, each in rows.items()}
    frequent = (labels[tested] == labels["train"].bincount().argmax()).double().mean().item()
    models["most frequent class"] = {"metrics": {"top1": frequent}}
    return _result(source, rows, chance=baseline.chance, models=models)


def segmentation(name: str, options: Options, *, console: Console) -> dict[str, Any]:
    """Metrics after fine-tuning, and what colors alone tell."""
    settings = settings_of(name, options)
    source, tested = settings.evaluate_on or name, settings.evaluate_split
    rows = {
        split: SegmentSet.read(source=source, split=split, notes=options.run / name)
        for split in ("train", tested)
    }
    models: dict[str, Any] = {}
    for recipe in (name, name + FROM_NOTHING):
        folder, spent = train(recipe, options, console=console)
        models[recipe] = spent | figures(evaluate(folder, source=source, split=tested))
    began = time.monotonic()
    colors = color_table(rows["train"])
    baseline = segment_by_color(rows[tested], colors)
    models["class of each color"] = {"seconds": time.monotonic() - began} | figures(baseline)
    models["most frequent class"] = {"metrics": baseline.chance}
    return _result(source, rows, chance=baseline.chance, models=models)


def logistic_regression(
    train_rows: ClassSet, test_rows: ClassSet, vectors: list[torch.Tensor]
) -> TaskResult:
    """A linear classifier on vectors of the rows of both splits, with a penalty of 0.01."""
    train, tested = (each.double().numpy() for each in vectors)
    regression = LogisticRegression(C=100 / len(train), max_iter=1000)
    probe = make_pipeline(StandardScaler(), regression).fit(
        train, class_numbers(train_rows.rows).numpy()
    )
    method = {"method": "logistic regression", "l2": 0.01}
    return dataclasses.replace(test_rows, settings=method).result(
        torch.from_numpy(probe.predict_log_proba(tested))
    )


def pixel_vectors(rows: ClassSet, *, side: int) -> torch.Tensor:
    """Each image as one row of `side` x `side` x 3 numbers."""
    cells: Any = rows.rows["image"]
    images = [decode_image(cell).resize((side, side), Image.Resampling.BOX) for cell in cells]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).flatten(1) / 255


def color_table(rows: SegmentSet) -> np.ndarray:
    """The most frequent class of each color (16 levels a channel); the most frequent of all for colors never seen."""
    counts = np.zeros((_COLOR_LEVELS**3, len(rows.names)), dtype=np.int64)
    images = SegmentRows(rows.rows, num_classes=len(rows.names))
    for row in range(len(images)):
        image, mask = images[row]
        counted = mask != IGNORED_CLASS
        np.add.at(counts, (_colors(image)[counted], mask[counted]), 1)
    table = counts.argmax(axis=1)
    table[counts.sum(axis=1) == 0] = counts.sum(axis=0).argmax()
    return table


def segment_by_color(rows: SegmentSet, table: np.ndarray) -> TaskResult:
    """Figures of a table of colors."""
    images = SegmentRows(rows.rows, num_classes=len(rows.names))
    predictions = []
    for row, name in enumerate(images.names):
        image, mask = images[row]
        given = torch.from_numpy(table[_colors(image)])
        counts = count_pixels(given, torch.from_numpy(mask), num_classes=len(rows.names))
        cells = [
            [true, found, int(counts[true, found])] for true, found in counts.nonzero().tolist()
        ]
        predictions.append({"image_id": name, "pixels": cells})
    return rows.result(predictions)


def figures(result: TaskResult) -> dict[str, Any]:
    """Part of a result that is kept."""
    return {"metrics": result.metrics} | ({"settings": result.settings} if result.settings else {})


def _colors(image: Image.Image) -> np.ndarray:
    red, green, blue = np.moveaxis(np.asarray(image) // (256 // _COLOR_LEVELS), -1, 0).astype(
        np.int64
    )
    return (red * _COLOR_LEVELS + green) * _COLOR_LEVELS + blue


def _result(
    source: str, rows: dict[str, Any], *, chance: dict[str, float], models: dict[str, Any]
) -> dict[str, Any]:
    counts = {split: len(part.rows) for split, part in rows.items()}
    return {
        "data": source,
        "rows": counts,
        "classes": len(rows["train"].names),
        "chance": chance,
        "models": models,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the tasks, prints the result as JSON and returns it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments)
    console = Console(stderr=True)
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console)]
    )
    unknown = sorted(set(options.tasks) - {*CLASS_RECIPES, SEGMENT_RECIPE})
    if unknown:
        sys.exit(
            f"no task {', '.join(unknown)}; there are {', '.join((*CLASS_RECIPES, SEGMENT_RECIPE))}"
        )
    torch.set_num_threads(options.threads)
    packages = (
        "vlmo",
        "torch",
        "torchvision",
        "transformers",
        "timm",
        "scikit-learn",
        "scikit-image",
    )
    result = surroundings("vision_tasks.py", arguments, packages=packages) | {"seed": options.seed}
    result["tasks"] = {
        name: (segmentation if name == SEGMENT_RECIPE else classification)(
            name, options, console=console
        )
        for name in options.tasks
    }
    print(json.dumps(result, indent=2))
    write_result(result, options.out)
    return result


if __name__ == "__main__":
    main()
