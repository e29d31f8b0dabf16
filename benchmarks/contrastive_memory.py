"""Peak memory of one training step of base-coco-retrieval, for contrastive batches of 256, 1,024 and 3,072 pairs.

    python benchmarks/contrastive_memory.py --out memory.json

Each batch has a process of its own: the recipe's model with random weights in training mode (drop path on), bf16
autocast, the gradient cache, clipping and AdamW's first update. Images are random 8-bit ones of the recipe's size,
made before the step and held in memory as such; texts are random words without padding; each pair has its own image.

"Above the state" is the peak of resident memory during the step less what was resident just before, model and batch
included; `growth_above_state` says how much more it is than with the smallest batch. Linux only, as it reads and resets
the kernel's peak.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from torch import Tensor

from surroundings import surroundings, write_result
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval
from vlmo.recipes import find_recipe
from vlmo.tasks import RetrievalTask
from vlmo.tasks.vision_language import VisionLanguageObjective
from vlmo.training.optimizer import build_optimizer
from vlmo.types import Batch

_GIB = 2**30


@dataclass(frozen=True)
class Options:
    """Measures a step for each batch; the smaller settings are there to try the script."""

    batches: tuple[int, ...] = (256, 1024, 3072)
    """Pairs of a step, the smallest first."""
    chunk: int = 32
    """Pairs whose activations are in memory (`cache_chunk`)."""
    matching: bool = False
    """Adds image-text matching with hard negatives drawn from the whole batch."""
    layers: int | None = None
    """Layers of the model; None: the recipe's twelve."""
    image_size: int | None = None
    """Height and width in pixels; None: the recipe's 384."""
    text_length: int = 40
    """Tokens of each text."""
    threads: int = 2
    """CPU threads."""
    out: Path | None = None
    """JSON file for the result."""
    only: int | None = None
    """Measures this batch in the running process and prints its figures; what the script calls itself with."""


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reset_peak() -> None:
    """Lets the kernel count the peak of resident memory from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most bytes in memory since `reset_peak`."""
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


def random_batch(pairs: int, *, image_size: int, text: int, vocabulary: int) -> dict[str, Tensor]:
    """Pairs of noise."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, vocabulary, (pairs, text), generator=generator)
    return {
        "pixel_values": torch.randint(
            0, 256, (pairs, 3, image_size, image_size), dtype=torch.uint8, generator=generator
        ),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_ids": torch.arange(pairs),
        "step_seed": torch.tensor(0),
    }


def make_objective(options: Options) -> VisionLanguageObjective:
    """The recipe's model and losses, with the gradient cache."""
    recipe = find_recipe("base-coco-retrieval")
    assert isinstance(recipe.task, RetrievalTask)
    itm_weight = 1.0 if options.matching else 0.0
    settings = asdict(recipe.model) | {
        "use_match_head": options.matching,
        "contrast_fusion_branch": False,
    }
    if options.image_size is not None:
        settings["image_size"] = options.image_size
    if options.layers is not None:
        settings |= {
            "num_hidden_layers": options.layers,
            "num_fusion_layers": min(2, options.layers),
        }
    losses = replace(recipe.task.losses, cache_chunk=options.chunk, itm_weight=itm_weight)
    torch.manual_seed(0)
    return VisionLanguageObjective(
        VLMoForImageTextRetrieval(VLMoConfig(**settings)).train(), config=losses
    )


def measure(pairs: int, options: Options) -> dict[str, Any]:
    """Figures of one step in this process."""
    torch.set_num_threads(options.threads)
    recipe, objective = find_recipe("base-coco-retrieval"), make_objective(options)
    config = objective.model.config
    optimizer = build_optimizer(objective, config=recipe.optimizer)
    batch = random_batch(
        pairs, image_size=config.image_size, text=options.text_length, vocabulary=config.vocab_size
    )
    before = resident()
    reset_peak()
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(Batch(**batch))
    losses["loss"].backward()
    norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    optimizer.step()
    seconds = time.perf_counter() - start
    highest = peak()
    return {
        "pairs": pairs,
        "seconds": seconds,
        "pairs_per_second": pairs / seconds,
        "state_bytes": before,
        "image_bytes": batch["pixel_values"].nbytes,
        "peak_bytes": highest,
        "peak_above_state_bytes": highest - before,
        "losses": {name: float(value.detach()) for name, value in losses.items()},
        "gradient_norm": float(norm),
    }


def in_own_process(pairs: int, arguments: Sequence[str]) -> dict[str, Any]:
    """Figures of one step in a fresh process."""
    command = [sys.executable, __file__, *arguments, "--only", str(pairs)]
    return json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[
            -1
        ]
    )


def table(steps: Sequence[dict[str, Any]]) -> str:
    """The figures in Markdown."""
    lines = [
        "| pairs | images, GiB | peak above the state, GiB | peak, GiB | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for step in steps:
        sizes = [
            step[name] / _GIB for name in ("image_bytes", "peak_above_state_bytes", "peak_bytes")
        ]
        lines.append(
            f"| {step['pairs']:,} | {sizes[0]:.2f} | {sizes[1]:.2f} | {sizes[2]:.2f} | {step['seconds']:,.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints figures, and writes them with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments)
    if options.only is not None:
        sys.stdout.write(json.dumps(measure(options.only, options)) + "\n")
        return
    console = Console(stderr=True)
    torch.set_num_threads(options.threads)
    result = surroundings(
        "contrastive_memory.py", arguments, packages=("vlmo", "torch", "transformers")
    )
    result["load_average"] = os.getloadavg()[0]
    steps: list[dict[str, Any]] = []
    for pairs in options.batches:
        steps.append(in_own_process(pairs, arguments))
        console.print(f"{pairs} pairs: {steps[-1]['seconds']:,.0f} s", highlight=False)
        growth = [
            step["peak_above_state_bytes"] / steps[0]["peak_above_state_bytes"] - 1
            for step in steps
        ]
        result |= {"steps": steps, "growth_above_state": growth}
        write_result(result, options.out)  # after each, as a large one may take an hour
    console.print(table(steps), highlight=False)


if __name__ == "__main__":
    main()
