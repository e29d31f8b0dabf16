"""Two pipelines that transformers lacks: visual question answering, and image-text matching."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import BatchFeature, PreTrainedModel
from transformers.image_utils import load_image
from transformers.pipelines.base import ChunkPipeline, Pipeline
from transformers.processing_utils import ProcessorMixin

from vlmo.model import (
    VLMoForImageTextRetrieval,
    VLMoForPreTraining,
    VLMoForVisualQuestionAnswering,
    VLMoPreTrainedModel,
)
from vlmo.processing import VLMoProcessor
from vlmo.processing.images import open_upright


class _PairPipeline(Pipeline):
    """Pipeline over pairs of an image and a text; the processor is by default that of the model's folder."""

    _load_processor = None
    _load_tokenizer = _load_image_processor = _load_feature_extractor = _load_video_processor = False

    model: Any
    processor: Any
    model_classes: tuple[type[PreTrainedModel], ...] = ()
    text_key = ""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | None = None, **options: Any) -> None:
        # A wrapper, such as PEFT's, is no class of ours and passes calls on.
        names = [each.__name__ for each in self.model_classes]
        if isinstance(model, VLMoPreTrainedModel):
            # What a folder held: a head that it lacks would have initial weights, and answer too.
            held = [type(model).__name__, *(model.config.architectures or names)]
            if not isinstance(model, self.model_classes) or not set(held[1:]) & set(names):
                raise ValueError(f"{type(self).__name__} got {held[0]} of {held[1]}: expected {' or '.join(names)}")
        if processor is None:
            try:
                processor = VLMoProcessor.from_pretrained(model.name_or_path or "")
            except (OSError, ValueError, TypeError) as error:
                where = f"in {model.name_or_path}" if model.name_or_path else "for a model that came from no folder"
                raise ValueError(f"there is no processor {where}: pass processor=...") from error
        super().__init__(model, processor=processor, **options)

    def __call__(self, image: Any = None, **options: Any) -> Any:
        """Return the answers for one pair, best first; for several pairs, a list (or iterator) of such lists.

        Args:
            image: A PIL image, a local path or what transformers' `load_image` takes; or, without a text, a list,
                generator or data set of dictionaries with `image` and the text.
            options: The text, as `question` or `text`; `top_k` (of questions, 5 by default), `timeout` in seconds for
                images that are fetched, `batch_size`.

        Raises:
            ValueError: No text, no image, or `top_k` below 1.
        """
        text = options.pop(self.text_key, None)
        if text is not None:
            image = {"image": image, self.text_key: text}
        elif image is None or isinstance(image, Image.Image | str | Path):
            raise ValueError(f"got an image without {self.text_key}: give both, or a list of dictionaries with both")
        return super().__call__(image, **options)

    def _sanitize_parameters(
        self, *, timeout: float | None = None, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if (top_k := options.get("top_k")) is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}: expected the number of answers to return, from 1 up")
        # Only what a call has set; the pipeline fills in the rest.
        given = {name: value for name, value in options.items() if value is not None}
        return {} if timeout is None else {"timeout": timeout}, {}, given

    def _open_pair(self, pair: Any, *, timeout: float | None) -> tuple[Image.Image, Any]:
        if not isinstance(pair, dict) or not {"image", self.text_key} <= pair.keys():
            raise ValueError(f"got {pair!r:.120}: expected a dictionary with 'image' and '{self.text_key}'")
        return open_image(pair["image"], timeout=timeout), pair[self.text_key]


class VisualQuestionAnsweringPipeline(_PairPipeline):
    """Answers to a question about an image, out of the fixed set `model.config.id2label`, best first.

    ```python
    answer = pipeline("visual-question-answering", model="FOLDER")
    answer("cat.png", question="what color is the cat?", top_k=2)
    # [{"score": 0.93, "answer": "black"}, {"score": 0.21, "answer": "white"}]
    answer([{"image": "cat.png", "question": "how many cats?"}, ...], batch_size=8)
    ```

    A score is the sigmoid of an answer's logit: several answers may be right, and the scores need not add up to one.
    """

    model_classes = (VLMoForVisualQuestionAnswering,)
    text_key = "question"

    def preprocess(self, pair: Any, timeout: float | None = None) -> BatchFeature:
        """Return the tensors of one pair."""
        image, question = self._open_pair(pair, timeout=timeout)
        return self.processor(images=image, text=question, return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: BatchFeature) -> dict[str, torch.Tensor]:
        return {"logits": self.model(**model_inputs).logits}

    def postprocess(self, model_outputs: dict[str, torch.Tensor], top_k: int = 5) -> list[dict[str, Any]]:
        """Return the best answers of one pair."""
        scores = model_outputs["logits"][0].float().sigmoid()
        best = scores.topk(min(top_k, len(scores)))
        answers = self.model.config.id2label
        return [
            {"score": score, "answer": answers[number]}
            for score, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


class ImageTextMatchingPipeline(_PairPipeline, ChunkPipeline):
    """Match probability of each of several texts with an image, by the fusion encoder's matching head, best first.

    ```python
    match = pipeline("image-text-matching", model="FOLDER")
    match("cat.png", text=["a black cat", "a dog"], batch_size=8)
    # [{"text": "a black cat", "score": 0.98}, {"text": "a dog", "score": 0.01}]
    ```

    Each pair is scored by itself, so the scores of several texts do not compete. For many texts the task
    `zero-shot-image-classification` is faster: it embeds each text once. `batch_size` counts pairs.

    Raises:
        ValueError: The model has no matching head.
    """

    model_classes = (VLMoForImageTextRetrieval, VLMoForPreTraining)
    text_key = "text"

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | None = None, **options: Any) -> None:
        super().__init__(model, processor, **options)
        if not self.model.config.use_match_head:
            raise ValueError("this model has no matching head (use_match_head is False), so it scores no pairs")

    def preprocess(self, pair: Any, timeout: float | None = None) -> Iterator[dict[str, Any]]:
        """Yield the tensors of the image with each of its texts; ValueError if it has none."""
        image, texts = self._open_pair(pair, timeout=timeout)
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
        scored = [
            {"text": output["text"], "score": output["logits"][0].float().softmax(dim=-1)[1].item()}
            for output in model_outputs
        ]
        return sorted(scored, key=lambda entry: -entry["score"])


def open_image(image: Image.Image | str | Path, *, timeout: float | None = None) -> Image.Image:
    """Open an image and turn it upright. Transparency stays where possible: the processor puts it on white.

    Args:
        image: A PIL image, a local path, or a string that transformers' `load_image` takes (an address or base64).
        timeout: Seconds for an image that is fetched.

    Raises:
        ValueError: It is none of these, or a file of more than 64 million pixels.
        OSError: The file cannot be read, or holds no image.
    """
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image)
    if not isinstance(image, str | Path):
        raise ValueError(f"image is a {type(image).__name__}: expected a PIL image, a path, an address or base64")
    try:
        is_file = Path(image).is_file()
    except (OSError, ValueError):  # a base64 string is too long for a name
        is_file = False
    if is_file or isinstance(image, Path):
        return open_upright(image)
    return load_image(image, timeout=timeout)
