"""Training images a second of one core: open_clip's input pipeline against ours, on the same tars of photographs.

    python benchmarks/input_pipeline.py --out benchmarks/results/input_pipeline.json

Both read the same tars in one process on one core, by turns, and end with the same: batches of float images of
`image_size` with mean = std = 0.5, cropped at random (share of the area from `min_crop` to 1, aspect from 3/4 to 4/3,
bicubic), and token ids. open_clip's is its own `get_wds_dataset` with its own training transform and tokenizer. Ours is
the `StreamLoader` of training, with its shuffling and its exact cursor, and the normalisation that training does on the
device. Turns with RandAugment are ours alone: open_clip's training has none.

A rate is the median over turns, a ratio the median over turns of both rates of a turn. `by_cpu_time` counts the seconds
that the process itself worked, so that it also means something on a machine that does other work.
"""

import functools
import importlib.resources
import io
import itertools
import math
import os
import statistics
import sys
import tarfile
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import tyro
from open_clip_train import data as open_clip_data
from PIL import Image
from torch import Tensor
from webdataset.tariterators import tar_file_expander

from surroundings import surroundings, write_result
from vlmo.data.config import StreamConfig
from vlmo.data.examples import Contents, StreamExamples
from vlmo.data.loader import LoaderConfig
from vlmo.data.stream.loader import Source, StreamLoader
from vlmo.processing import TrainTransform, TransformConfig, VLMoProcessor
from vlmo.types import normalize_pixels

OPEN_CLIP, OURS, OURS_AUGMENTED = "open_clip", "vlmo", "vlmo_with_rand_augment"
_DRAWN_FROM = (
    "skimage/data/astronaut.png",
    "skimage/data/coffee.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/motorcycle_left.png",
    "skimage/data/motorcycle_right.png",
    "skimage/data/retina.jpg",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
# What lies in people's tars: photographs of the web at these qualities.
_QUALITIES = (75, 85, 92)
_SHARD = 500
# Means and deviations of 64 images differ by some hundredths; other normalisation, channels or crops show.
_SAME = 0.15

Pipeline = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Options:
    """Times both input pipelines."""

    samples: int = 2000
    """Images in the tars."""
    long_side: int = 500
    """Pixels of an image's longer side."""
    image_size: int = 224
    """Pixels of what comes out."""
    min_crop: float = 0.9
    """Smallest share of the area that a crop keeps; open_clip's default is 0.9."""
    batch_size: int = 64
    """Images of a batch."""
    turns: int = 5
    """Passes of each pipeline over all tars."""
    out: Path | None = None
    """JSON file for the result."""


def photographs() -> dict[str, Image.Image]:
    """Photographs that packages bring along."""
    found = {}
    for path in map(Path, _DRAWN_FROM):
        package, *inside = path.parts
        with importlib.resources.files(package).joinpath(*inside).open("rb") as file:
            found[path.stem.replace("_", " ")] = Image.open(file).convert("RGB")
    return found


def write_tars(folder: Path, *, samples: int, long_side: int) -> dict[str, Any]:
    """Tars of cuts of the photographs as JPEG with a caption each; gives what is in them."""
    generator, sources = np.random.default_rng(0), photographs()
    sizes, lengths = [], []
    for first in range(0, samples, _SHARD):
        with tarfile.open(folder / f"{first // _SHARD:05d}.tar", "w") as tar:
            for number in range(first, min(first + _SHARD, samples)):
                name = list(sources)[number % len(sources)]
                image = _cut(sources[name], long_side=long_side, generator=generator)
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=int(generator.choice(_QUALITIES)))
                caption = (
                    f"part number {number} of a photograph that shows: {name}, seen from the side"
                )
                for suffix, data in (("jpg", buffer.getvalue()), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                sizes.append(image.size)
                lengths.append(len(buffer.getvalue()))
    return {
        "photographs": list(sources),
        "made_by": f"random cuts of 0.6 to 1 of each side, resized to {long_side} px on the longer side (Lanczos)",
        "jpeg_qualities": _QUALITIES,
        "mean_width_height": [round(float(side)) for side in np.mean(sizes, axis=0)],
        "mean_bytes": round(statistics.mean(lengths)),
    }


def _cut(image: Image.Image, *, long_side: int, generator: np.random.Generator) -> Image.Image:
    width, height = (round(side * generator.uniform(0.6, 1)) for side in image.size)
    left, top = (
        generator.integers(image.width - width + 1),
        generator.integers(image.height - height + 1),
    )
    factor = long_side / max(width, height)
    size = (round(width * factor), round(height * factor))
    return image.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))


