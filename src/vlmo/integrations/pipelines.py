"""Pipelines that transformers lacks: answers about images, image-text matching, and captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel
from transformers.image_utils import load_image
from transformers.pipelines.base import ChunkPipeline, Pipeline
from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline

from vlmo.processing.images import open_upright

# Options of `preprocess`, `_forward` and `postprocess`, as transformers wants them.
_Parameters = tuple[dict[str, int], dict[str, int], dict[str, int]]
# What a pair becomes on its way: tensors, its text, and whether it is the last of its image.
_Values = dict[str, Any]
Answers = list[_Values]
"""Texts with scores, best first."""


class _OwnPipeline(Pipeline):
    # The processor holds tokenizer and image processor: none is loaded a second time.
    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    model: Any
    processor: Any
    model_classes: tuple[str, ...] = ()

    def __init__(self, model: PreTrainedModel, **options: Any) -> None:
        # As the folder names it: a head that it lacks would have initial weights, and answer too.
        names = model.config.architectures or self.model_classes
        if set(names).isdisjoint(self.model_classes):
            raise ValueError(
                f"{type(self).__name__} got {', '.join(names)}: expected "
                f"{' or '.join(self.model_classes)}"
            )
        super().__init__(model, **options)


class _PairPipeline(_OwnPipeline):
    text_key = ""

    def __call__(self, image: object = None, **options: Any) -> Any:
        """Return the answers for one pair, best first; for several pairs, a list of such lists.

        A pair is an image (PIL, a path, an address or a data URI) with the option `question` or
        `text`, or a dictionary of both; several are a list, generator (which gives an iterator) or
        data set of these. ValueError without a text or an image.
        """
        text = options.pop(self.text_key, None)
        if text is not None:
            image = {"image": image, self.text_key: text}
        return super().__call__(image, **options)

    def _sanitize_parameters(self, *, top_k: int | None = None) -> _Parameters:
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def _open_pair(self, pair: object) -> tuple[Image.Image, Any]:
        if not isinstance(pair, dict) or not {"image", self.text_key} <= pair.keys():
            raise ValueError(
                f"got {pair!r:.120}: expected an image with {self.text_key}, or dictionaries with "
                "both"
            )
        return open_image(pair["image"]), pair[self.text_key]


class VisualQuestionAnsweringPipeline(_PairPipeline):
    """Answers to a question about an image, out of the set `model.config.id2label`, best first.

    `pipe("cat.png", question="what color is the cat?")` gives `[{"score": 0.93, "answer": "black"},
    ...]`. A score is the sigmoid of an answer's logit: several answers may be right, and the scores
    need not add up to one.
    """

    model_classes = ("VLMoForVisualQuestionAnswering",)
    text_key = "question"

    def preprocess(self, pair: object) -> BatchFeature:
        """Return the tensors of one pair."""
        image, question = self._open_pair(pair)
        return self.processor(images=image, text=question, return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: BatchFeature) -> dict[str, Tensor]:
        output = self.model(
            model_inputs["pixel_values"], model_inputs["input_ids"], model_inputs["attention_mask"]
        )
        return {"logits": output.logits}

    def postprocess(self, model_outputs: dict[str, Tensor], top_k: int = 5) -> Answers:
        """Return the best answers of one pair."""
        scores = model_outputs["logits"][0].float().sigmoid()
        best = scores.topk(min(top_k, len(scores)))
        names = self.model.config.id2label
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [{"score": score, "answer": names[number]} for score, number in pairs]


class ImageTextMatchingPipeline(_PairPipeline, ChunkPipeline):
    """Match probabilities of texts with an image, by the matching head, best first.

    `pipe("cat.png", text=["a cat", "a dog"])` gives `[{"text": "a cat", "score": 0.98}, ...]`.
    Pairs are scored by themselves, so the scores do not compete. For many texts the task
    `zero-shot-image-classification` is faster: it embeds a text once. `batch_size` counts pairs.
    """

    model_classes = ("VLMoForImageTextRetrieval", "VLMoForPreTraining")
    text_key = "text"

    def preprocess(self, pair: object) -> Iterator[_Values]:
        """Yield the tensors of the image with one text after the other; ValueError without any."""
        image, texts = self._open_pair(pair)
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("text is an empty list: expected at least one text for each image")
        pixels = self.processor(images=image, return_tensors="pt").to(self.dtype)
        # The image is prepared once for all its texts.
        for number, text in enumerate(texts, start=1):
            tokens = self.processor(text=text, return_tensors="pt")
            yield {"is_last": number == len(texts), "text": text, **pixels, **tokens}

    def _forward(self, model_inputs: _Values) -> _Values:
        logits = self.model.match(
            model_inputs["pixel_values"], model_inputs["input_ids"], model_inputs["attention_mask"]
        )
        # The library joins the outputs of an image by `is_last`.
        return {
            "is_last": model_inputs["is_last"],
            "text": model_inputs["text"],
            "logits": logits,
        }

    def postprocess(self, model_outputs: list[_Values]) -> Answers:
        """Return the texts of one image with their scores."""
        answers = []
        for output in model_outputs:
            score = output["logits"][0].float().softmax(dim=-1)[1].item()
            answers.append({"text": output["text"], "score": score})
        return sorted(answers, key=lambda answer: -answer["score"])


class ImageToTextPipeline(_OwnPipeline):
    """Captions of images: `pipe("cat.png")` gives `[{"generated_text": "a black cat on a sofa"}]`.

    Options are those of `VLMoForImageCaptioning.generate`, such as `num_beams` and
    `max_new_tokens`. transformers 5 reads `image-to-text` as `image-text-to-text`: other models get
    its own pipeline, which asks for a text.
    """

    model_classes = ("VLMoForImageCaptioning",)

    def __new__(cls, model: PreTrainedModel, **options: Any) -> Pipeline:
        """Return the pipeline for this model."""
        # transformers has one name for both, and asks the class for an instance.
        if type(model).__name__ in cls.model_classes:
            return super().__new__(cls)
        return ImageTextToTextPipeline(model, **options)

    def _sanitize_parameters(self, **options: int) -> _Parameters:
        return {}, options, {}

    def preprocess(self, image: object) -> BatchFeature:
        """Return the tensors of one image."""
        return self.processor(images=open_image(image), return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: BatchFeature, **options: int) -> dict[str, Tensor]:
        pixels = model_inputs["pixel_values"]
        ids = self.model.generate(pixels, tokenizer=self.processor.tokenizer, **options)
        return {"ids": ids}

    def postprocess(self, model_outputs: dict[str, Tensor]) -> list[dict[str, str]]:
        """Return the caption of one image."""
        texts = self.processor.batch_decode(model_outputs["ids"], skip_special_tokens=True)
        return [{"generated_text": text} for text in texts]


def open_image(image: object) -> Image.Image:
    """Open an image (PIL, a path, an address or a data URI) and turn it upright.

    Raises:
        ValueError: It is none of these, or a file of more than 64 million pixels.
        OSError: The file cannot be read, or holds no image.
    """
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image)
    if not isinstance(image, str | Path):
        raise ValueError(
            f"image is a {type(image).__name__}: expected a PIL image, a path, an address or a "
            "data URI"
        )
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:image/")):
        return load_image(image)
    return open_upright(image)
