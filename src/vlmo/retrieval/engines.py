"""Engines that compute vectors and match scores: PyTorch, or exported graphs in ONNX Runtime or OpenVINO.

Engines of graphs import neither PyTorch nor transformers, once the graphs have been written.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float32
from PIL import Image

from vlmo.export.sessions import (
    FUSION_ENCODER,
    IMAGE_ENCODER,
    TEXT_ENCODER,
    GraphEngine,
    Pixels,
    Precision,
    RetrievalGraphs,
)
from vlmo.folder import file_in
from vlmo.lazy import install_command, need_package
from vlmo.progress import Progress

if TYPE_CHECKING:
    from vlmo.retrieval.torch_engine import TorchEngine

EngineName = Literal["torch", "onnx", "openvino"]
EngineChoice = EngineName | Literal["auto"]
CALIBRATION, NUM_SAMPLES = "emoji-pairs", 200
"""Built-in set, and the number of its images and captions, that scales of int8 activations are taken from."""
_PAD_MULTIPLE = 8  # as the processor; few lengths mean few plans of an engine
_PACKAGES: dict[GraphEngine, str] = {"openvino": "openvino", "onnx": "onnxruntime"}
"""Packages of the engines that run graphs, the faster engine first."""
_RETRIEVES = {"VLMoForImageTextRetrieval", "VLMoForPreTraining"}
_EXPORT_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_LOGGER = logging.getLogger(__name__)


def choose_engine(folder: Path, fingerprint: str, *, device: str | None = None) -> EngineName:
    """Return an exact engine that starts without PyTorch, if one is ready: OpenVINO, else ONNX Runtime; else torch.

    One is ready if it is installed and the cache holds the model's graphs; none is for another device than the CPU, or
    where there may be a GPU. OpenVINO is also the fastest (docs/engines.md).
    """
    engine = graph_engine()
    ready = _is_installed(_PACKAGES[engine]) and _takes_graphs(device)
    return engine if ready and _has_graphs(_graph_folder(folder, fingerprint), "float32") else "torch"


def graph_engine() -> GraphEngine:
    """Return the faster engine for graphs that is installed; onnx where none is."""
    return next((name for name, package in _PACKAGES.items() if _is_installed(package)), "onnx")


def can_prepare(device: str | None) -> bool:
    """Return True where `choose_engine` takes graphs, and every package that exports is installed."""
    return _takes_graphs(device) and all(map(_is_installed, _EXPORT_PACKAGES))


def _takes_graphs(device: str | None) -> bool:
    may_be_gpu = sys.platform != "linux" or any(map(os.path.exists, _GPU_FILES))
    return device == "cpu" or (device is None and not may_be_gpu)


def open_engine(
    name: EngineName, folder: Path, fingerprint: str, *, precision: Precision = "float32", device: str | None = None
) -> TorchEngine | GraphsEngine:
    """Return the engine of a model folder, which one thread at a time may call, but for `pixels`.

    Graphs of a model with another fingerprint are not used; ValueError and other errors as for `Encoder`.
    """
    if precision not in {"float32", "int8"}:
        raise ValueError(f"precision is {precision!r}; expected float32 or int8")
    if name == "torch":
        if precision != "float32":
            raise ValueError(f"precision {precision} belongs to the engines onnx and openvino; choose one of them")
        from vlmo.retrieval.torch_engine import TorchEngine

        return TorchEngine(folder, device=device)
    if name not in _PACKAGES:
        hint = "; Ray is an executor (--executor ray)" if name == "ray" else ""
        raise ValueError(f"engine is {name!r}; expected torch, onnx or openvino{hint}")
    if device not in {None, "cpu"}:
        raise ValueError(f"engine {name} runs on the CPU; leave out the device")
    need_package(_PACKAGES[name], extra=name, user="the engine")
    return GraphsEngine(write_graphs(folder, fingerprint, precision=precision), engine=name, precision=precision)


class GraphsEngine:
    """Graphs in a folder that `write_onnx` has written."""

    device = "cpu"

    def __init__(self, folder: Path, *, engine: GraphEngine, precision: Precision = "float32") -> None:
        from tokenizers import Tokenizer

        self.graphs = RetrievalGraphs(folder, engine=engine, precision=precision, cache=folder / "openvino")
        described = self.graphs.description
        self._size: list[int] = described["image"]["size"]
        self.can_match = self.graphs.can_match
        self.dim: int = described["graphs"][IMAGE_ENCODER]["outputs"]["image_embeds"]["shape"][-1]
        self.inverse_temperature = float(np.exp(described["logit_scale"]))
        text = described["text"]
        self._tokenizer = Tokenizer.from_file(str(file_in(folder, text["tokenizer"])))
        self._tokenizer.enable_truncation(text["max_length"])
        self._tokenizer.enable_padding(pad_id=text["pad_token_id"], pad_to_multiple_of=_PAD_MULTIPLE)

    def pixels(self, image: Image.Image) -> Pixels:
        """Return an RGB image at the model's size; beside torchvision's, levels differ by one or two here and there."""
        resized = image.resize((self._size[1], self._size[0]), Image.Resampling.BICUBIC)
        return np.asarray(resized).transpose(2, 0, 1)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Numbers of tokens, special ones among them."""
        return self._tokens(texts)[1].sum(axis=1).tolist()

    def embed_images(self, pixels: Sequence[Pixels]) -> Float32[np.ndarray, "image dim"]:
        """L2-normalised vectors."""
        return self.graphs.run(IMAGE_ENCODER, _pixel_values(pixels))

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """L2-normalised vectors."""
        return self.graphs.run(TEXT_ENCODER, *self._tokens(texts))

    def match(self, pixels: Sequence[Pixels], texts: Sequence[str]) -> Float32[np.ndarray, " pair"]:
        """Log-odds that each text belongs to its image."""
        logits = self.graphs.run(FUSION_ENCODER, _pixel_values(pixels), *self._tokens(texts))
        return logits[:, 1] - logits[:, 0]

    def _tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = self._tokenizer.encode_batch(list(texts))
        ids, mask = ([each.ids for each in encoded], [each.attention_mask for each in encoded])
        return np.array(ids, dtype=np.int64), np.array(mask, dtype=np.int64)


