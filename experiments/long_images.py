"""Recall on long and tall images that keep their aspect ratio, beside the same images as squares.

    python experiments/long_images.py --out experiments/long_images.json
    python experiments/long_images.py --steps 60 --out experiments/long_images.json

An image is two test drawings of `emoji-pairs` side by side (2:1) or one above the other (1:2), its caption both names.
The model is `vlmo-small` as it is; with `--steps`, also after fine-tuning on such images of the training drawings, once
as squares and once with `data.transform.keep_aspect`, else alike.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from rich.console import Console

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

SIDE, RESAMPLES = 96, 10_000


@dataclass(frozen=True)
class Options:
    """Model, and where the result goes."""

    model: str = SMALL
    """Model folder or name."""
    steps: int = 0
    """Steps of fine-tuning, 0 for none."""
    seed: int = 0
    """Of the pairs of drawings, and of the fine-tuning."""
    out: Path = Path("experiments/long_images.json")
    """JSON file."""


def write_split(folder: Path, split: str, *, rounds: int, seed: int) -> None:
    """Write images of two drawings each, every drawing twice a round: half of them side by side."""
    rows, generator = (
        open_source("emoji-pairs", split=split),
        np.random.default_rng([seed, len(split)]),
    )
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


def compared(square: Path, shaped: Path, data: Path) -> dict[str, dict[str, float | list[float]]]:
    """Return recall at 1 of both folders in percent, and the difference with a paired bootstrap interval of images."""
    hits = {}
    for name, folder in (("square", square), ("keep_aspect", shaped)):
        rows = evaluate(folder, source=str(data), split="test", rerank=0, device="cpu").predictions
        found = {(row["query"], row["image_id"]): float(row["rank"] == 1) for row in rows}
        for query in ("image", "caption"):
            hits[name, query] = np.array(
                [hit for (kind, _), hit in sorted(found.items()) if kind == query]
            )
    result: dict[str, dict[str, float | list[float]]] = {}
    for query, metric in (("image", "tr@1"), ("caption", "ir@1")):
        both = [100 * hits[name, query] for name in ("square", "keep_aspect")]
        chosen = np.random.default_rng(0).integers(len(both[0]), size=(RESAMPLES, len(both[0])))
        ends = np.quantile((both[1] - both[0])[chosen].mean(axis=1), [0.025, 0.975])
        means = [float(each.mean()) for each in both]
        difference = {"difference": means[1] - means[0], "interval": ends.tolist()}
        result[metric] = {"square": means[0], "keep_aspect": means[1], **difference}
    return result


def finetuned(options: Options, data: Path, folder: Path, *, keep_aspect: bool) -> Path:
    """Fine-tune on the training images; return the model folder."""
    recipe = finetune_recipe(options.model, str(data)).recipe
    transform = replace(recipe.data.transform, keep_aspect=keep_aspect)
    recipe = replace(
        recipe,
        data=replace(recipe.data, transform=transform),
        task=RetrievalTask(
            losses=VisionLanguageConfig(itm_weight=0.0, mlm_weight=0.0)
        ),  # recall is the dual encoder's
        loader=replace(recipe.loader, global_batch_size=64),
        trainer=replace(recipe.trainer, max_steps=options.steps),
        schedule=replace(recipe.schedule, warmup_steps=options.steps // 10),
        evaluate_on=None,
        seed=options.seed,
    )
    return build(recipe, run_dir=folder, console=Console(stderr=True)).fit().model_dir


def main(options: Options) -> None:
    """Write the result."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_split(work / "data", "test", rounds=1, seed=options.seed)
        model, kinds = Path(find_model(options.model)), {"square": False, "keep_aspect": True}
        folders = {
            name: with_shapes(model, work / name, keep_aspect=keep) for name, keep in kinds.items()
        }
        content = {
            "options": {"model": options.model, "steps": options.steps, "seed": options.seed}
        }
        content["as it is"] = compared(*folders.values(), work / "data")
        if options.steps:
            write_split(work / "data", "train", rounds=1, seed=options.seed)
            trained = [
                finetuned(options, work / "data", work / f"run-{name}", keep_aspect=keep)
                for name, keep in kinds.items()
            ]
            content["fine-tuned"] = compared(*trained, work / "data")
        content |= {
            "test images": len(list((work / "data" / "test").glob("*.png"))),
            **circumstances(model),
        }
    text = json.dumps(content, indent=1) + "\n"
    options.out.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main(tyro.cli(Options))
