"""Retrieval of VLMo's dual encoder and of open_clip's CLIP, both trained from nothing by contrast for the same time.

    PYTHONPATH=. python benchmarks/quality_vs_clip.py --seconds 600 --out benchmarks/results/quality-vs-clip.json

Both see the same pairs, images (same augmentation), word pieces, patches, batch size and precision in one loop with
the same loss, which leaves equal captions out, and are searched by the same code on the same sets. Each side takes the
best of several learning rates by IR@1 on rows held out of the training ones, with the first seed; then it is trained
with each seed. States are saved; the same command goes on after an interruption.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from datasets import Dataset
from rich.console import Console

import worlds  # noqa: F401  (registers its recipes and sets)
from clip_peer import CLIP_OPTIMIZER, Peer, train_dual
from surroundings import surroundings, write_result
from vlmo.checkpoints.loading import load_processor
from vlmo.data.examples import Contents, RowExamples
from vlmo.data.loader import RowLoader
from vlmo.data.sources import open_source
from vlmo.data.validation import filter_invalid_rows
from vlmo.distributed import choose_device
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval
from vlmo.processing import TrainTransform, VLMoProcessor, image_processor_for
from vlmo.recipes import Recipe, find_recipe
from vlmo.run.start import model_settings
from vlmo.tasks.pair_sets import PairSet

SIDES = ("vlmo", "clip")
_HELD_OUT = 60
"""One of so many training rows is held out, to choose the learning rate."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Options:
    """Trains both dual encoders on the pairs of a recipe, and lets them find images and texts."""

    seconds: float = 600.0
    """Training time of each model; on a CPU in seconds of one core."""
    vocabulary: str = "vlmo-small"
    """Model whose word pieces both read."""
    recipe: str = "small-contrast"
    """Recipe with size, pairs, augmentation and batches."""
    tests: tuple[str, ...] = ("data/icons", "lucide-icons", "emoji-pairs", "drawings-concepts")
    """Sets to search, split test."""
    lrs: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    """Full learning rates, of which each side takes its best."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights and batches."""
    run: Path = Path("runs/quality_vs_clip")
    """Folder for the states."""
    clip_width: int = 128
    """Width of both towers of the peer, and of its embeddings."""
    clip_layers: int = 4
    """Layers of each tower of the peer."""
    bf16: bool = True
    """Compute activations in bfloat16."""
    threads: int = 1
    """CPU threads of PyTorch."""
    out: Path | None = None
    """JSON file for the result."""


def batches(rows: Dataset, recipe: Recipe, processor: VLMoProcessor, *, seed: int) -> RowLoader:
    """The batches of a recipe on pairs, without masked words."""
    transform = TrainTransform(
        dataclasses.replace(recipe.data.transform, image_size=recipe.model.image_size)
    )
    contents = Contents(seed=seed, transform=transform, tokenizer=processor.tokenizer)
    examples = RowExamples(rows, contents, unit=recipe.data.unit)
    # Without workers, whose seconds the clock of the process does not count.
    return RowLoader(
        examples,
        config=dataclasses.replace(recipe.loader, accumulation=1, num_workers=0),
        seed=seed,
    )


def difference(hits: dict[str, list[np.ndarray]]) -> tuple[float, float, float]:
    """Mean difference in hits of `vlmo` and `clip` (arrays of 0 and 1, one for each seed), with a 95 % interval.

    The interval is a bootstrap over queries and seeds, both sides with the same queries.
    """
    ours, theirs = (np.stack(hits[side]) for side in SIDES)
    generator = np.random.default_rng(0)
    means = []
    for _ in range(_RESAMPLES):
        queries = generator.integers(ours.shape[1], size=ours.shape[1])
        seeds = [generator.integers(len(each), size=len(each)) for each in (ours, theirs)]
        means.append(ours[seeds[0]][:, queries].mean() - theirs[seeds[1]][:, queries].mean())
    low, high = np.percentile(means, (2.5, 97.5))
    return float(ours.mean() - theirs.mean()), float(low), float(high)


