"""Time, peak memory and arithmetic of a stage 3 step against the published step written plainly (plain_stage3.py).

    python benchmarks/stage3_step.py --out stage3_step.json
    python benchmarks/stage3_step.py --device cuda --pairs 64 --out stage3_step_gpu.json

A step is the losses of a batch, forward and backward, on the same weights, images and captions; both leave the
optimizer out. Captions have 8 to 24 random tokens; ours are padded to the longest of the batch, the peer's to 40. Both
run by turns in one process; peak memory is measured for each in a process of its own, from the moment that the model
exists. Other work on the machine slows both sides by different factors: `load_average` says whether there was any
before the start.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from plain_stage3 import check_plain, plain_step
from surroundings import surroundings, write_result
from vlmo.model import VLMoConfig, VLMoForPreTraining
from vlmo.tasks.vision_language import VisionLanguageObjective
from vlmo.types import Batch

OURS, PLAIN = "ours", "plain"
SIDES = (OURS, PLAIN)
SHORTEST, LONGEST, PLAIN_LENGTH = 8, 24, 40
MASKED_SHARE = 0.15
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# Largest difference between the sides' losses; bfloat16 rounds to 8 bits, at other places on each side.
TOLERANCE = {"float32": 1e-4, "bf16": 0.05}

Step = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Options:
    """Measures a stage 3 step and the plain one."""

    preset: Literal["tiny", "base", "large"] = "base"
    """Sizes of the model, with random weights."""
    pairs: int = 8
    """Pairs of a step."""
    rounds: int = 3
    """Steps of each side, after one to warm up."""
    precisions: tuple[Literal["float32", "bf16"], ...] = ("float32", "bf16")
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 2
    """CPU threads."""
    memory_of: Literal["ours", "plain"] | None = None
    """Only prints the peak memory of one side in the first precision; the script calls itself so."""
    out: Path | None = None
    """JSON file for the result."""

    def __post_init__(self) -> None:
        if self.pairs < 2 or self.rounds < 1 or self.threads < 1 or not self.precisions:
            raise ValueError(
                f"pairs, rounds and threads are {self.pairs}, {self.rounds} and {self.threads}, precisions "
                f"{self.precisions}; give at least 2 pairs, as one has no negative, and 1 of all else"
            )


def make_model(options: Options) -> VLMoForPreTraining:
    """Random weights; the position bias, which starts at zero, is given values."""
    torch.manual_seed(0)
    model = VLMoForPreTraining(getattr(VLMoConfig, options.preset)())
    check_plain(model.config)
    with torch.no_grad():
        model.vlmo.position_bias.table.normal_(std=0.5)
    return model.train().to(options.device)


def make_batch(config: VLMoConfig, *, pairs: int, length: int | None = None) -> Batch:
    """Noise and random captions, padded to `length` or to the longest of them."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (pairs,), generator=generator)
    longest = int(lengths.max())
    mask = torch.arange(longest) < lengths[:, None]
    ids = torch.randint(5, config.vocab_size, mask.shape, generator=generator) * mask
    chosen = (torch.rand(mask.shape, generator=generator) < MASKED_SHARE) & mask
    chosen[:, 1] = True  # whole-word masking takes at least one word of each caption
    fill = (0, 0 if length is None else length - longest)
    return {
        "pixel_values": torch.randn(
            pairs, 3, config.image_size, config.image_size, generator=generator
        ),
        "input_ids": F.pad(ids, fill),
        "attention_mask": F.pad(mask.long(), fill),
        "mlm_input_ids": F.pad(ids.masked_fill(chosen, 4), fill),
        "mlm_labels": F.pad(ids.masked_fill(~chosen, -100), fill, value=-100),
        "image_ids": torch.arange(pairs),
        "step_seed": torch.tensor(7),
    }


