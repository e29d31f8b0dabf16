"""Retrieval of one of our models against a CLIP of open_clip that is trained from nothing for the same time.

    python benchmarks/quality_vs_clip.py --seconds 17000 --out benchmarks/results/quality_vs_clip.json

Both see the same pairs, images (same augmentation), word pieces, patches, batch size and precision, and are searched
by the same code on the same sets. Give as `--seconds` what training of ours took, all stages together, in seconds of
one core: about 17,000 for `vlmo-small`. The peer's state is saved; the same command goes on after an interruption.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.logging import RichHandler
from torch import nn

from clip_peer import Peer, peer_loader, train_peer
from surroundings import surroundings, write_result
from vlmo.checkpoints.loading import load_processor, load_retrieval_model
from vlmo.distributed import choose_device
from vlmo.processing import VLMoProcessor
from vlmo.recipes import find_recipe
from vlmo.tasks.pair_sets import PairSet


@dataclass(frozen=True)
class Options:
    """Trains open_clip's CLIP on the pairs of a recipe, then lets it and our model find images and texts."""

    seconds: float
    """Training time of the peer; on a CPU in seconds of one core."""
    model: str = "vlmo-small"
    """Our model: a name or a folder."""
    vocabulary: str = "vlmo-small"
    """Model whose word pieces the peer reads."""
    recipe: str = "small-retrieval-again"
    """Recipe with the pairs, augmentation, batches and seed of the peer."""
    tests: tuple[str, ...] = ("data/icons", "lucide-icons", "emoji-pairs", "drawings-concepts")
    """Sets to search, split test."""
    run: Path = Path("runs/quality_vs_clip")
    """Folder for the peer's state."""
    clip_lr: tuple[float, ...] = (1e-3,)
    """Full learning rate of the peer. Several train a peer each, all for the whole time; the best one counts."""
    clip_width: int = 128
    """Width of both towers of the peer, and of its embeddings."""
    clip_layers: int = 4
    """Layers of each tower of the peer."""
    bf16: bool = True
    """Compute the peer's activations in bfloat16, as our stages do where the processor can."""
    threads: int = 1
    """CPU threads of PyTorch."""
    out: Path | None = None
    """JSON file for the result."""


def compare(options: Options, *, console: Console) -> dict[str, Any]:
    """Trains a peer for each learning rate, and evaluates it and ours."""
    recipe = find_recipe(options.recipe)
    model, processor = load_retrieval_model(options.model)
    options.run.mkdir(parents=True, exist_ok=True)
    of_peer = load_processor(options.vocabulary)
    loader = peer_loader(recipe, of_peer, quarantine=options.run / "quarantine.jsonl")

    def tests(processor: VLMoProcessor) -> dict[str, PairSet]:
        return {
            source: PairSet.read(source, split="test", processor=processor, quarantine=options.run / "test.jsonl")
            for source in options.tests
        }

    def outcome(model: nn.Module, sets: dict[str, PairSet]) -> dict[str, Any]:
        found = {source: rows.outputs(model, console=console) for source, rows in sets.items()}
        return {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "metrics": {source: result.metrics for source, result in found.items()},
        }

    ours, sets, peers = outcome(model, tests(processor)), tests(of_peer), []
    for lr in options.clip_lr:
        torch.manual_seed(recipe.seed)
        peer = Peer(
            of_peer,
            patch_size=recipe.model.patch_size,
            width=options.clip_width,
            layers=options.clip_layers,
        ).to(choose_device())
        training = train_peer(
            peer,
            loader,
            lr=lr,
            seconds=options.seconds,
            bf16=options.bf16,
            console=console,
            state=options.run / f"lr-{lr:g}-{options.seconds:g}s.pt",
            settings=f"{recipe.to_json()} {options.clip_width} {options.clip_layers} {options.bf16} {options.threads}",
        )
        peers.append(training | outcome(peer, sets))

    first = options.tests[0]
    best = max(peers, key=lambda tried: tried["metrics"][first]["ir@1"])
    return {
        "tests": {source: {"images": len(rows.rows), "texts": len(rows.captions)} for source, rows in sets.items()},
        "ours": ours,
        "clip": best,
        "clip_others": [tried for tried in peers if tried is not best],
        "ratio_of_ir@1": {
            source: ours["metrics"][source]["ir@1"] / recall if (recall := best["metrics"][source]["ir@1"]) else None
            for source in sets
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints its result as JSON."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments)
    console = Console(stderr=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console)])
    torch.set_num_threads(options.threads)
    packages = ("vlmo", "torch", "torchvision", "transformers", "open_clip_torch")
    result = surroundings("quality_vs_clip.py", arguments, packages=packages)
    result["hardware"]["device"] = str(choose_device())
    result |= compare(options, console=console)
    print(json.dumps(result, indent=2))
    write_result(result, options.out)


if __name__ == "__main__":
    main()
