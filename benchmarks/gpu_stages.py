"""Samples a second, share of the machine's matrix rate (MFU) and peak memory of a training step of each stage.

    python benchmarks/gpu_stages.py --out gpu_stages.json

Runs on a GPU where there is one, and on the CPU otherwise, which the result names. A step is forward, backward and
AdamW under bfloat16 autocast, on synthetic batches of full pictures and texts: stage 1 with visual tokens that are
known beforehand and 40 % of the patches masked, stage 2 with 192 tokens, stage 3 with 24 (15 % of all tokens masked).

Attention is `sdpa` (torch chooses the kernel) or `flex` (FlexAttention, compiled, which adds the position bias inside
its kernel). `eager` runs all else as it is, `compiled` compiles each block.

Useful operations are counted from the products of an eager step, with attention as plain products; nothing is
recomputed. MFU is their rate by that of a large bfloat16 product on the same device (`--peak-tflops` adds the share of
a data sheet's figure). Combinations that do not fit into memory are named as such.
"""

import contextlib
import functools
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from unittest import mock

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.flop_counter import FlopCounterMode

from surroundings import surroundings, write_result
from timing import matmul_flops
from vlmo.model import VLMoConfig, VLMoForMaskedImageModeling, VLMoForMaskedLM, VLMoForPreTraining
from vlmo.tasks.language import LanguageObjective
from vlmo.tasks.vision import VisionObjective
from vlmo.tasks.vision_language import VisionLanguageObjective
from vlmo.training.optimizer import OptimizerConfig, build_optimizer
from vlmo.types import Batch

Stage = Literal["stage1", "stage2", "stage3"]
Preset = Literal["base", "large", "tiny"]
Attention = Literal["sdpa", "flex"]
Mode = Literal["eager", "compiled"]
TEXT_LENGTHS = {"stage2": 192, "stage3": 24}
COUNTED_ROWS = 2
MASKED_PATCHES, MASKED_WORDS = 0.4, 0.15


@dataclass(frozen=True)
class Options:
    """Times the training steps of the three stages."""

    presets: tuple[Preset, ...] = ("base", "large")
    """Sizes of the model; its weights are random."""
    stages: tuple[Stage, ...] = ("stage1", "stage2", "stage3")
    """Stages of pre-training."""
    attentions: tuple[Attention, ...] = ("sdpa", "flex")
    """Implementations of attention."""
    modes: tuple[Mode, ...] = ("eager", "compiled")
    """With or without torch.compile of each block."""
    batch: int = 64
    """Rows of a step."""
    steps: int = 10
    """Timed steps, after `--warmup` others."""
    warmup: int = 3
    """Steps before the clock starts; compilation falls into them."""
    backend: str = "inductor"
    """Backend of torch.compile."""
    peak_tflops: float | None = None
    """The data sheet's dense bfloat16 rate of the device, in 10^12 operations a second."""
    out: Path | None = None
    """JSON file for the result."""


class KnownTokens:
    """A visual tokenizer that has all answers ready, so that a step does not time one."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def tokenize(self, pixel_values: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """The same token for every patch."""
        return torch.zeros(len(pixel_values), math.prod(grid), dtype=torch.long, device=pixel_values.device)


def objective_of(stage: Stage, config: VLMoConfig) -> nn.Module:
    """The stage's objective around a model with random weights."""
    if stage == "stage1":
        tokenizer = cast("Any", KnownTokens(config.num_visual_tokens))
        return VisionObjective(VLMoForMaskedImageModeling(config), tokenizer=tokenizer)
    if stage == "stage2":
        return LanguageObjective(VLMoForMaskedLM(config))
    return VisionLanguageObjective(VLMoForPreTraining(config))


def batch_of(stage: Stage, config: VLMoConfig, *, rows: int, device: str) -> Batch:
    """A synthetic batch."""
    generator = torch.Generator().manual_seed(0)
    patches = math.prod(config.grid)
    masked = torch.arange(patches) < round(MASKED_PATCHES * patches)
    length = min(TEXT_LENGTHS.get(stage, 8), config.max_text_positions)
    ids = torch.randint(5, config.vocab_size, (rows, length), generator=generator)
    hidden = torch.arange(length).expand(rows, -1) < max(1, round(MASKED_WORDS * length))
    batch: dict[str, Tensor] = {
        "pixel_values": torch.randn(rows, 3, config.image_size, config.image_size, generator=generator),
        "bool_masked_pos": masked.expand(rows, -1).clone(),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mlm_input_ids": ids.masked_fill(hidden, 4),
        "mlm_labels": ids.masked_fill(~hidden, -100),
        "image_ids": torch.arange(rows),
        "sample_ids": torch.arange(rows),
    }
    moved = {name: tensor.to(device) for name, tensor in batch.items()}
    return cast("Batch", moved | {"step_seed": torch.tensor(0)})


@functools.cache
def _compiled_flex(backend: str) -> Callable[..., Any]:
    return torch.compile(flex_attention, backend=backend, dynamic=False)


