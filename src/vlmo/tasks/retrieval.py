"""Image-text retrieval: the dual encoder, and the fusion encoder that reranks what the dual encoder found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.folder.card import Usage
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
        "finds texts for images and images for texts, and with a matching head scores pairs", *RETRIEVAL_PIPELINE
    )
    accepts = Accepts("images after --image and texts after --text", images=(1, math.inf), texts=(1, math.inf))
    losses: VisionLanguageConfig = CONTRAST_ALONE
    """Weights and switches; with an itm_weight above 0 the model keeps its matching head. mlm_weight must be 0."""

    def __post_init__(self) -> None:
        """Raise ValueError if masked language modelling has a weight."""
        if self.losses.mlm_weight:
            raise ValueError(f"losses.mlm_weight is {self.losses.mlm_weight}; fine-tuning for retrieval masks no words")

    def build_model(self, settings: dict[str, Any]) -> Any:
        """Return the dual encoder, with a matching head if matching has a weight."""
        # The second ITC branch of stage 3 has no part in a model that retrieves.
        own: dict[str, Any] = {"use_match_head": self.losses.itm_weight > 0, "contrast_fusion_branch": False}
        return super().build_model(settings | own)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> tuple[VLMoForImageTextRetrieval, VLMoProcessor]:
        """Return dual encoder (with matching head, if the folder has one) and processor."""
        return load_retrieval_model(folder, device=device)

    @classmethod
    def answer(cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs) -> list[Prediction]:
        """Return the best `top` texts of each image by cosine similarity; of one text, the best images.

        With a matching head, each pair also has the fusion encoder's probability that the text describes the image.
        """
        texts = list(inputs.texts)
        encoded: Any = processor(images=list(images), text=texts, return_tensors="pt").to(model.device)
        output = model(**encoded)
        similarity = output.image_embeds @ output.text_embeds.T
        pairs = _best_pairs(similarity, top=inputs.top)
        rows: list[Prediction] = [
            {"image": str(inputs.images[i]), "text": texts[t], "similarity": round(similarity[i, t].item(), 4)}
            for i, t in pairs
        ]
        if model.match_head is None:
            return rows
        image_rows, text_rows = (list(numbers) for numbers in zip(*pairs, strict=True))
        pixels, ids = encoded["pixel_values"][image_rows], encoded["input_ids"][text_rows]
        matches = model.match(pixels, ids, encoded["attention_mask"][text_rows]).float().softmax(dim=-1)[:, 1]
        return [row | {"match": round(match, 4)} for row, match in zip(rows, matches.tolist(), strict=True)]


def _best_pairs(similarity: Float[Tensor, "images texts"], *, top: int) -> list[tuple[int, int]]:
    if similarity.shape[1] == 1:
        return [(image, 0) for image in similarity[:, 0].topk(min(top, len(similarity))).indices.tolist()]
    best = similarity.topk(min(top, similarity.shape[1]), dim=1).indices.tolist()
    return [(image, text) for image, found in enumerate(best) for text in found]