def compare(options: Options, *, console: Console) -> dict[str, Any]:
    """Chooses rates, trains both sides with each seed, and evaluates them."""
    recipe, processor, device = (
        find_recipe(options.recipe),
        load_processor(options.vocabulary),
        choose_device(),
    )
    processor.image_processor = image_processor_for(recipe.model.image_size)
    options.run.mkdir(parents=True, exist_ok=True)
    data = recipe.data
    rows = open_source(data.source, split=data.split, weights=data.weights)
    rows = filter_invalid_rows(rows, quarantine=options.run / "quarantine.jsonl")
    held_out = range(0, len(rows), _HELD_OUT)
    training = rows.select([number for number in range(len(rows)) if number % _HELD_OUT])
    validation = PairSet(
        rows.select(held_out), source=data.source, split="held out", processor=processor
    )
    tests = {
        source: PairSet.read(source=source, split="test", processor=processor, notes=options.run)
        for source in options.tests
    }

    def train(side: str, *, lr: float, seed: int) -> tuple[Any, dict[str, Any]]:
        torch.manual_seed(seed)
        if side == "vlmo":
            model: Any = VLMoForImageTextRetrieval(
                VLMoConfig(**model_settings(recipe, processor, None))
            )
            optimizer = recipe.optimizer
        else:
            model = Peer(
                processor,
                patch_size=recipe.model.patch_size,
                width=options.clip_width,
                layers=options.clip_layers,
            )
            optimizer = CLIP_OPTIMIZER
        trained = train_dual(
            model.to(device),
            batches(training, recipe, processor, seed=seed),
            optimizer=dataclasses.replace(optimizer, lr=lr),
            seconds=options.seconds,
            bf16=options.bf16,
            console=console,
            title=f"{side}, rate {lr:g}, seed {seed}",
            state=options.run / f"{side}-{lr:g}-{seed}-{options.seconds:g}s.pt",
            settings=f"{recipe.to_json()} {options.clip_width} {options.clip_layers} {options.bf16} {options.threads}",
        )
        return model, trained | {
            "parameters": sum(parameter.numel() for parameter in model.parameters())
        }

    sides: dict[str, Any] = {}
    hits: dict[str, dict[str, list[np.ndarray]]] = {
        source: {side: [] for side in SIDES} for source in tests
    }
    for side in SIDES:
        rates = {}
        for lr in options.lrs:
            model, _ = train(side, lr=lr, seed=options.seeds[0])
            rates[lr] = validation.outputs(model, console=console).metrics["ir@1"]
        best = max(rates, key=lambda lr: rates[lr])
        runs = []
        for seed in options.seeds:
            model, run = train(side, lr=best, seed=seed)
            run["metrics"] = {}
            for source, pairs in tests.items():
                outputs = pairs.outputs(model, console=console)
                run["metrics"][source] = outputs.metrics
                hits[source][side].append(
                    (outputs.dual.text_to_image.ranks == 1).numpy().astype(float)
                )
            runs.append(run)
        sides[side] = {
            "validation_ir@1": {f"{lr:g}": value for lr, value in rates.items()},
            "lr": best,
            "runs": runs,
        }
    return {
        "tests": {
            source: {"images": len(pairs.rows), "texts": len(pairs.captions)}
            for source, pairs in tests.items()
        },
        **sides,
        "ir@1": {
            source: {side: float(np.mean(found)) for side, found in by_side.items()}
            | dict(zip(("difference", "low", "high"), difference(by_side), strict=True))
            for source, by_side in hits.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints its result as JSON."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments)
    torch.set_num_threads(options.threads)
    packages = ("vlmo", "torch", "torchvision", "transformers", "open_clip_torch")
    result = surroundings("quality_vs_clip.py", arguments, packages=packages)
    result["hardware"]["device"] = str(choose_device())
    result |= compare(options, console=Console(stderr=True))
    print(json.dumps(result, indent=2))
    write_result(result, options.out)


if __name__ == "__main__":
    main()