def open_clip_pipeline(tars: list[Path], *, options: Options) -> Pipeline:
    """open_clip's own, as its training builds it, without worker processes."""
    transform = open_clip.image_transform(
        options.image_size,
        is_train=True,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        aug_cfg={"scale": (options.min_crop, 1.0)},
    )
    arguments = Namespace(
        train_data="::".join(map(str, tars)),
        train_num_samples=options.samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=options.batch_size,
        workers=0,
        world_size=1,
    )
    # Newer releases of webdataset end each tar with an empty sample, which open_clip's grouping of files does not know.
    open_clip_data.tar_file_expander = functools.partial(tar_file_expander, eof_value=None)
    data = open_clip_data.get_wds_dataset(
        arguments,
        transform,
        is_train=True,
        floor=True,
        tokenizer=open_clip.get_tokenizer("ViT-B-16"),
    )

    def run(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        data.set_epoch(epoch)
        yield from data.dataloader

    return run


def our_pipeline(
    tars: list[Path], *, options: Options, rand_augment_ops: int, tokenizer: Any, folder: Path
) -> Pipeline:
    """Read as training on streams does, without worker processes, and normalise, which is the device's work."""
    transform = TrainTransform(
        TransformConfig(
            image_size=options.image_size,
            min_crop=options.min_crop,
            horizontal_flip=0.0,
            rand_augment_ops=rand_augment_ops,
        )
    )
    patterns = tuple(map(str, tars))
    loader = StreamLoader(
        [Source(patterns)],
        StreamExamples(Contents(seed=0, transform=transform, tokenizer=tokenizer)),
        config=StreamConfig(patterns=patterns, lanes=math.gcd(len(tars), options.batch_size)),
        loader=LoaderConfig(global_batch_size=options.batch_size, num_workers=0),
        seed=0,
        quarantine=folder / f"quarantine-{rand_augment_ops}.jsonl",
    )
    # One endless stream for all turns: it reads ahead as fast as it gives.
    steps = loader(0)

    def run(_epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for (batch,) in itertools.islice(steps, options.samples // options.batch_size):
            yield normalize_pixels(batch["pixel_values"]), batch["input_ids"]

    return run


def _captions(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return [
            tar.extractfile(member).read().decode()
            for member in tar
            if member.name.endswith(".txt")
        ]


def time_turn(pipeline: Pipeline, *, epoch: int) -> dict[str, float]:
    """Images a second of wall time and of the process's own time, over one pass."""
    images, began, own = 0, time.perf_counter(), time.process_time()
    for batch, _ in pipeline(epoch):
        images += len(batch)
    return {
        "wall": images / (time.perf_counter() - began),
        "by_cpu_time": images / (time.process_time() - own),
    }


def check_same_work(pipelines: dict[str, Pipeline], *, options: Options) -> dict[str, list[float]]:
    """Mean and standard deviation of a batch of each.

    Raises:
        ValueError: They differ in shape or type, or without RandAugment by those figures in more than other images
            of the tars would.
    """
    found = {}
    for name, pipeline in pipelines.items():
        images, _ = next(iter(pipeline(0)))
        if images.dtype != torch.float32 or images.shape != (
            options.batch_size,
            3,
            *[options.image_size] * 2,
        ):
            raise ValueError(f"{name} gives {tuple(images.shape)} of {images.dtype}")
        found[name] = [round(images.mean().item(), 3), round(images.std().item(), 3)]
        apart = max(
            abs(own - peer) for own, peer in zip(found[name], found[OPEN_CLIP], strict=True)
        )
        if name != OURS_AUGMENTED and apart > _SAME:  # random colors change both figures
            raise ValueError(
                f"{name} gives images of mean and deviation {found[name]}, {OPEN_CLIP} {found[OPEN_CLIP]}"
            )
    return found


def compare(options: Options, *, folder: Path) -> dict[str, Any]:
    """Writes the tars into `folder` and times the pipelines on them."""
    data = write_tars(folder, samples=options.samples, long_side=options.long_side)
    tars = sorted(folder.glob("*.tar"))
    words = _captions(tars[0])
    tokenizer = VLMoProcessor.train(words, vocab_size=1000, image_size=options.image_size).tokenizer
    ours = functools.partial(
        our_pipeline, tars, options=options, tokenizer=tokenizer, folder=folder
    )
    pipelines = {
        OPEN_CLIP: open_clip_pipeline(tars, options=options),
        OURS: ours(rand_augment_ops=0),
        OURS_AUGMENTED: ours(rand_augment_ops=2),
    }
    figures = check_same_work(pipelines, options=options)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in pipelines}
    names = list(pipelines)
    for turn in range(options.turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            turns[name].append(time_turn(pipelines[name], epoch=turn))
    return {
        "data": data,
        "mean_and_deviation": figures,
        "pipelines": {name: _summary(name, turns) for name in names},
    }


def _summary(name: str, turns: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    pairs = list(zip(turns[name], turns[OPEN_CLIP], strict=True))
    return {
        f"{figure}_{clock}": value
        for clock in ("wall", "by_cpu_time")
        for figure, value in (
            ("images_per_second", round(statistics.median(own[clock] for own in turns[name]), 1)),
            (
                "ratio_to_open_clip",
                round(statistics.median(own[clock] / peer[clock] for own, peer in pairs), 3),
            ),
            ("turns", [round(own[clock], 1) for own in turns[name]]),
        )
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the comparison and writes the result."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = tyro.cli(Options, args=arguments, description=__doc__)
    load = os.getloadavg()[0]
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    try:
        if cores:
            os.sched_setaffinity(0, {min(cores)})
        with tempfile.TemporaryDirectory() as folder:
            result = compare(options, folder=Path(folder))
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
    packages = ["vlmo", "open_clip_torch", "webdataset", "torch", "torchvision", "pillow"]
    result = {
        "surroundings": surroundings("input_pipeline.py", arguments, packages=packages)
        | {"load_average": load},
        "options": asdict(replace(options, out=None)),
        "cores_used": 1,
        "reader": "StreamLoader, a lane for each tar",
        **result,
    }
    for name, figures in result["pipelines"].items():
        print(
            f"{name:<24} {figures['images_per_second_wall']:8.1f} images/s/core, {figures['ratio_to_open_clip_wall']}x"
        )
    write_result(result, options.out)
    return result


if __name__ == "__main__":
    main()
