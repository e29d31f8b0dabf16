"""Seconds to compare N images with N texts: dual encoder, fusion encoder, and a shortlist of the one for the other.

    python benchmarks/dual_vs_fusion.py --out dual_vs_fusion.json

The dual encoder embeds N images and N texts and multiplies all of them (VLMo's claim of speed in retrieval: linear work
where the fusion encoder's is quadratic). The fusion encoder scores N x N pairs. Reranking embeds as well, and scores
the `--shortlist` best texts of each image. Weights and inputs are random, which changes no time; texts have
`--text-length` tokens.

Images, texts and pairs go through the model batch by batch, up to the largest N or until `--seconds` have passed, each
kind for itself. Every row says of each time whether it is `measured`, or `extrapolated` by the seconds a row so far.
Reranking adds times of its parts. Crossing points follow from the seconds of an image, a text, a pair, and a product.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from surroundings import surroundings, write_result
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval


@dataclass(frozen=True)
class Options:
    """Times the dual encoder against the fusion encoder."""

    preset: Literal["tiny", "small", "base", "base_plus", "large"] = "base"
    """Sizes of the model; its weights are random."""
    counts: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000, 5000)
    """N: as many images as texts."""
    shortlist: int = 10
    """Texts that the fusion encoder scores for each image when it reranks."""
    text_length: int = 16
    """Tokens of each text, none of them padding."""
    batch: int = 32
    """Images, texts or pairs of a call."""
    seconds: float = 300.0
    """Most time for each of images, texts and pairs; the rest is extrapolated."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Data type of weights and activations."""
    threads: int = 2
    """CPU threads."""
    out: Path | None = None
    """JSON file for the result."""


@dataclass(frozen=True)
class Clock:
    """When how many rows were done.

    Attributes:
        done: Rising numbers of rows.
        seconds: Since the start, one for each.
    """

    done: list[int]
    seconds: list[float]

    @property
    def each(self) -> float:
        """Seconds of a row over all that was measured."""
        return self.seconds[-1] / self.done[-1]

    def at(self, rows: int) -> tuple[float, str]:
        """Seconds for so many rows, and whether they were measured or extrapolated."""
        for done, seconds in zip(self.done, self.seconds, strict=True):
            if done >= rows:
                return seconds, "measured"
        return rows * self.each, "extrapolated"


def timed(call: Callable[[int], Any], *, marks: Sequence[int], batch: int, seconds: float) -> Clock:
    """Calls with up to `batch` rows, ending a call at each of the rising `marks`, until the last or out of time."""
    call(min(batch, marks[-1]))
    clock, done = Clock([], []), 0
    start = time.perf_counter()
    for mark in marks:
        while done < mark:
            rows = min(batch, mark - done)
            call(rows)
            done += rows
            clock.done.append(done)
            clock.seconds.append(time.perf_counter() - start)
            if clock.seconds[-1] > seconds:
                return clock
    return clock


