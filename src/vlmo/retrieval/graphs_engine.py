"""The retrieval model of a folder as exported graphs in ONNX Runtime or OpenVINO, on the CPU.

Neither PyTorch nor transformers is imported once the graphs have been written.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from jaxtyping import Float32
from PIL import Image
from tokenizers import Tokenizer

from vlmo.export.sessions import (
    DESCRIPTION,
    FUSION_ENCODER,
    IMAGE_ENCODER,
    INT8_OPERATORS,
    TEXT_ENCODER,
    Description,
    GraphEngine,
    OnnxSession,
    OpenVinoSession,
    Pixels,
    Precision,
    read_description,
)
from vlmo.folder import file_in
from vlmo.lazy import install_command, need_package
from vlmo.progress import Progress
from vlmo.retrieval.engine import NO_MATCHING_HEAD

EngineName = Literal["torch", "onnx", "openvino"]
CALIBRATION = "emoji-pairs"
NUM_SAMPLES = 200
"""Built-in set, and the number of its images and captions, that scales of int8 activations are taken from."""
# As the processor; few lengths mean few plans of an engine.
_PAD_MULTIPLE = 8
# Packages of the engines, the faster engine first.
_PACKAGES: dict[GraphEngine, str] = {"openvino": "openvino", "onnx": "onnxruntime"}
_LOGGER = logging.getLogger(__name__)


def default_engine(precision: Precision) -> EngineName:
    """Return torch for float32; for int8 the faster one of the engines for graphs that is installed."""
    if precision == "float32":
        return "torch"
    return next(
        (name for name, package in _PACKAGES.items() if importlib.util.find_spec(package)), "onnx"
    )


class GraphsEngine:
    """Graphs of a model folder, which the first use writes into the cache.

    Args:
        fingerprint: Of the model; graphs of a model with another one are not used.

    Raises:
        ValueError: The model does not retrieve, or cannot be exported; or an argument is wrong.
        ModuleNotFoundError: The engine, or a package that exports or calibrates, is missing.
    """

    device = "cpu"
    no_match = NO_MATCHING_HEAD

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        *,
        engine: GraphEngine,
        precision: Precision = "float32",
        device: str | None = None,
    ) -> None:
        if engine not in _PACKAGES:
            raise ValueError(f"engine is {engine!r}; expected torch, onnx or openvino")
        if device not in {None, "cpu"}:
            raise ValueError(f"engine {engine} runs on the CPU; leave out the device")
        need_package(_PACKAGES[engine], extra=engine, user="the engine")
        written = write_graphs(folder, fingerprint, precision=precision)
        about = read_description(written)
        graphs = about["graphs"]
        self._size: list[int] = about["image"]["size"]
        self.image_size = max(self._size)
        self.can_match = FUSION_ENCODER in graphs
        self.dim: int = graphs[IMAGE_ENCODER]["outputs"]["image_embeds"]["shape"][-1]
        # `logit_scale` is the logarithm of 1 / temperature, as the model learns it.
        self.inverse_temperature = float(np.exp(about["logit_scale"]))

        @functools.cache  # a graph is loaded when it is first run
        def session(name: str) -> OnnxSession | OpenVinoSession:
            if name not in graphs:
                raise ValueError(NO_MATCHING_HEAD)
            file = file_in(written, graphs[name][precision]["file"])
            if engine == "openvino":
                return OpenVinoSession(
                    file, cache=written / "openvino", exact=precision == "float32"
                )
            return OnnxSession(file)

        self._session = session
        text = about["text"]
        self._tokenizer = Tokenizer.from_file(str(file_in(written, text["tokenizer"])))
        self._tokenizer.enable_truncation(text["max_length"])
        self._tokenizer.enable_padding(
            pad_id=text["pad_token_id"], pad_to_multiple_of=_PAD_MULTIPLE
        )

    def pixels(self, image: Image.Image) -> Pixels:
        """An RGB image at the model's size; beside torchvision's, levels differ by one or two here and there."""
        # PIL's bicubic filter widens when it shrinks, as torchvision's with antialiasing does.
        resized = image.resize((self._size[1], self._size[0]), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Numbers of tokens, special ones among them."""
        return self._tokens(texts)[1].sum(axis=1).tolist()

    def embed_images(self, pixels: Sequence[Pixels]) -> Float32[np.ndarray, "image dim"]:
        """L2-normalised vectors."""
        return self._session(IMAGE_ENCODER)(_pixel_values(pixels))[0]

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """L2-normalised vectors."""
        return self._session(TEXT_ENCODER)(*self._tokens(texts))[0]

    def match(self, pixels: Sequence[Pixels], texts: Sequence[str]) -> Float32[np.ndarray, " pair"]:
        """Log-odds that each text belongs to its image."""
        # (pair, 2): no match, match.
        logits = self._session(FUSION_ENCODER)(_pixel_values(pixels), *self._tokens(texts))[0]
        return logits[:, 1] - logits[:, 0]

    def attention(self, *_: object) -> NoReturn:
        """Raise ValueError: graphs give vectors and logits alone."""
        raise ValueError("exported graphs keep no attention; take the engine torch")

    def _tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        # Pairs of a search share the query, which is encoded once.
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        encoded = self._tokenizer.encode_batch(list(distinct))
        rows = [distinct[text] for text in texts]
        ids = [encoding.ids for encoding in encoded]
        mask = [encoding.attention_mask for encoding in encoded]
        return np.array(ids, dtype=np.int64)[rows], np.array(mask, dtype=np.int64)[rows]


