"""Photographs a second from JPEG files to vectors: an index by VLMo Base in int8, and open_clip's ViT-B-32.

    python benchmarks/index_photos.py --wallpapers /usr/share/backgrounds --out benchmarks/results/index-photos.json

Photographs of 12 million pixels are made: scikit-image's and quarters of wallpapers, enlarged, with noise as of a
sensor (Debian's budgie-backgrounds, lomiri-wallpapers-16.04, lomiri-wallpapers-20.04 and mate-backgrounds have enough).
Weights are random, as they change no time. VLMo runs as `vlmo index --precision int8` does, thumbnails, EXIF data and
the table included; and once more with JPEGs decoded whole. open_clip runs as programs that search with it do (Pillow,
its own transform, batches of 8), in float32, bfloat16 and, with torch's dynamic quantisation, int8; the fastest counts.
They take turns.
"""

import itertools
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import open_clip
import skimage.data
import torch
import tyro
from PIL import Image

from search import cores
from surroundings import surroundings, write_result
from vlmo import VLMoConfig, VLMoForImageTextRetrieval
from vlmo.data.decoding import EncodedImage
from vlmo.export.sessions import Precision
from vlmo.processing import VLMoProcessor
from vlmo.retrieval import Encoder, build_index

_BATCH = 8
_PEER = ("float32", "bfloat16", "int8")
_NAMES = ("astronaut", "coffee", "chelsea", "rocket")


@dataclass(frozen=True)
class Options:
    """Times an index of photographs."""

    photos: int = 160
    """Files, all of different photographs."""
    wallpapers: tuple[Path, ...] = ()
    """Folders whose JPEG files, of any depth, are photographs too, a quarter each."""
    work: Path | None = None
    """Folder of the photographs, which a later call finds there; by default a temporary one."""
    size: tuple[int, int] = (4000, 3000)
    """Width and height."""
    turns: int = 3
    """Times that each program reads all files."""
    threads: int = 2
    """Cores that the process keeps to."""
    preset: str = "base"
    """Size of VLMo's model."""
    precision: Precision = "int8"
    """Of VLMo's model."""
    clip: str = "ViT-B-32"
    """open_clip's model."""
    out: Path | None = None
    """JSON file for the result."""


def scenes(wallpapers: Sequence[Path]) -> Iterator[Image.Image]:
    """Yield scikit-image's photographs, then the quarters of the wallpapers."""
    for name in _NAMES:
        yield Image.fromarray(getattr(skimage.data, name)())
    for file in sorted(file for folder in wallpapers for file in folder.rglob("*.jpg")):
        with Image.open(file) as image:
            width, height = image.width // 2, image.height // 2
            for left, top in itertools.product((0, width), (0, height)):
                yield image.convert("RGB").crop((left, top, left + width, top + height))


def write_photos(folder: Path, options: Options) -> None:
    """Write JPEG files as cameras do."""
    random, count = np.random.default_rng(0), 0
    for image in itertools.islice(scenes(options.wallpapers), options.photos):
        pixels = np.asarray(image.resize(options.size), np.float32)
        noisy = pixels + random.normal(0, 4, (*options.size[::-1], 1)).astype(np.float32)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            folder / f"{count:04}.jpg", quality=90
        )
        count += 1
    if count < options.photos:
        raise SystemExit(
            f"{options.photos} photographs are asked for, there are {count}: name more --wallpapers"
        )


def write_model(folder: Path, preset: str) -> None:
    """Write a model with random weights."""
    config = getattr(VLMoConfig, preset)()
    processor = VLMoProcessor.train(
        [*_NAMES, "a photograph"], vocab_size=96, image_size=config.image_size
    )
    config.vocab_size = processor.tokenizer.vocab_size
    VLMoForImageTextRetrieval(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def peer(options: Options, *, kind: str) -> Callable[[Sequence[Path]], torch.Tensor]:
    """open_clip's way from files to vectors; files are decoded on all cores."""
    model, _, transform = open_clip.create_model_and_transforms(options.clip)
    model.eval()
    if kind == "int8":
        warnings.simplefilter(
            "ignore", UserWarning
        )  # torch is about to move its quantisation elsewhere
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    @torch.inference_mode()
    def embed(files: Sequence[Path]) -> torch.Tensor:
        with ThreadPoolExecutor(options.threads) as pool:
            pixels = list(pool.map(lambda file: transform(Image.open(file)), files))
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
            return torch.cat(
                [
                    model.encode_image(torch.stack(pixels[n : n + _BATCH]))
                    for n in range(0, len(files), _BATCH)
                ]
            )

    return embed


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print photographs a second, and write the result with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments, description=__doc__)
    packages = ("open_clip_torch", "torch", "pillow", "onnxruntime", "openvino")
    with cores(options.threads), tempfile.TemporaryDirectory() as name:
        result = surroundings("index_photos.py", arguments, packages=packages)
        result["load_average"] = os.getloadavg()[0]
        images, model, number = (
            options.work or Path(name) / "images",
            Path(name) / "model",
            itertools.count(),
        )
        own = f"vlmo, {options.precision}"
        images.mkdir(parents=True, exist_ok=True)
        if len(list(images.glob("*.jpg"))) != options.photos:
            write_photos(images, options)
        write_model(model, options.preset)
        encoder, files = Encoder(model, precision=options.precision), sorted(images.glob("*.jpg"))
        encoder.pool = ThreadPoolExecutor(options.threads)

        def ours() -> None:
            build_index(encoder, [images], out=Path(name) / f"index-{next(number)}")

        whole = mock.patch.object(EncodedImage, "decode_to", lambda image, _: image.decode())
        ways: dict[str, Callable[[], object]] = {own: ours, f"{own}, decoded whole": whole(ours)}
        for kind in _PEER:
            embed = peer(options, kind=kind)
            ways[f"open_clip, {kind}"] = lambda embed=embed: embed(files)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(options.turns + 1):
            for way, run in ways.items():
                began = time.perf_counter()
                run()
                if turn:  # the first warms up
                    rates[way].append(options.photos / (time.perf_counter() - began))
    median = {way: float(np.median(each)) for way, each in rates.items()}
    fastest = max((f"open_clip, {kind}" for kind in _PEER), key=lambda way: median[way])
    ratios = [one / other for one, other in zip(rates[own], rates[fastest], strict=True)]
    result |= {
        "photos_a_second": {way: round(each, 2) for way, each in median.items()},
        "peer": fastest,
        "ratio": round(float(np.median(ratios)), 2),
    }
    print(result["photos_a_second"], result["ratio"])
    write_result(result, options.out)
    return result


if __name__ == "__main__":
    main()
