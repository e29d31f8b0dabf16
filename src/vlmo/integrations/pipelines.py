"""Pipelines that transformers lacks: visual question answering, image-text matching, and captions of images alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import BatchFeature, PreTrainedModel
from transformers.image_utils import load_image
from transformers.pipelines.base import ChunkPipeline, Pipeline
from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline

from vlmo.processing.images import open_upright

_Parameters = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


class _OwnPipeline(Pipeline):
    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_feature_extractor = _load_video_processor = (
        False
    )

    model: Any
    processor: Any
    model_classes: tuple[str, ...] = ()

    def __init__(self, model: PreTrainedModel, **options: Any) -> None:
        # What a folder held: a head that it lacks would have initial weights, and answer too.
        held = model.config.architectures or self.model_classes
        if not set(held) & set(self.model_classes):
            raise ValueError(
                f"{type(self).__name__} got {', '.join(held)}: expected {' or '.join(self.model_classes)}"
            )
        super().__init__(model, **options)


class _PairPipeline(_OwnPipeline):
    text_key = ""

    def __call__(self, image: Any = None, **options: Any) -> Any:
        """Return the answers for one pair, best first; for several pairs, a list (or iterator) of such lists.

        A pair is an image (PIL, a path, an address or a data URI) with the option `question` or `text`, or a dictionary
        of both; several are a list, generator or data set of these. ValueError without a text or an image.
        """
        text = options.pop(self.text_key, None)
        return super().__call__(
            image if text is None else {"image": image, self.text_key: text}, **options
        )

    def _sanitize_parameters(self, *, top_k: int | None = None) -> _Parameters:
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def _open_pair(self, pair: Any) -> tuple[Image.Image, Any]:
        if not isinstance(pair, dict) or not {"image", self.text_key} <= pair.keys():
            raise ValueError(
                f"got {pair!r:.120}: expected an image with {self.text_key}, or dictionaries with both"
            )
        return open_image(pair["image"]), pair[self.text_key]


class VisualQuestionAnsweringPipeline(_PairPipeline):
    """Answers to a question about an image, out of the fixed set `model.config.id2label`, best first.

    `pipe("cat.png", question="what color is the cat?")` gives `[{"score": 0.93, "answer": "black"}, ...]`. A score is
    the sigmoid of an answer's logit: several answers may be right, and the scores need not add up to one.
    """

    model_classes = ("VLMoForVisualQuestionAnswering",)
    text_key = "question"

    def preprocess(self, pair: Any) -> BatchFeature:
        """Return the tensors of one pair."""
        image, question = self._open_pair(pair)
        return self.processor(images=image, text=question, return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: BatchFeature) -> dict[str, torch.Tensor]:
        return {"logits": self.model(**model_inputs).logits}

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], top_k: int = 5
    ) -> list[dict[str, Any]]:
        """Return the best answers of one pair."""
        scores = model_outputs["logits"][0].float().sigmoid()
        best = scores.topk(min(top_k, len(scores)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [
            {"score": score, "answer": self.model.config.id2label[number]}
            for score, number in pairs
        ]


class ImageTextMatchingPipeline(_PairPipeline, ChunkPipeline):
    """Match probability of each of several texts with an image, by the fusion encoder's matching head, best first.

    `pipe("cat.png", text=["a cat", "a dog"])` gives `[{"text": "a cat", "score": 0.98}, ...]`. Each pair is scored by
    itself, so the scores do not compete. For many texts the task `zero-shot-image-classification` is faster: it embeds
    each text once. `batch_size` counts pairs.
    """

    model_classes = ("VLMoForImageTextRetrieval", "VLMoForPreTraining")
    text_key = "text"

    def preprocess(self, pair: Any) -> Iterator[dict[str, Any]]:
        """Yield the tensors of the image with each of its texts; ValueError if it has none."""
        image, texts = self._open_pair(pair)
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("text is an empty list: expected at least one text for each image")
        pixels = self.processor(images=image, return_tensors="pt").to(self.dtype)
        for number, text in enumerate(texts, start=1):
            tokens = self.processor(text=text, return_tensors="pt")
            yield {"is_last": number == len(texts), "text": text, **pixels, **tokens}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        kept = {name: model_inputs.pop(name) for name in ("is_last", "text")}
        return kept | {"logits": self.model.match(**model_inputs)}

    def postprocess(self, model_outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the texts of one image with their scores."""
        pairs = (
            (output["text"], output["logits"][0].float().softmax(dim=-1)[1].item())
            for output in model_outputs
        )
        return sorted(
            ({"text": text, "score": score} for text, score in pairs),
            key=lambda entry: -entry["score"],
        )


class ImageToTextPipeline(_OwnPipeline):
    """Captions of images: `pipe("cat.png")` gives `[{"generated_text": "a black cat on a sofa"}]`.

    Options are those of `VLMoForImageCaptioning.generate`, such as `num_beams` and `max_new_tokens`. transformers 5
    reads `image-to-text` as `image-text-to-text`: other models get its own pipeline, which asks for a text.
    """

    model_classes = ("VLMoForImageCaptioning",)

    def __new__(cls, model: PreTrainedModel, **options: Any) -> Any:
        """Return the pipeline for this model."""
        is_ours = type(model).__name__ in cls.model_classes
        return super().__new__(cls) if is_ours else ImageTextToTextPipeline(model, **options)

    def _sanitize_parameters(self, **options: Any) -> _Parameters:
        return {}, options, {}

    def preprocess(self, image: Any) -> BatchFeature:
        """Return the tensors of one image."""
        return self.processor(images=open_image(image), return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: BatchFeature, **options: Any) -> dict[str, torch.Tensor]:
        return {
            "ids": self.model.generate(
                **model_inputs, tokenizer=self.processor.tokenizer, **options
            )
        }

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[dict[str, str]]:
        """Return the caption of one image."""
        texts = self.processor.batch_decode(model_outputs["ids"], skip_special_tokens=True)
        return [{"generated_text": text} for text in texts]


def open_image(image: Image.Image | str | Path) -> Image.Image:
    """Open an image (PIL, a path, an address or a data URI) and turn it upright; the processor puts it on white.

    Raises:
        ValueError: It is none of these, or a file of more than 64 million pixels.
        OSError: The file cannot be read, or holds no image.
    """
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image)
    if not isinstance(image, str | Path):
        raise ValueError(
            f"image is a {type(image).__name__}: expected a PIL image, a path, an address or a data URI"
        )
    is_file = isinstance(image, Path) or not image.startswith(
        ("http://", "https://", "data:image/")
    )
    return open_upright(image) if is_file else load_image(image)
