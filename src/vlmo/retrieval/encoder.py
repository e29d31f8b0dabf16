"""A model folder ready for retrieval: vectors of images and texts, and match scores of pairs."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32
from PIL import Image

from vlmo.export.sessions import Pixels, Precision
from vlmo.folder import JsonObject, architectures, check_processor, read_config, read_json
from vlmo.processing.images import to_rgb
from vlmo.released import find_model
from vlmo.retrieval.engine import TEXT_PADDING, Engine, is_dual_encoder
from vlmo.retrieval.graphs_engine import EngineName, GraphsEngine, default_engine

THUMBNAIL = 256  # longest side in pixels
BATCH = 64
"""Images or texts that go through the model at a time."""

# Settings that do not change a vector: they may change while an index stays valid.
# No model of this version has the last one.
_IRRELEVANT = (
    "rerank_weight",
    "rerank_weight_image_to_text",
    "rerank_min_words",
    "match_cutoff",
)
_IRRELEVANT += ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.spm",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Settings of tokenizer_config.json that change no word of a text, and the others' usual values.
_WORDLESS = ("backend", "clean_up_tokenization_spaces", "is_local", "local_files_only")
_WORDLESS += ("model_input_names", "processor_class", "tokenizer_class")
_USUAL = {
    "do_lower_case": [True],
    "strip_accents": [None],
    "tokenize_chinese_chars": [True],
    "bos_token": ["<s>"],
    "eos_token": ["</s>"],
    "cls_token": ["[CLS]", "<s>"],
    "sep_token": ["[SEP]", "</s>"],
    "unk_token": ["[UNK]", "<unk>"],
    "pad_token": ["[PAD]", "<pad>"],
    "mask_token": ["[MASK]", "<mask>"],
}
# Tokens a word from which on, and letters a token up to which, a text is taken for nonsense
# (docs/search.md).
_UNKNOWN_PIECES = 3
_UNKNOWN_LETTERS = 2.3
# Largest vocabulary that is taken for one learned on a model's own captions.
_LEARNED_VOCABULARY = 15_000
T = TypeVar("T")
_WORD = re.compile(r"\w+|[^\w\s]")


class Encoder:
    """The retrieval model of a folder. Threads may share one: they take turns in the model.

    Attributes:
        fingerprint: The same for every copy of the folder; see `model_fingerprint`.
        dim: Size of a vector.
        device: Device of the model, such as "cpu" or "cuda:0".
        can_match: True if the model has a matching head, so that `match` works.
        matcher: The encoder that scores pairs: itself, or the reranker.
        no_match: Reason why `match` is refused, where it is.
        inverse_temperature: Factor that turns similarities into logits, as in training.
        least_side: Pixels each way that a JPEG that is decoded at a smaller scale has for `pixels` and thumbnails.
        rerank_weight: Share of the match score in the order of images for a text, from config.json.
        rerank_weight_image_to_text: The same in the order of texts for an image.
        rerank_min_words: Words from which on a text is reranked by default.
        pool: Threads that decode and resize images.

    Args:
        folder: Model folder, of stage 3 or fine-tuned for retrieval, or the name of a model such as "vlmo-base-coco";
            or a folder of transformers' CLIP, SigLIP or SigLIP 2, which has no fusion encoder.
        engine: "torch"; "onnx" (ONNX Runtime) and "openvino" run graphs on the CPU, which the first use writes into
            the cache. None: torch, and for int8 the faster of the other two that is installed.
        precision: "int8" multiplies in int8 in the linear layers, of the engines onnx and openvino.
        device: For torch: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.
        reranker: Another model, with a matching head, which scores pairs in place of this one.

    Raises:
        ValueError: It is no model folder, its model does not retrieve, or a weight is no number from 0 to 1; or
            there is no such device or engine.
        ModuleNotFoundError: The engine is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        engine: EngineName | None = None,
        precision: Precision = "float32",
        device: str | None = None,
        reranker: str | Path | Encoder | None = None,
    ) -> None:
        self.folder = Path(find_model(Path(folder).expanduser()))
        # Raises if it is no model folder.
        architectures(self.folder)
        self.fingerprint = model_fingerprint(self.folder)
        if precision not in {"float32", "int8"}:
            raise ValueError(f"precision is {precision!r}; expected float32 or int8")
        self.engine = engine or default_engine(precision)
        self.precision: Precision = precision
        self._engine = self._open_engine(device)
        self.dim = self._engine.dim
        self.device = self._engine.device
        self.can_match = self._engine.can_match
        self.no_match = self._engine.no_match
        self.inverse_temperature = self._engine.inverse_temperature
        settings = read_config(self.folder)
        self.least_side = max(THUMBNAIL, self._engine.image_size)
        self._vocabulary_size = settings.get("vocab_size", math.inf)
        # The default is that of VLMoConfig.
        self.rerank_weight = self._weight(settings, "rerank_weight", 0.5)
        self.rerank_weight_image_to_text = self._weight(
            settings, "rerank_weight_image_to_text", self.rerank_weight
        )
        self.rerank_min_words = settings.get("rerank_min_words", 1)
        self.matcher: Encoder = self
        if reranker is not None:
            self._use_reranker(
                reranker if isinstance(reranker, Encoder) else Encoder(reranker, device=device)
            )
        self._lock = threading.RLock()
        self.pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="vlmo-decode")

    def _use_reranker(self, reranker: Encoder) -> None:
        if not reranker.can_match:
            raise ValueError(f"{reranker.folder}: {reranker.no_match}; rerank with another VLMo")
        self.matcher = reranker
        self.can_match = True
        self.least_side = max(self.least_side, reranker.least_side)
        self.rerank_weight = reranker.rerank_weight
        self.rerank_weight_image_to_text = reranker.rerank_weight_image_to_text
        self.rerank_min_words = reranker.rerank_min_words

    def _open_engine(self, device: str | None) -> Engine:
        if is_dual_encoder(self.folder):
            if self.engine != "torch":
                raise ValueError(
                    f"{self.folder} is no VLMo; it runs in the engine torch, in float32"
                )
            # It imports transformers' models, which take seconds.
            from vlmo.retrieval.transformers_engine import TransformersEngine

            return TransformersEngine(self.folder, device=device)
        model_type = read_config(self.folder).get("model_type", "vlmo")
        if model_type != "vlmo":
            raise ValueError(
                f"{self.folder} holds a {model_type}; expected a VLMo that retrieves, or a dual encoder of the "
                f"types {', '.join(TEXT_PADDING)}"
            )
        check_processor(self.folder)
        if self.engine != "torch":
            return GraphsEngine(
                self.folder,
                self.fingerprint,
                engine=self.engine,
                precision=self.precision,
                device=device,
            )
        if self.precision == "int8":
            raise ValueError(
                "precision int8 belongs to the engines onnx and openvino; choose one of them"
            )
        # A service on exported graphs imports no torch.
        from vlmo.retrieval.torch_engine import TorchEngine

        return TorchEngine(self.folder, device=device)

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """L2-normalised vectors of texts; a text that is too long is cut."""
        return self._in_batches(texts, self._engine.embed_texts, (self.dim,))

    def embed_images(self, images: Sequence[Image.Image]) -> Float32[np.ndarray, "image dim"]:
        """L2-normalised vectors of images, which may have any size and mode."""
        return self.embed_pixels(list(self.pool.map(self.pixels, images)))

    def match(
        self, images: Sequence[Image.Image], texts: Sequence[str]
    ) -> Float32[np.ndarray, " pair"]:
        """Log-odds that each text belongs to the image at the same position.

        Raises:
            ValueError: The model has no matching head, or there are not as many texts as images.
        """
        if len(images) != len(texts):
            raise ValueError(
                f"given are {len(images)} images and {len(texts)} texts; expected pairs"
            )
        return self.match_pairs(
            list(zip(self.pool.map(self.matcher.pixels, images), texts, strict=True))
        )

    def pixels(self, image: Image.Image) -> Pixels:
        """An image as `embed_pixels` takes it. Does not wait for the model."""
        return self._engine.pixels(to_rgb(image))

    def both_pixels(self, image: Image.Image) -> tuple[Pixels, Pixels]:
        """An image as `embed_pixels`, and as `match_pairs` takes it."""
        pixels = self.pixels(image)
        return pixels, pixels if self.matcher is self else self.matcher.pixels(image)

    def embed_pixels(self, pixels: Sequence[Pixels]) -> Float32[np.ndarray, "image dim"]:
        """L2-normalised vectors of images from `pixels`."""
        return self._in_batches(pixels, self._engine.embed_images, (self.dim,))

    def match_pairs(self, pairs: Sequence[tuple[Pixels, str]]) -> Float32[np.ndarray, " pair"]:
        """`match` of pairs of text and pixels, which are those of `matcher.pixels`."""
        if self.matcher is not self:
            return self.matcher.match_pairs(pairs)
        return self._in_batches(
            pairs, lambda part: self._engine.match(*zip(*part, strict=True)), ()
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Numbers of tokens that the model reads of texts, special ones among them."""
        with self._lock:
            return self._engine.count_tokens(texts)

    def is_unknown(self, text: str, *, tokens: int) -> bool:
        """Return True for a text whose words the model reads in as many short pieces (`count_tokens`) as nonsense.

        False of vocabularies as large as BERT's, which split rare words that the model may know, and of texts that are
        not in ASCII: other scripts may write words without blanks.
        """
        if self._vocabulary_size > _LEARNED_VOCABULARY or not text.isascii():
            return False
        # As BERT's pre-tokenizer splits: words, and punctuation marks one by one.
        words = _WORD.findall(text)
        # [CLS] and [SEP] are no pieces of words.
        pieces = tokens - 2
        return (
            pieces >= _UNKNOWN_PIECES * len(words)
            and sum(map(len, words)) <= _UNKNOWN_LETTERS * pieces
        )

    def attention(
        self, image: Image.Image, text: str
    ) -> tuple[list[str], Float32[np.ndarray, "word grid_h grid_w"]]:
        """The words of a text, and the attention of each to each patch of the image.

        Raises:
            ValueError: No word is left, or the engine keeps no attention.
        """
        with self._lock:
            return self._engine.attention(self.pixels(image), text)

    def _in_batches(
        self, rows: Sequence[T], run: Callable[[Sequence[T]], np.ndarray], shape: tuple[int, ...]
    ) -> Float32[np.ndarray, "row *shape"]:
        results = [np.zeros((0, *shape), dtype=np.float32)]
        for start in range(0, len(rows), BATCH):
            with self._lock:
                results.append(run(rows[start : start + BATCH]))
        joined = np.concatenate(results)
        if np.isnan(joined).any():
            raise ValueError(f"{self.folder}: the model gives NaN; check its weights")
        return joined

    def _weight(self, settings: JsonObject, name: str, default: float) -> float:
        value = settings.get(name)
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
            raise ValueError(
                f"{self.folder / 'config.json'}: {name} is {value!r}; expected a number from 0 to 1"
            )
        return default if value is None else value


def model_fingerprint(folder: Path) -> str:
    """Return 32 hexadecimal digits that change with weights, sizes, vocabulary, tokenizer or image size alone.

    Copies of a folder have the same fingerprint, wherever they lie.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        if name == "config.json" or (folder / name).is_file():
            settings = read_json(folder / name)
            if name == "config.json":
                settings = {key: value for key, value in settings.items() if key not in _IRRELEVANT}
            # Sorted keys: a file that was written again has the same fingerprint.
            digest.update(f"{name} {json.dumps(settings, sort_keys=True)}\n".encode())
    words = _unusual_words(folder)
    # The other models pad or cut texts to the tokenizer's length; ours has its own setting.
    if not is_dual_encoder(folder):
        words.pop("model_max_length", None)
    if words:
        digest.update(f"{json.dumps(words, sort_keys=True)}\n".encode())
    for path in sorted({path for pattern in _FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(
                f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
            )
    return digest.hexdigest()[:32]


def _unusual_words(folder: Path) -> JsonObject:
    """Return the settings of a tokenizer by which its vocabulary gives other tokens than usual."""
    file = folder / "tokenizer_config.json"
    settings = read_json(file) if file.is_file() else {}
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds no JSON object; expected the settings of a tokenizer")
    return {
        name: value
        for name, value in settings.items()
        if name not in _WORDLESS and value not in _USUAL.get(name, [])
    }
