"""Recall on long and tall images that keep their aspect ratio, beside the same images as squares.

    python experiments/long_images.py --out experiments/long_images.json
    python experiments/long_images.py --steps 60 --out experiments/long_images.json

An image is two test drawings of `emoji-pairs` side by side (2:1) or one above the other (1:2), its caption both names.
The model is `vlmo-small` as it is; with `--steps`, also after fine-tuning on such images of the training drawings, once
as squares and once with `data.transform.keep_aspect`, else alike. A seed is one set of pairs of drawings, and
one order of training; differences are paired by seed, with 95 % t-intervals over seeds.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from scipy import stats

from vlmo.checkpoints.loading import load_processor
from vlmo.data.decoding import decode_image
from vlmo.data.sources import open_source
from vlmo.processing import image_processor_for
from vlmo.recipes.finetune import finetune_recipe
from vlmo.released import SMALL, find_model
from vlmo.run import build
from vlmo.tasks import RetrievalTask, evaluate
from vlmo.tasks.result import circumstances
from vlmo.tasks.vision_language import VisionLanguageConfig

SIDE = 96
KEEPS_ASPECT = {"square": False, "keep_aspect": True}
METRICS = ("tr@1", "ir@1")


@dataclass(frozen=True)
class Options:
    """Model, and where the result goes."""

    model: str = SMALL
    """Model folder or name."""
    steps: int = 0
    """Steps of fine-tuning, 0 for none."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the pairs of drawings and of the fine-tuning, two or more."""
    out: Path = Path("experiments/long_images.json")
    """JSON file."""

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < 2:
            raise SystemExit(f"--seeds is {self.seeds}; give two or more, for an interval over seeds")


def write_split(folder: Path, split: str, *, rounds: int, seed: int) -> None:
    """Write images of two drawings each, every drawing twice a round: half of them side by side."""
    rows, generator = open_source("emoji-pairs", split=split), np.random.default_rng([seed, len(split)])
    lines = ["file_name,caption"]
    for number in range(rounds * len(rows)):
        if number % len(rows) == 0:
            order = generator.permutation(len(rows))
        pair = [rows[int(order[(number + step) % len(rows)])] for step in (0, 1)]
        wide, names = number % 2 == 0, [row["captions"][0].replace(",", "") for row in pair]
        image = Image.new("RGB", (2 * SIDE, SIDE) if wide else (SIDE, 2 * SIDE))
        for place, row in enumerate(pair):
            drawing = decode_image(row["image"]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            image.paste(drawing, (place * SIDE, 0) if wide else (0, place * SIDE))
        file = f"{number:05}.png"
        (folder / split).mkdir(parents=True, exist_ok=True)
        image.save(folder / split / file)
        lines.append(f"{file},{names[0]} and {names[1]}")
    (folder / split / "captions.csv").write_text("\n".join(lines) + "\n")


def with_shapes(model: Path, folder: Path, *, keep_aspect: bool) -> Path:
    """Copy a model folder; its processor makes squares, or keeps the aspect ratio."""
    config, processor = json.loads((model / "config.json").read_text()), load_processor(model)
    shutil.copytree(model, folder)
    patch = config["patch_size"] if keep_aspect else None
    processor.image_processor = image_processor_for(config["image_size"], aspect_patch_size=patch)
    processor.save_pretrained(folder)
    return folder


def recalls(folders: Mapping[str, Path], data: Path) -> dict[str, dict[str, float]]:
    """Return recall at 1 of each model folder, in percent."""
    result = {}
    for name, folder in folders.items():
        measured = evaluate(folder, source=str(data), split="test", rerank=0, device="cpu").metrics
        result[name] = {metric: round(100 * measured[metric], 2) for metric in METRICS}
    return result


def summary(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Return means over seeds, and the mean difference with its 95 % t-interval."""
    result = {}
    for metric in METRICS:
        values = {name: np.array([seed[name][metric] for seed in seeds]) for name in KEEPS_ASPECT}
        differences = values["keep_aspect"] - values["square"]
        mean = differences.mean()
        half = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(differences)
        row = {name: round(float(recall.mean()), 2) for name, recall in values.items()}
        row["difference"] = round(float(mean), 2)
        row["interval"] = [round(float(mean - half), 2), round(float(mean + half), 2)]
        result[metric] = row
    return result


def finetuned(options: Options, data: Path, folder: Path, *, keep_aspect: bool, seed: int) -> Path:
    """Fine-tune on the training images; return the model folder."""
    recipe = finetune_recipe(options.model, str(data)).recipe
    transform = replace(recipe.data.transform, keep_aspect=keep_aspect)
    recipe = replace(
        recipe,
        data=replace(recipe.data, transform=transform),
        task=RetrievalTask(losses=VisionLanguageConfig(itm_weight=0.0, mlm_weight=0.0)),  # recall is the dual encoder's
        loader=replace(recipe.loader, global_batch_size=64),
        trainer=replace(recipe.trainer, max_steps=options.steps),
        schedule=replace(recipe.schedule, warmup_steps=options.steps // 10),
        evaluate_on=None,
        seed=seed,
    )
    return build(recipe, run_dir=folder, console=Console(stderr=True)).fit().model_dir


def run_seed(options: Options, model: Path, work: Path, *, seed: int) -> dict[str, Any]:
    """Return recalls of the model as it is, and after fine-tuning."""
    data = work / "data"
    write_split(data, "test", rounds=1, seed=seed)
    folders = {}
    for name, keep_aspect in KEEPS_ASPECT.items():
        folders[name] = with_shapes(model, work / name, keep_aspect=keep_aspect)
    result = {"as it is": recalls(folders, data)}
    if options.steps:
        write_split(data, "train", rounds=1, seed=seed)
        for name, keep_aspect in KEEPS_ASPECT.items():
            run = work / f"run-{name}"
            folders[name] = finetuned(options, data, run, keep_aspect=keep_aspect, seed=seed)
        result["fine-tuned"] = recalls(folders, data)
    return result


def main(options: Options) -> None:
    """Write the result."""
    model = Path(find_model(options.model))
    content: dict[str, Any] = {"model": options.model, "steps": options.steps}
    content |= {name: circumstances(model)[name] for name in ("date", "commit", "versions", "hardware")}
    seeds = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as work:
            seeds[seed] = run_seed(options, model, Path(work), seed=seed)
    for part in seeds[options.seeds[0]]:
        content[part] = summary([recall[part] for recall in seeds.values()])
    content["seeds"] = seeds
    text = json.dumps(content, indent=1) + "\n"
    options.out.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main(tyro.cli(Options))
