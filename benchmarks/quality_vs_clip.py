"""Retrieval of `vlmo quickstart` against a CLIP of open_clip that is trained from nothing for the same wall time.

    python benchmarks/quality_vs_clip.py --out benchmarks/results/quality_vs_clip.json

Both see the same pairs, pictures (same augmentation), word pieces, patches, batch size and precision, and are searched
by the same code on the scenes that neither saw. Time is that of training alone: of ours the visual tokenizer and
stages 1 to 3. Building data sets is counted for neither.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.logging import RichHandler
from torch import nn

from clip_peer import Peer, peer_loader, train_peer
from surroundings import surroundings, write_result
from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.demo.quickstart import STAGE1, STAGE2, STAGE3, TOKENIZER, quickstart_recipes
from vlmo.evaluation import RetrievalResult
from vlmo.recipes import Recipe
from vlmo.run import build
from vlmo.tasks.retrieval import PairSet
from vlmo.training import choose_device, read_metrics
from vlmo.training.checkpoint import claim_run_folder, newest_state

STAGES = (TOKENIZER, STAGE1, STAGE2, STAGE3)


@dataclass(frozen=True)
class Options:
    """Trains our quickstart, then open_clip's CLIP for the same wall time, and lets both find unseen scenes."""

    run: Path = Path("runs/quality_vs_clip")
    """Folder of our quickstart; stages that have finished there, with the same settings, are taken as they are."""
    scale: float = 1.0
    """Share of the steps of each of our stages."""
    seconds: float | None = None
    """Training time of the peer; by default what ours took."""
    clip_lr: tuple[float, ...] = (1e-3,)
    """Full learning rate of the peer. Several train a peer each, all for the whole time; the best one counts."""
    clip_context: int | None = None
    """Length that the peer's texts are padded to (open_clip's default: 77); by default the batch's longest."""
    clip_precision: Literal["float32", "bf16"] | None = None
    """Type of the peer's activations; by default that of our stage 3."""
    threads: int = 2
    """CPU threads of PyTorch, for both."""
    out: Path | None = None
    """JSON file for the result."""


def train_ours(recipes: dict[str, Recipe], *, run: Path, console: Console) -> dict[str, dict[str, Any]]:
    """Steps, samples and seconds of each stage; stages that have finished in `run` are not trained again."""
    spent = {}
    for name in STAGES:
        recipe, folder = recipes[name], run / name
        claim_run_folder(folder, recipe_json=recipe.to_json(), write=False)  # not a run with other settings
        saved = newest_state(folder / "state") if (folder / "model").exists() else None
        if saved is None:
            result = build(recipe, run_dir=folder, console=console, title=f"ours, {name}").fit()
            if result.status == "stopped":
                sys.exit("stopped; the same command goes on")
            progress = dataclasses.asdict(result)
        else:
            progress = saved.progress | {"steps": saved.progress["step"]}
        spent[name] = {key: progress[key] for key in ("steps", "samples_seen", "seconds")}
        spent[name]["trained_in_this_call"] = saved is None
    return spent


def compare(options: Options, *, console: Console) -> dict[str, Any]:
    """Trains and evaluates ours, then a peer for each learning rate."""
    recipes = quickstart_recipes(options.run, scale=options.scale)
    recipe, run = recipes[STAGE3], options.run
    longest = recipe.text.max_length
    if options.clip_context is not None and options.clip_context < longest:
        raise ValueError(f"--clip-context is {options.clip_context}; texts have up to {longest} tokens: give no less")
    stages = train_ours(recipes, run=run, console=console)
    seconds = sum(stage["seconds"] for stage in stages.values())
    model, processor = load_retrieval_model(run / STAGE3 / "model")
    rows = PairSet.read(recipe.data.source, split="test", processor=processor, quarantine=run / "test.quarantine.jsonl")
    found = rows.outputs(model, console=console)
    precision = [line["precision"] for line in read_metrics(run / STAGE3) if "precision" in line][-1]
    ours = {"stages": stages, "seconds": seconds, "precision": precision} | outcome(model, found)

    loader = peer_loader(recipe, processor, quarantine=run / "peer.quarantine.jsonl")
    settings: dict[str, Any] = {
        "seconds": seconds if options.seconds is None else options.seconds,
        "bf16": (options.clip_precision or ours["precision"]) == "bf16",
        "console": console,
    }
    peers = []
    for lr in options.clip_lr:
        torch.manual_seed(recipe.seed)
        peer = Peer(processor, patch_size=recipe.model.patch_size, pad_to=options.clip_context).to(choose_device())
        training = train_peer(peer, loader, lr=lr, **settings)
        peers.append(training | outcome(peer, rows.outputs(peer, console=console)))
    best = max(peers, key=lambda tried: tried["figures"]["ir@1"])
    recall = best["figures"]["ir@1"]
    return {
        "test": {"source": recipe.data.source, "images": len(rows.rows), "texts": len(rows.captions)},
        "chance": found.chance,
        "ours": ours,
        "clip": best,
        "clip_others": [tried for tried in peers if tried is not best],
        "ratio_of_ir@1": ours["figures"]["ir@1"] / recall if recall else None,
    }


def outcome(model: nn.Module, found: RetrievalResult) -> dict[str, Any]:
    """Size, with heads that retrieval does not use, and recalls of a model (fractions)."""
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), "figures": found.metrics}


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