def product_seconds(count: int, *, width: int, shortlist: int) -> float:
    """Seconds to multiply `count` image vectors with as many text vectors and find the best of each row."""
    images, texts = torch.randn(count, width), torch.randn(count, width)
    repeats = max(1, 1000 // count)
    (images @ texts.T).topk(min(shortlist, count))
    start = time.perf_counter()
    for _ in range(repeats):
        (images @ texts.T).topk(min(shortlist, count))
    return (time.perf_counter() - start) / repeats


def measure(options: Options) -> dict[str, Any]:
    """A row for each N, seconds of each part, and crossing points."""
    counts = sorted(set(options.counts))
    torch.manual_seed(0)
    dtype = getattr(torch, options.precision)
    config = getattr(VLMoConfig, options.preset)()
    model = VLMoForImageTextRetrieval(config).eval().to(dtype)
    pixels = torch.randn(options.batch, 3, config.image_size, config.image_size).to(dtype)
    ids = torch.randint(5, config.vocab_size, (options.batch, options.text_length))
    limits: dict[str, Any] = {"batch": options.batch, "seconds": options.seconds}
    images = timed(lambda rows: model.get_image_features(pixels[:rows]), marks=counts, **limits)
    texts = timed(lambda rows: model.get_text_features(ids[:rows]), marks=counts, **limits)
    squares = [count**2 for count in counts]
    pairs = timed(lambda rows: model.match(pixels[:rows], ids[:rows]), marks=squares, **limits)
    products = {
        count: product_seconds(count, width=config.projection_size, shortlist=options.shortlist)
        for count in counts
    }
    return {
        "model": {
            "preset": options.preset,
            "parameters": sum(each.numel() for each in model.parameters()),
        },
        "seconds_each": {
            "image": images.each,
            "text": texts.each,
            "pair": pairs.each,
            "product": products[counts[-1]] / counts[-1] ** 2,
        },
        "rows_measured": {
            "images": images.done[-1],
            "texts": texts.done[-1],
            "pairs": pairs.done[-1],
        },
        "rows": [
            row(
                count,
                clocks=(images, texts, pairs),
                product=products[count],
                shortlist=options.shortlist,
            )
            for count in counts
        ],
        "crossings": crossings(
            image=images.each,
            text=texts.each,
            pair=pairs.each,
            product=products[counts[-1]] / counts[-1] ** 2,
            shortlist=options.shortlist,
        ),
    }


def row(
    count: int, *, clocks: tuple[Clock, Clock, Clock], product: float, shortlist: int
) -> dict[str, Any]:
    """Times for N = `count`."""
    images, texts, pairs = clocks
    (image_seconds, image_kind), (text_seconds, text_kind) = images.at(count), texts.at(count)
    dual = image_seconds + text_seconds + product
    fusion, fusion_kind = pairs.at(count**2)
    reranked, reranked_kind = pairs.at(count * min(shortlist, count))
    dual_kind = "measured" if image_kind == text_kind == "measured" else "extrapolated"
    return {
        "count": count,
        "dual": {
            "seconds": dual,
            "kind": dual_kind,
            "images": image_seconds,
            "texts": text_seconds,
            "product": product,
        },
        "fusion": {"seconds": fusion, "kind": fusion_kind},
        "rerank": {
            "seconds": dual + reranked,
            "kind": "measured" if dual_kind == reranked_kind == "measured" else "extrapolated",
        },
        "fusion_by_dual": fusion / dual,
        "fusion_by_rerank": fusion / (dual + reranked),
    }


def crossings(
    *, image: float, text: float, pair: float, product: float, shortlist: int
) -> dict[str, Any]:
    """From which N one way is faster than another; None for never."""
    embedding = image + text
    gain = pair - product
    return {
        # N (image + text) + N^2 product < N^2 pair
        "dual_faster_than_fusion_from": None if gain <= 0 else math.floor(embedding / gain) + 1,
        # the same with N shortlist pair more on the left
        "rerank_faster_than_fusion_from": (
            None if gain <= 0 else math.floor((embedding + shortlist * pair) / gain) + 1
        ),
        "product_longer_than_embedding_from": math.floor(embedding / product) + 1,
        "reranking_longer_than_embedding_from_shortlist": math.floor(embedding / pair) + 1,
    }


def table(result: dict[str, Any]) -> str:
    """The same in Markdown; `~` marks what is extrapolated."""
    lines = [
        "| N | dual encoder, s | fusion encoder, s | reranked, s | fusion by dual |",
        "|" + " --- |" * 5,
    ]
    for each in result["rows"]:
        times = (
            f"{'~' if each[way]['kind'] == 'extrapolated' else ''}{each[way]['seconds']:,.4g}"
            for way in ("dual", "fusion", "rerank")
        )
        lines.append(f"| {each['count']:,} | {' | '.join(times)} | {each['fusion_by_dual']:,.1f} |")
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in result["crossings"].items())])


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table, and writes the result with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments)
    if (
        not options.counts
        or min(*options.counts, options.shortlist, options.batch, options.text_length) < 1
    ):
        raise SystemExit("--counts, --shortlist, --batch and --text-length must be 1 or more")
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    result = surroundings("dual_vs_fusion.py", arguments, packages=("vlmo", "torch"))
    result |= {"load_average": load, "compared": (__doc__ or "").strip()}
    with torch.inference_mode():
        result |= measure(options)
    print(table(result))
    write_result(result, options.out)


if __name__ == "__main__":
    main()