def make_step(side: str, model: VLMoForPreTraining, *, precision: str, options: Options) -> Step:
    """Losses and gradients of one batch."""
    length = None if side == OURS else PLAIN_LENGTH
    batch = make_batch(model.config, pairs=options.pairs, length=length)
    batch = {name: tensor.to(options.device) for name, tensor in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    objective = VisionLanguageObjective(model)

    def step() -> dict[str, float]:
        model.zero_grad()
        with torch.autocast(options.device, torch.bfloat16, enabled=precision == "bf16"):
            losses = objective(batch) if side == OURS else plain_step(model, batch)
        losses["loss"].backward()
        return {name: losses[name].item() for name in ("loss", "itc", "mlm", "itm")}

    return step


def compare_gradients(model: VLMoForPreTraining, steps: dict[str, Step]) -> float:
    """Distance of both sides' gradients over the length of the plain one."""
    gradients = {}
    for side in SIDES:
        steps[side]()
        gradients[side] = {
            name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None
        }
    model.zero_grad()
    distance = sum(
        float((gradients[OURS][name] - g).square().sum()) for name, g in gradients[PLAIN].items()
    )
    return (distance / sum(float(g.square().sum()) for g in gradients[PLAIN].values())) ** 0.5


def check_losses(losses: dict[str, dict[str, float]], *, precision: str) -> float:
    """The largest difference between the sides' losses; RuntimeError if the sides do not compute the same."""
    difference = max(abs(losses[OURS][name] - value) for name, value in losses[PLAIN].items())
    if not difference <= TOLERANCE[precision]:
        raise RuntimeError(f"the losses differ by {difference:.2g} in {precision}: {losses}")
    return difference


def clock(options: Options) -> float:
    """Seconds, when the device has finished."""
    if options.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def time_by_turns(steps: dict[str, Step], options: Options) -> dict[str, Any]:
    """Seconds of each side and their ratio; in each round the other side is first."""
    wall: dict[str, list[float]] = {side: [] for side in SIDES}
    cpu: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            began, began_cpu = clock(options), time.process_time()
            steps[side]()
            wall[side].append(clock(options) - began)
            cpu[side].append(time.process_time() - began_cpu)

    def ratio(seconds: dict[str, list[float]]) -> float:
        return statistics.median(
            ours / plain for ours, plain in zip(seconds[OURS], seconds[PLAIN], strict=True)
        )

    return {
        side: {
            "seconds": statistics.median(wall[side]),
            "cpu_seconds": statistics.median(cpu[side]),
            "pairs_per_second": options.pairs / statistics.median(wall[side]),
            "rounds": [round(each, 3) for each in wall[side]],
        }
        for side in SIDES
    } | {"time_ratio": ratio(wall), "cpu_time_ratio": ratio(cpu)}


def peak_memory(side: str, options: Options) -> int:
    """Bytes that two steps of a side need at most beside the model, in this process."""
    model = make_model(options)
    step = make_step(side, model, precision=options.precisions[0], options=options)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    step()
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Bytes, from the line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def peak_memory_apart(side: str, *, precision: str, options: Options) -> int:
    """The same from a new process."""
    arguments = [sys.executable, __file__, "--memory-of", side, "--precisions", precision]
    for name in ("preset", "pairs", "device", "threads"):
        arguments += [f"--{name}", str(getattr(options, name))]
    return int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def count_operations(model: VLMoForPreTraining, options: Options) -> dict[str, int]:
    """Floating point operations of matrix products and convolutions, forward and backward; a product-sum counts as two.

    Ours are counted with whole score matrices, as the chunks of `vlmo.model.cpu` compute scores a second time,
    which is of no use.
    """
    implementation = model.config._attn_implementation
    counts = {}
    for side in SIDES:
        model.set_attn_implementation("eager" if side == OURS else implementation)
        with FlopCounterMode(display=False) as counter:
            make_step(side, model, precision="float32", options=options)()
        counts[side] = counter.get_total_flops()
    model.set_attn_implementation(implementation)
    return counts


@contextmanager
def exact_products() -> Any:
    """Float32 is float32 on a GPU too."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def measure(options: Options, *, console: Console) -> dict[str, Any]:
    """All figures."""
    model = make_model(options)
    console.print("counting operations")
    counts = count_operations(model, options)
    result: dict[str, Any] = {
        "operations": counts,
        "operations_ratio": counts[OURS] / counts[PLAIN],
        "precisions": {},
    }
    for precision in options.precisions:
        console.print(f"{precision}: losses, gradients")
        steps = {
            side: make_step(side, model, precision=precision, options=options) for side in SIDES
        }
        losses = {side: steps[side]() for side in SIDES}
        figures: dict[str, Any] = {
            "losses": losses,
            "largest_difference_of_losses": check_losses(losses, precision=precision),
            "relative_difference_of_gradients": compare_gradients(model, steps),
        }
        console.print(f"{precision}: {options.rounds} rounds")
        result["precisions"][precision] = figures | time_by_turns(steps, options)
    model.zero_grad()
    del model
    for precision in options.precisions:
        console.print(f"{precision}: peak memory")
        peaks = {
            side: peak_memory_apart(side, precision=precision, options=options) for side in SIDES
        }
        ratio = peaks[OURS] / peaks[PLAIN]
        result["precisions"][precision] |= {
            "peak_bytes_above_the_model": peaks,
            "memory_ratio": ratio,
        }
    return result


def summary(result: dict[str, Any]) -> str:
    """The ratios, a line for each precision."""
    lines = [f"operations: {result['operations_ratio']:.3f} of the plain step's"]
    for precision, figures in result["precisions"].items():
        lines.append(
            f"{precision}: time {figures['time_ratio']:.3f}, memory {figures['memory_ratio']:.3f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the result."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=given, description=__doc__)
    torch.set_num_threads(options.threads)
    if options.memory_of is not None:
        print(peak_memory(options.memory_of, replace(options, precisions=options.precisions[:1])))
        return
    console = Console(stderr=True)
    load = os.getloadavg()[0]
    with exact_products():
        result = measure(options, console=console)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    result = {
        **surroundings("stage3_step.py", given, packages=["vlmo", "torch", "transformers"]),
        "device": device,
        "load_average": load,
        "settings": {
            "preset": options.preset,
            "pairs": options.pairs,
            "captions": [SHORTEST, LONGEST],
        }
        | {"plain_text_length": PLAIN_LENGTH, "rounds": options.rounds},
    } | result
    print(summary(result))
    write_result(result, options.out)


if __name__ == "__main__":
    main()
