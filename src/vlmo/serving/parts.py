"""Models and index that a service is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlmo.folder import architectures
from vlmo.processing.transforms import by_shape
from vlmo.retrieval import Encoder, Index, Searcher
from vlmo.retrieval.engine import is_dual_encoder
from vlmo.retrieval.graphs_engine import EngineName, Precision
from vlmo.retrieval.search import IMAGES, PAIRS, TEXTS, TOKENS
from vlmo.serving.batcher import Call

if TYPE_CHECKING:
    from vlmo.tasks import Task

QUESTIONS = "questions"
CAPTIONS = "captions"
_RETRIEVAL_MODELS = {"VLMoForImageTextRetrieval", "VLMoForPreTraining"}


class ImageModel:
    """A model folder of a task that reads one image at a time; ValueError if it holds no whole model for it."""

    def __init__(self, task: type[Task], folder: str | Path, *, device: str | None = None) -> None:
        self.folder = Path(folder)
        self.model, self.processor = task.load(folder, device=device)

    def pixels(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """Return an image as the model takes it; from any thread."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


@torch.inference_mode()
def answer_scores(
    answerer: ImageModel, questions: Sequence[tuple[Float[Tensor, "3 height width"], str]]
) -> Float[Tensor, "question answer"]:
    """Return the scores of a model's answers (sigmoid of the logits) to questions about images from `pixels`."""

    def score(same_shape: list[tuple[Tensor, str]]) -> Tensor:
        pixels, texts = zip(*same_shape, strict=True)
        inputs = answerer.processor(text=list(texts), return_tensors="pt")
        inputs["pixel_values"] = torch.stack(pixels)
        outputs = answerer.model(**inputs.to(answerer.model.device, answerer.model.dtype))
        return outputs.logits.float().sigmoid().cpu()

    # Only images of one shape fit into one tensor.
    return torch.stack(by_shape(questions, score, shape=lambda question: question[0].shape))


@dataclass(frozen=True)
class Parts:
    """Models and index of a service; requests that need a missing one fail with a reason.

    Attributes:
        is_behind: Asked whether the last update of the index has failed, so that new images may be missing.
    """

    encoder: Encoder | None = None
    index: Index | None = None
    answerer: ImageModel | None = None
    captioner: ImageModel | None = None
    is_behind: Callable[[], bool] = lambda: False

    def calls(self) -> dict[str, Call]:
        """Return functions of the models, from rows to results, by the kind of the rows."""
        calls: dict[str, Call] = {}
        if self.encoder is not None:
            calls[TEXTS] = self.encoder.embed_texts
            calls[IMAGES] = self.encoder.embed_pixels
            calls[TOKENS] = self.encoder.count_tokens
            calls[PAIRS] = self.encoder.match_pairs
        if self.answerer is not None:
            calls[QUESTIONS] = partial(answer_scores, self.answerer)
        if self.captioner is not None:
            from vlmo.tasks.captioning import describe

            calls[CAPTIONS] = partial(describe, self.captioner.model, self.captioner.processor)
        return calls


def load_parts(
    folder: str | Path,
    *,
    index: str | Path | None = None,
    vqa: str | Path | None = None,
    captioning: str | Path | None = None,
    engine: EngineName | None = None,
    precision: Precision = "float32",
    device: str | None = None,
    reranker: str | Path | None = None,
) -> Parts:
    """Load models and index; `folder` may hold a model for retrieval, or one for `vqa` or `captioning`, in PyTorch.

    Raises:
        ValueError: A folder is of another kind, or model and index do not belong together.
    """
    task = "retrieval"
    if _RETRIEVAL_MODELS.isdisjoint(architectures(folder)) and not is_dual_encoder(folder):
        # Tasks import training, which a service for search does not need.
        from vlmo.tasks import task_of

        task = task_of(folder).name
    if task in {"vqa", "captioning"}:
        if index or vqa or captioning or reranker or engine not in {None, "torch"}:
            raise ValueError(
                f"{folder} is for {task} and searches nothing; give it alone, or as --{task}"
            )
        model = _load_image_model(task, folder, device=device)
        return Parts(answerer=model) if task == "vqa" else Parts(captioner=model)
    opened = None if index is None else Index(index, in_memory=True)
    encoder = Encoder(folder, engine=engine, precision=precision, device=device, reranker=reranker)
    if opened is not None:
        # It checks that they belong together.
        Searcher(encoder, opened)
    return Parts(
        encoder,
        opened,
        answerer=_load_image_model("vqa", vqa, device=device),
        captioner=_load_image_model("captioning", captioning, device=device),
    )


def _load_image_model(
    task: str, folder: str | Path | None, *, device: str | None
) -> ImageModel | None:
    if folder is None:
        return None
    from vlmo.tasks import find_task

    return ImageModel(find_task(task), folder, device=device)