def write_graphs(folder: Path, fingerprint: str, *, precision: Precision) -> Path:
    """Return the folder in the cache that holds the graphs of a model; the first use writes it.

    A model that changes has another fingerprint, and so another folder.

    Raises:
        ValueError: The model does not retrieve, or cannot be exported.
        ModuleNotFoundError: A package that exports or calibrates is missing.
    """
    target = _graph_folder(folder, fingerprint)
    if _has_graphs(target, precision):
        return target
    from filelock import FileLock

    from vlmo.checkpoints.loading import check_model_folder
    from vlmo.model import VLMoForImageTextRetrieval

    check_model_folder(folder, VLMoForImageTextRetrieval)
    for package in _EXPORT_PACKAGES:
        need_package(package, extra="onnx", user="the engine")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not _has_graphs(target, precision):  # another process may have written them
            _LOGGER.info("exporting %s to ONNX, once; the graphs are kept in %s", folder, target)
            export_graphs(folder, target, int8=precision == "int8")
    return target


def export_graphs(folder: Path, out: Path, *, int8: bool) -> dict[str, Any]:
    """`write_onnx` with progress; int8 is calibrated for models that retrieve and have a processor."""
    from vlmo.export.onnx import write_onnx
    from vlmo.folder import architectures

    calibrated = (folder / "processor_config.json").is_file() and not _RETRIEVES.isdisjoint(architectures(folder))
    samples = calibration_samples(folder) if int8 and calibrated else None
    with Progress.on_stderr() as progress:
        return write_onnx(folder, out, int8=int8, samples=samples, report=progress.update)


def calibration_samples(folder: Path) -> dict[str, np.ndarray]:
    """Return inputs of a model for images of `CALIBRATION`, spread evenly over its split "train", each with a caption.

    Raises:
        ModuleNotFoundError: Packages of this built-in set are missing.
    """
    from vlmo.checkpoints.loading import load_processor
    from vlmo.data.decoding import decode_image
    from vlmo.data.sources import open_source

    try:
        rows = open_source(CALIBRATION)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}. int8 is calibrated on {CALIBRATION}: {install_command('quickstart')}"
        ) from error
    numbers = np.linspace(0, len(rows) - 1, min(NUM_SAMPLES, len(rows))).astype(int).tolist()
    images = [decode_image(rows[number]["image"]) for number in numbers]
    texts = [(rows[number]["captions"] or [""])[0] for number in numbers]
    return dict(load_processor(folder)(images=images, text=texts, return_tensors="np"))


def _graph_folder(folder: Path, fingerprint: str) -> Path:
    from vlmo.folder.atomic import cached_file

    settings = folder / "tokenizer_config.json"  # it has the text length, which the fingerprint leaves out
    length = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    return cached_file("engines", fingerprint, length, NUM_SAMPLES)


def _has_graphs(folder: Path, precision: Precision) -> bool:
    try:
        RetrievalGraphs(folder, precision=precision)
    except ValueError:
        return False
    return True


def _pixel_values(pixels: Sequence[Pixels]) -> Float32[np.ndarray, "image 3 height width"]:
    return (np.stack(pixels).astype(np.float32) - 127.5) / 127.5


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