def write_graphs(folder: Path, fingerprint: str, *, precision: Precision) -> Path:
    """Return the folder in the cache that holds the graphs of a model; the first use writes it."""
    from vlmo.folder.atomic import cached_file

    # It has the text length, which the fingerprint leaves out.
    settings = folder / "tokenizer_config.json"
    length = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    target = cached_file("engines", fingerprint, length, NUM_SAMPLES, INT8_OPERATORS)
    if _has_graphs(target, precision):
        return target
    from filelock import FileLock

    from vlmo.checkpoints.loading import check_model_folder
    from vlmo.model import VLMoForImageTextRetrieval

    check_model_folder(folder, VLMoForImageTextRetrieval)
    for package in ("onnx", "onnxruntime", "onnxscript"):
        need_package(package, extra="onnx", user="the engine")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        # Another process may have written them.
        if not _has_graphs(target, precision):
            _LOGGER.info("exporting %s to ONNX, once; the graphs are kept in %s", folder, target)
            export_graphs(folder, target, int8=precision == "int8")
    return target


def export_graphs(folder: Path, out: Path, *, int8: bool) -> Description:
    """`write_onnx` with progress; int8 is calibrated on `CALIBRATION`."""
    from vlmo.export.onnx import write_onnx

    samples = calibration_samples(folder) if int8 else None
    with Progress.on_stderr() as progress:
        return write_onnx(folder, out, samples=samples, report=progress.update)


def calibration_samples(folder: Path) -> dict[str, np.ndarray]:
    """Return inputs of a model for images of `CALIBRATION`, spread evenly over its split "train", each with a caption.

    Raises:
        ValueError: The model does not retrieve.
        ModuleNotFoundError: Packages of this built-in set are missing.
    """
    from vlmo.checkpoints.loading import check_model_folder, load_processor
    from vlmo.data.decoding import decode_image
    from vlmo.data.sources import open_source
    from vlmo.model import VLMoForImageTextRetrieval

    check_model_folder(folder, VLMoForImageTextRetrieval, hint="int8 is for models that retrieve.")
    try:
        rows = open_source(CALIBRATION)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}. int8 needs {CALIBRATION}: {install_command('quickstart')}"
        ) from error
    numbers = np.linspace(0, len(rows) - 1, min(NUM_SAMPLES, len(rows))).astype(int).tolist()
    images = [decode_image(rows[number]["image"]) for number in numbers]
    texts = [(rows[number]["captions"] or [""])[0] for number in numbers]
    return dict(load_processor(folder)(images=images, text=texts, return_tensors="np"))


def _has_graphs(folder: Path, precision: Precision) -> bool:
    graphs = read_description(folder)["graphs"] if (folder / DESCRIPTION).is_file() else {}
    return bool(graphs) and all(graph[precision] is not None for graph in graphs.values())


def _pixel_values(pixels: Sequence[Pixels]) -> Float32[np.ndarray, "image 3 height width"]:
    # Mean and standard deviation are 0.5 as in training, on levels from 0 to 255.
    values = np.subtract(np.stack(pixels), 127.5, dtype=np.float32)
    return np.divide(values, 127.5, out=values)
