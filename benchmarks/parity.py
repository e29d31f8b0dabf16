"""Compare imported checkpoints with other implementations, and measure an import at full size.

    python benchmarks/parity.py --base --out benchmarks/results/parity.json

The cases are those of tests/parity: outputs of the published VLMo code for tiny checkpoints, transformers' Beit models,
and plain second implementations. Needs the extra `dev`. `--base` also writes VLMo-Base with random weights in float32,
as large as the published file of stage 3, and imports it in a process of its own.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import tyro
from rich.console import Console
from safetensors.torch import save_file
from transformers import BeitForMaskedImageModeling

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests are no package that is installed

from tests.parity import cases, plain_beit3, plain_vlmo, test_beit, test_beit3
from tests.parity.cases import Case, imported, reference_file

from surroundings import surroundings, write_result
from vlmo.checkpoints import beit3
from vlmo.checkpoints.importing import import_checkpoint
from vlmo.model import (
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
)

PUBLISHED, PLAIN, HUGGING_FACE = (
    "outputs of the published code",
    "a plain implementation",
    "transformers",
)
STAGE_3 = ("pooler", "itc", "itc_vl", "itm", "mlm")
# Linux counts the most memory that a process has held under this name.
_IMPORT = """
import re, sys
from pathlib import Path
from vlmo.cli import main
main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


@dataclass(frozen=True)
class Options:
    """Compares imported checkpoints with other implementations."""

    base: bool = False
    """Also measure time and memory of importing VLMo-Base (needs 2 GB of disk in the temporary folder)."""
    repeats: int = 3
    """Imports of VLMo-Base."""
    threads: int = 2
    """CPU threads of PyTorch."""
    out: Path | None = None
    """JSON file for the result."""


def comparisons(folder: Path) -> Iterator[tuple[str, str, Iterable[Case]]]:
    """Name of a checkpoint, what it is compared with, and its cases."""
    titles = {"pretrain": "stage 3", "vqa": "VQA", "nlvr2": "NLVR2", "irtr": "retrieval"}
    for name, title in titles.items():
        yield f"VLMo, {title}", PUBLISHED, cases.checkpoint_cases(name, folder)
    (folder / "128").mkdir()
    resized = imported(
        VLMoForImageTextRetrieval, reference_file("irtr"), folder / "128", image_size=128
    )
    yield "VLMo, retrieval, imported at 128 px", PUBLISHED, cases.resize_cases(resized)
    file = cases.write_absolute(folder)
    absolute = imported(
        VLMoForImageTextRetrieval, file, folder, num_attention_heads=cases.ABSOLUTE.heads
    )
    yield "VLMo with absolute positions (Base+)", PLAIN, cases.absolute_cases(absolute, file)
    for shared in (False, True):
        for style in ("published keys", "Hugging Face's folder"):
            table = "one table" if shared else "a table in each block"
            yield (
                f"BEiT, {style}, {table}",
                HUGGING_FACE,
                beit_cases(folder, style=style, shared=shared),
            )
    yield "BEiT-3, retrieval", PLAIN, beit3_cases()


