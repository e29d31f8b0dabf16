"""The page that searches in the visitor's browser: its model, images and packages, beside docs/browser/.

`make docs` writes them; `python docs/browser_page.py FOLDER` writes the page alone.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import datasets
import numpy as np
import onnx
import onnxruntime
from PIL import Image

from vlmo.data import builtin
from vlmo.data.decoding import decode_image
from vlmo.demo.fast import QUERIES, SOURCES
from vlmo.export.sessions import (
    DESCRIPTION,
    IMAGE_ENCODER,
    TEXT_ENCODER,
    read_description,
)
from vlmo.released import SMALL
from vlmo.retrieval import Encoder
from vlmo.retrieval.graphs_engine import write_graphs

PAGE = Path(__file__).resolve().parent / "browser"
PACKAGES = {
    "onnxruntime-web@1.31.1": (
        "ort.wasm.min.mjs",
        "ort-wasm-simd-threaded.mjs",
        "ort-wasm-simd-threaded.wasm",
    ),
    "@huggingface/tokenizers@0.2.0": ("tokenizers.min.mjs",),
}
"""npm's packages, and the files of their dist/ that the page loads."""
GRAPHS = (TEXT_ENCODER, IMAGE_ENCODER)
THUMBNAIL = 48
"""Pixels each way."""
COLUMNS = 64
"""Thumbnails in a row of the sheet."""
_QUALITY = 50
# Images that go through the graph at a time.
_BATCH = 64
# One component of a unit vector in 16 bits: the error is below 2e-5.
_SCALE = 32767


def write_page(folder: Path, *, limit: int | None = None) -> None:
    """Write the page with all that it loads.

    Args:
        folder: New folder, or one with files of an earlier call, which are replaced.
        limit: Images of each set; None takes all.

    Raises:
        FileNotFoundError: npm is missing.
        subprocess.CalledProcessError: npm finds no such package.
    """
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    encoder = Encoder(SMALL, engine="onnx", precision="int8")
    sizes = _write_packages(folder) | _write_model(encoder, folder)
    names, artists = _write_gallery(encoder, folder, limit=limit)
    gallery = {
        "dim": encoder.dim,
        "scale": _SCALE,
        "thumbnail": THUMBNAIL,
        "columns": COLUMNS,
        "queries": QUERIES,
        "sizes": sizes,
        "credits": artists,
        "names": names,
    }
    (folder / "gallery.json").write_text(json.dumps(gallery), encoding="utf-8")


def graph_of(folder: Path, name: str) -> onnxruntime.InferenceSession:
    """Open a graph of a page that was written, with the page's settings."""
    options = onnxruntime.SessionOptions()
    # More would round activations again, where it multiplies by weights in int8.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    content = gzip.decompress((folder / f"{name}.onnx.gz").read_bytes())
    return onnxruntime.InferenceSession(content, options)


def image_vectors(
    graph: onnxruntime.InferenceSession, encoder: Encoder, images: list[Image.Image]
) -> np.ndarray:
    """Return L2-normalized vectors of images, (image, dim)."""
    vectors = []
    for start in range(0, len(images), _BATCH):
        levels = np.stack([encoder.pixels(image) for image in images[start : start + _BATCH]])
        # As the processor: mean and standard deviation are 0.5.
        values = (levels.astype(np.float32) - 127.5) / 127.5
        vectors.append(graph.run(None, {"pixel_values": values.astype(np.float32)})[0])
    return np.concatenate(vectors)


def _write_packages(folder: Path) -> dict[str, int]:
    sizes = {}
    for package, names in PACKAGES.items():
        with tempfile.TemporaryDirectory() as scratch:
            command = ["npm", "pack", "--silent", "--pack-destination", scratch, package]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            (archive,) = Path(scratch).iterdir()
            with tarfile.open(archive) as files:
                for name in names:
                    member = files.extractfile(f"package/dist/{name}")
                    assert member is not None, f"{package} holds no {name}"
                    sizes |= _write(folder, name, member.read(), zipped=name.endswith(".wasm"))
    return sizes


def _write_model(encoder: Encoder, folder: Path) -> dict[str, int]:
    graphs = write_graphs(encoder.folder, encoder.fingerprint, precision="int8")
    about = read_description(graphs)
    sizes = {}
    for name in GRAPHS:
        graph = onnx.load(graphs / about["graphs"][name]["int8"]["file"])
        _keep_activations(graph)
        sizes |= _write(folder, f"{name}.onnx", graph.SerializeToString(), zipped=True)
    for name in (DESCRIPTION, "tokenizer.json", "tokenizer_config.json"):
        sizes |= _write(folder, name, (graphs / name).read_bytes(), zipped=False)
    return sizes


def _keep_activations(model: onnx.ModelProto) -> None:
    """Leave activations in float32; weights stay int8.

    Sums in the browser are added in another order. Where activations are rounded, that moves some to
    the next level, and vectors differ from Python's by up to 0.004.
    """
    nodes = model.graph.node
    rounded = {node.output[0]: node for node in nodes if node.op_type == "QuantizeLinear"}
    sources = {}
    for node in nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in rounded:
            sources[node.output[0]] = rounded[node.input[0]].input[0]
    kept = [
        node for node in nodes if node.op_type != "QuantizeLinear" and node.output[0] not in sources
    ]
    for node in kept:
        for position, name in enumerate(node.input):
            node.input[position] = sources.get(name, name)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    weights = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)


def _write(folder: Path, name: str, content: bytes, *, zipped: bool) -> dict[str, int]:
    """Write a file, compressed where servers may not do it; return its name and size."""
    if zipped:
        name = f"{name}.gz"
        # Without a time, the same content gives the same file.
        content = gzip.compress(content, mtime=0)
    (folder / name).write_bytes(content)
    return {name: len(content)}


def _write_gallery(
    encoder: Encoder, folder: Path, *, limit: int | None
) -> tuple[list[str], list[str]]:
    """Write vectors and thumbnails; return the images' names, and artists with their licenses."""
    images = []
    names = []
    artists = {}
    for source, split in SOURCES:
        rows = datasets.load_from_disk(str(builtin.build(source) / split))
        for row in rows.select(range(min(len(rows), limit or len(rows)))):
            images.append(decode_image(row["image"]))
            names.append(row["captions"][0])
            artists[f"{row['source']} ({row['licence']})"] = None
    vectors = image_vectors(graph_of(folder, IMAGE_ENCODER), encoder, images)
    np.round(vectors * _SCALE).astype("<i2").tofile(folder / "vectors.bin")
    num_rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * THUMBNAIL, num_rows * THUMBNAIL), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, COLUMNS)
        place = (column * THUMBNAIL, row * THUMBNAIL)
        sheet.paste(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS), place)
    sheet.save(folder / "thumbnails.webp", quality=_QUALITY, method=6)
    return names, list(artists)


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