def attend_by_flex(backend: str) -> Callable[..., Tensor]:
    """Attention in place of torch's `scaled_dot_product_attention`; FlexAttention adds the bias to each score."""

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        score: Any = None
        if attn_mask is not None:
            bias = attn_mask
            rows, heads = bias.shape[0] > 1, bias.shape[1] > 1

            def score(logit: Tensor, row: Tensor, head: Tensor, at: Tensor, to: Tensor) -> Tensor:
                return logit + bias[row if rows else 0, head if heads else 0, at, to]

        return cast("Tensor", _compiled_flex(backend)(query, key, value, score_mod=score))

    return attend


@contextlib.contextmanager
def attention(kind: Attention, *, backend: str) -> Iterator[None]:
    """Runs the model's attention by an implementation."""
    if kind == "sdpa":
        yield
    else:
        with mock.patch.object(F, "scaled_dot_product_attention", attend_by_flex(backend)):
            yield


class Step:
    """One update of an objective on one batch."""

    def __init__(self, stage: Stage, config: VLMoConfig, *, rows: int, device: str) -> None:
        torch.manual_seed(0)
        self.device = device
        self.objective = objective_of(stage, config).to(device).train()
        self.batch = batch_of(stage, config, rows=rows, device=device)
        self.optimizer = build_optimizer(self.objective, config=OptimizerConfig(lr=1e-6))

    def compile_blocks(self, backend: str) -> None:
        """Compiles each block for itself."""
        model = cast("Any", self.objective).model
        for block in model.vlmo.blocks:
            block.compile(backend=backend)

    def __call__(self) -> None:
        """Forward, backward, AdamW."""
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.objective(self.batch)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def flops(self) -> int:
        """Operations of the products of one step."""
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self()
        return counter.get_total_flops()


def seconds_of_steps(step: Step, *, warmup: int, steps: int) -> list[float]:
    """Seconds of each timed step."""

    def one() -> float:
        start = time.perf_counter()
        step()
        if step.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(warmup):
        one()
    return [one() for _ in range(steps)]


def measure(
    stage: Stage, preset: Preset, kind: Attention, mode: Mode, *, options: Options, device: str, peak: float
) -> dict[str, Any]:
    """Figures of one combination."""
    named = {"stage": stage, "preset": preset, "attention": kind, "mode": mode, "batch": options.batch}
    try:
        # As in the recipes: the experts of fused tokens come with stage 3.
        changes = {} if stage == "stage3" else {"num_fusion_layers": 0}
        config = getattr(VLMoConfig, preset)(**changes)
        # Of few rows: counting keeps all scores of attention in memory. All but the contrast's logits grow alike.
        flops = Step(stage, config, rows=COUNTED_ROWS, device=device).flops() * options.batch / COUNTED_ROWS
        step = Step(stage, config, rows=options.batch, device=device)
        if mode == "compiled":
            step.compile_blocks(options.backend)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with attention(kind, backend=options.backend):
            seconds = statistics.median(seconds_of_steps(step, warmup=options.warmup, steps=options.steps))
    except torch.cuda.OutOfMemoryError:
        return named | {"out_of_memory": True}
    return named | {
        "samples_per_second": options.batch / seconds,
        "gflops_a_sample": flops / options.batch / 1e9,
        "mfu": flops / seconds / peak,
        "mfu_of_data_sheet": flops / seconds / options.peak_tflops / 1e12 if options.peak_tflops else None,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }


def table(result: dict[str, Any]) -> str:
    """The same in Markdown."""
    lines = ["| stage | size | attention | mode | samples a second | MFU | peak GiB |", "|" + " --- |" * 7]
    for each in result["runs"]:
        if each.get("out_of_memory"):
            figures = "out of memory | |"
        else:
            peak = "" if each["peak_gib"] is None else f"{each['peak_gib']:.1f}"
            figures = f"{each['samples_per_second']:,.1f} | {each['mfu']:.0%} | {peak}"
        names = " | ".join(each[name] for name in ("stage", "preset", "attention", "mode"))
        lines.append(f"| {names} | {figures} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table, and writes the result with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and "flex" in options.attentions:
        raise SystemExit("FlexAttention cannot be trained on a CPU; give --attentions sdpa, or run on a GPU")
    load = os.getloadavg()[0]
    result = surroundings("gpu_stages.py", arguments, packages=("vlmo", "torch"))
    result["device"] = torch.cuda.get_device_name() if device == "cuda" else result["hardware"]["cpu"]
    peak = matmul_flops(torch.bfloat16, device=device, size=8192 if device == "cuda" else 1024)
    result |= {"load_average": load, "compared": (__doc__ or "").strip(), "matmul_tflops": peak / 1e12, "runs": []}
    for preset, stage, kind, mode in itertools.product(
        options.presets, options.stages, options.attentions, options.modes
    ):
        torch.compiler.reset()
        _compiled_flex.cache_clear()
        found = measure(stage, preset, kind, mode, options=options, device=device, peak=peak)
        result["runs"].append(found)
        write_result(result, options.out)  # at once: a later combination may end in an error
        if device == "cuda":
            torch.cuda.empty_cache()
    print(f"on {result['device']}", table(result), sep="\n")


if __name__ == "__main__":
    main()
