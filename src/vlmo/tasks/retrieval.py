"""Image-text retrieval: the dual encoder, and the fusion encoder that reranks what the dual encoder found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.folder.card import Usage
from vlmo.processing.transforms import by_shape
from vlmo.tasks.inputs import Accepts, Inputs
from vlmo.tasks.result import Prediction
from vlmo.tasks.vision_language import RETRIEVAL_PIPELINE, PairTask, VisionLanguageConfig

if TYPE_CHECKING:
    from vlmo.model import VLMoForImageTextRetrieval
    from vlmo.processing import VLMoProcessor

CONTRAST_ALONE = VisionLanguageConfig(mlm_weight=0.0, itm_weight=0.0)
"""The paper's fine-tuning: the dual encoder alone."""


@dataclass(frozen=True)
class RetrievalTask(PairTask):
    """Fine-tuning for retrieval: contrast, and matching for a fusion encoder that reorders what the contrast found."""

    name: ClassVar[str] = "retrieval"
    title: ClassVar[str] = "fine-tuning for retrieval"
    architectures = ("VLMoForImageTextRetrieval", "VLMoForPreTraining")
    usage: ClassVar[Usage | None] = Usage(
        "finds texts for images and images for texts, and with a matching head scores pairs",
        *RETRIEVAL_PIPELINE,
    )
    accepts = Accepts(
        "images after --image and texts after --text", images=(1, math.inf), texts=(1, math.inf)
    )
    losses: VisionLanguageConfig = CONTRAST_ALONE
    """Weights and switches; with an itm_weight above 0 the model keeps its matching head. mlm_weight must be 0."""

    def __post_init__(self) -> None:
        """Raise ValueError if masked language modeling has a weight."""
        if self.losses.mlm_weight:
            raise ValueError(
                f"losses.mlm_weight is {self.losses.mlm_weight}; fine-tuning for retrieval masks no words"
            )

    def build_model(self, settings: dict[str, Any]) -> Any:
        """Return the dual encoder, with a matching head if matching has a weight."""
        # The second ITC branch of stage 3 has no part in a model that retrieves.
        own: dict[str, Any] = {
            "use_match_head": self.losses.itm_weight > 0,
            "contrast_fusion_branch": False,
        }
        return super().build_model(settings | own)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | None = None
    ) -> tuple[VLMoForImageTextRetrieval, VLMoProcessor]:
        """Return dual encoder (with matching head, if the folder has one) and processor."""
        return load_retrieval_model(folder, device=device)

    @classmethod
    def answer(
        cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs
    ) -> list[Prediction]:
        """Return the best `top` texts of each image by cosine similarity; of one text, the best images.

        With a matching head, each pair also has the fusion encoder's probability that the text describes the image.
        """
        texts = list(inputs.texts)
        text: Any = processor(text=texts, return_tensors="pt").to(model.device)
        # One by one, as images that keep their aspect have several shapes.
        pixels = [
            processor(images=each, return_tensors="pt")["pixel_values"][0].to(model.device)
            for each in images
        ]
        vectors = by_shape(pixels, lambda part: model.get_image_features(torch.stack(part)))
        similarity = torch.stack(vectors) @ model.get_text_features(**text).T
        if len(texts) == 1:
            pairs = [
                (image, 0)
                for image in similarity[:, 0].topk(min(inputs.top, len(images))).indices.tolist()
            ]
        else:
            best = similarity.topk(min(inputs.top, len(texts)), dim=1).indices.tolist()
            pairs = [(image, text) for image, found in enumerate(best) for text in found]
        rows: list[Prediction] = [
            {
                "image": str(inputs.images[i]),
                "text": texts[t],
                "similarity": round(similarity[i, t].item(), 4),
            }
            for i, t in pairs
        ]
        if model.match_head is None:
            return rows

        def match(part: list[tuple[int, int]]) -> list[float]:
            image_rows, text_rows = (list(numbers) for numbers in zip(*part, strict=True))
            ids, mask = (text[name][text_rows] for name in ("input_ids", "attention_mask"))
            logits = model.match(torch.stack([pixels[row] for row in image_rows]), ids, mask)
            return logits.float().softmax(dim=-1)[:, 1].tolist()

        matches = by_shape(pairs, match, shape=lambda pair: pixels[pair[0]].shape)
        return [row | {"match": round(match, 4)} for row, match in zip(rows, matches, strict=True)]
