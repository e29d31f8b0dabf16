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
from PIL import Image

from vlmo.data import builtin
from vlmo.data.decoding import decode_image
from vlmo.demo.fast import QUERIES, SOURCES
from vlmo.export.sessions import read_description
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
GRAPHS = ("text_encoder", "image_encoder")
THUMBNAIL = 48
"""Pixels each way."""
COLUMNS = 64
"""Thumbnails in a row of the sheet."""
_QUALITY = 50
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


def _write_packages(folder: Path) -> dict[str, int]:
    sizes = {}
    for package, names in PACKAGES.items():
        with tempfile.TemporaryDirectory() as scratch:
            # A list, as the shell would be asked for nothing; npm prints the file's name last.
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
        content = (graphs / about["graphs"][name]["int8"]["file"]).read_bytes()
        sizes |= _write(folder, f"{name}.onnx", content, zipped=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        sizes |= _write(folder, name, (graphs / name).read_bytes(), zipped=False)
    settings = {name: about[name] for name in ("image", "text")}
    return sizes | _write(folder, "model.json", json.dumps(settings).encode(), zipped=False)


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
    vectors = encoder.embed_images(images)
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