@torch.no_grad()
def beit_cases(folder: Path, *, style: str, shared: bool) -> Iterator[Case]:
    """Masked image modeling of random weights."""
    torch.manual_seed(0)
    tables = {"use_relative_position_bias": not shared, "use_shared_relative_position_bias": shared}
    theirs = test_beit.random_beit(BeitForMaskedImageModeling, **tables)
    source = folder / f"beit-{shared}-{style[0]}"
    if style == "published keys":
        source = source.with_suffix(".safetensors")
        tensors = {
            key: tensor.clone().contiguous()
            for key, tensor in test_beit.published_keys(theirs).items()
        }
        save_file(tensors, source)
    else:
        theirs.save_pretrained(source)
    out = folder / f"beit-{shared}-{style[0]}-imported"
    import_checkpoint(source, out)
    ours = VLMoForMaskedImageModeling.from_pretrained(out).eval()
    pixels = test_beit.pictures()
    masked = torch.rand(2, test_beit.GRID**2) < 0.4
    logits = theirs(pixels, bool_masked_pos=masked).logits
    yield "masked image modeling", ours(pixels, bool_masked_pos=masked).reconstruction, logits
    states = ours.vlmo(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    yield "states", states, theirs.beit(pixels).last_hidden_state


@torch.no_grad()
def beit3_cases() -> Iterator[Case]:
    """Retrieval vectors of random weights."""
    torch.manual_seed(0)
    sizes = test_beit3.SIZES
    weights = plain_beit3.random_weights(sizes, contrast=True)
    plain = plain_beit3.PlainBEiT3(weights, sizes)
    model = test_beit3.load(beit3.convert(weights, num_attention_heads=sizes.heads))
    pixels, (ids, mask) = test_beit3.pictures(3), test_beit3.texts((7, 3, 1))
    output = model(pixel_values=pixels, input_ids=ids, attention_mask=mask)
    yield "image vector", output.image_embeds, plain.image_vector(pixels)
    yield "text vector", output.text_embeds, plain.text_vector(ids, mask)
    pair = model.vlmo(pixel_values=pixels, input_ids=ids, attention_mask=mask).last_hidden_state
    kept = torch.cat(
        [torch.ones(3, pair.shape[1] - ids.shape[1], dtype=torch.bool), mask.bool()], dim=1
    )
    yield "fused states", pair[kept], plain.fused(pixels, ids, mask)[kept]


def differences(folder: Path) -> list[dict[str, Any]]:
    """For each checkpoint the largest absolute difference of each output, and of the values themselves."""
    found = []
    for checkpoint, against, compared in comparisons(folder):
        outputs = {
            name: {
                "largest_difference": (actual - expected).abs().max().item(),
                "largest_value": expected.abs().max().item(),
            }
            for name, actual, expected in compared
        }
        found.append({"checkpoint": checkpoint, "against": against, "outputs": outputs})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The same in Markdown, a line for each checkpoint."""
    lines = [
        "| checkpoint | compared with | outputs | largest difference | largest value |",
        "| --- | --- | --- | --- | --- |",
    ]
    for entry in found:
        outputs = entry["outputs"]
        worst = max(outputs, key=lambda name: outputs[name]["largest_difference"])
        largest, value = (outputs[worst][key] for key in ("largest_difference", "largest_value"))
        lines.append(
            f"| {entry['checkpoint']} | {entry['against']} | {len(outputs)} | {largest:.1e} (`{worst}`) | {value:.1f} |"
        )
    return "\n".join(lines)


def import_cost(sizes: plain_vlmo.Sizes, *, repeats: int, threads: int) -> dict[str, Any]:
    """Seconds and peak memory of `vlmo import` for a stage-3 checkpoint of random weights, in float32."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = plain_vlmo.random_checkpoint(sizes, *STAGE_3, scale=0.02)
        parameters = sum(tensor.numel() for tensor in weights.values())
        torch.save({"state_dict": weights}, folder / "base.pt")
        del weights
        vocabulary = plain_vlmo.write_vocabulary(folder / "vocab.txt", size=sizes.vocabulary)
        runs = []
        for number in range(repeats):
            out = folder / f"out-{number}"
            command = [sys.executable, "-c", _IMPORT, "import", str(folder / "base.pt"), str(out)]
            start = time.perf_counter()
            ended = subprocess.run(
                [*command, "--vocabulary", str(vocabulary)],
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                capture_output=True,
                text=True,
                check=True,
            )
            seconds = time.perf_counter() - start
            peak = int(re.findall(r"\d+", ended.stderr)[-1]) / 2**20
            runs.append({"seconds": round(seconds, 2), "peak_gib": round(peak, 2)})
            for file in out.iterdir():
                file.unlink()
        return {
            "file_gib": round((folder / "base.pt").stat().st_size / 2**30, 2),
            "values": parameters,
            "runs": runs,
            "seconds": max(run["seconds"] for run in runs),
            "peak_gib": max(run["peak_gib"] for run in runs),
        }


def main(
    arguments: Sequence[str] | None = None, *, sizes: plain_vlmo.Sizes = plain_vlmo.BASE
) -> dict[str, Any]:
    """Prints the table and, with `--base`, what importing costs; returns all of it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments)
    torch.set_num_threads(options.threads)
    transformers.logging.disable_progress_bar()
    packages = ("vlmo", "torch", "transformers", "safetensors")
    result = surroundings("parity.py", arguments, packages=packages)
    with tempfile.TemporaryDirectory() as folder:
        result["parity"] = differences(Path(folder))
    print(table(result["parity"]))
    if options.base:
        result["import_base"] = import_cost(sizes, repeats=options.repeats, threads=options.threads)
        print(json.dumps(result["import_base"]))
    write_result(result, options.out)
    if options.out is not None:
        Console(stderr=True).print(f"written to {options.out}", highlight=False)
    return result


if __name__ == "__main__":
    main()
