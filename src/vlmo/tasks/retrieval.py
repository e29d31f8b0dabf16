"""Image-text retrieval: the dual encoder, and the fusion encoder that reranks its results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlmo.folder.card import Usage
from vlmo.processing.transforms import by_shape
from vlmo.tasks.inputs import Accepts, Inputs
from vlmo.tasks.result import Prediction
from vlmo.tasks.task import Settings
from vlmo.tasks.vision_language import RETRIEVAL_PIPELINE, PairTask, VisionLanguageConfig

if TYPE_CHECKING:
    from vlmo.model import VLMoForImageTextRetrieval
    from vlmo.processing import VLMoProcessor

# The paper's fine-tuning: the dual encoder alone.
CONTRAST_ALONE = VisionLanguageConfig(mlm_weight=0.0, itm_weight=0.0)


@dataclass(frozen=True)
class RetrievalTask(PairTask):
    """Fine-tuning for retrieval: contrast, and matching for a fusion encoder that reranks.

    Attributes:
        losses: Weights and switches; with an itm_weight above 0 the model keeps its matching head.
            mlm_weight must be 0.
    """

    name = "retrieval"
    title = "fine-tuning for retrieval"
    architectures = ("VLMoForImageTextRetrieval", "VLMoForPreTraining")
    usage = Usage(
        "finds texts for images and images for texts, and with a matching head scores pairs",
        *RETRIEVAL_PIPELINE,
    )
    accepts = Accepts(
        "images after --image and texts after --text", images=(1, math.inf), texts=(1, math.inf)
    )
    losses: VisionLanguageConfig = CONTRAST_ALONE

    def __post_init__(self) -> None:
        """Raise ValueError if masked language modeling has a weight."""
        if self.losses.mlm_weight:
            raise ValueError(
                f"losses.mlm_weight is {self.losses.mlm_weight}; "
                "fine-tuning for retrieval masks no words"
            )

    def build_model(self, settings: Settings) -> VLMoForImageTextRetrieval:
        """Return the dual encoder, with a matching head if matching has a weight."""
        # The second ITC branch of stage 3 has no part in a model that retrieves.
        heads = {"use_match_head": self.losses.itm_weight > 0, "contrast_fusion_branch": False}
        return super().build_model(settings | heads)

    @classmethod
    def answer(
        cls,
        model: VLMoForImageTextRetrieval,
        processor: VLMoProcessor,
        images: Sequence[Image.Image],
        inputs: Inputs,
    ) -> list[Prediction]:
        """Return the best `top` texts of an image by cosine similarity; of one text, the images.

        With a matching head, pairs also have the fusion encoder's probability that the text
        describes the image.
        """
        tokens = processor(text=list(inputs.texts), return_tensors="pt").to(model.device)
        # One by one, as images that keep their aspect have several shapes.
        pixels = []
        for image in images:
            encoded = processor(images=image, return_tensors="pt").to(model.device)
            pixels.append(encoded["pixel_values"][0])
        vectors = by_shape(pixels, lambda part: model.get_image_features(torch.stack(part)))
        # Vectors have length 1: cosine similarity, (images, texts).
        similarity = torch.stack(vectors) @ model.get_text_features(**tokens).T
        predictions = []
        for image, text in _best_pairs(similarity, top=inputs.top):
            row: Prediction = {
                "image": str(inputs.images[image]),
                "text": inputs.texts[text],
                "similarity": round(similarity[image, text].item(), 4),
            }
            if model.match_head is not None:
                # Pair by pair: there are few, and images of several shapes.
                logits = model.match(
                    pixels[image][None],
                    tokens["input_ids"][[text]],
                    tokens["attention_mask"][[text]],
                )
                row["match"] = round(logits[0].float().softmax(dim=-1)[1].item(), 4)
            predictions.append(row)
        return predictions


def _best_pairs(similarity: Float[Tensor, "images texts"], *, top: int) -> list[tuple[int, int]]:
    """Return numbers of images with their best texts; of one text, with the best images."""
    num_images, num_texts = similarity.shape
    if num_texts == 1:
        best = similarity[:, 0].topk(min(top, num_images)).indices
        return [(image, 0) for image in best.tolist()]
    best = similarity.topk(min(top, num_texts), dim=1).indices
    pairs = []
    for image, texts in enumerate(best.tolist()):
        pairs += [(image, text) for text in texts]
    return pairs
