"""Evaluation sets of pairs: images and captions to search among, and images with a true and a false caption."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from rich.console import Console
from torch import Tensor

from vlmo.data.decoding import ImageCell, decode_image
from vlmo.data.rows import column
from vlmo.evaluation import RetrievalResult, RetrievalSet, Weights, evaluate_retrieval
from vlmo.evaluation.inference import BATCH
from vlmo.evaluation.metrics import Metric
from vlmo.evaluation.scoring import embed, match_pairs
from vlmo.processing import EvalTransform
from vlmo.progress import Progress
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Reads
from vlmo.tasks.labels import check_task
from vlmo.tasks.result import Prediction

if TYPE_CHECKING:
    from vlmo.processing import VLMoProcessor

SHORTLIST = 16
"""Candidates of each query that an evaluation reranks by default."""
_RERANKED = "rerank_"
_ENCODERS = {"dual": "dual encoder", "fusion": "fusion encoder"}
"""Scorers of true and false captions, with their names."""
_PREFERRED = "share of images whose true caption has the higher score"
_FOUND = 10
_MEANINGS = {
    "ir": "share of captions whose own image has rank {k} or better among all images of the split",
    "tr": "share of images with one of their captions at rank {k} or better among all captions of the split",
}


@dataclass(frozen=True)
class PairSet(EvaluationSet):
    """Images and captions to search among; its outputs are a `RetrievalResult`."""

    rerank: int = 0
    """Candidates of each query that the fusion encoder reranks."""
    rerank_weight: float | Weights = 0.5
    """Share of the matching score in the new order, or one for each direction."""

    task: ClassVar[str] = "retrieval"
    hub_task: ClassVar[str] = "image-text-retrieval"
    reads = Reads(caption=True)
    batch_size: ClassVar[int] = BATCH
    default_data: ClassVar[str | None] = "emoji-pairs"
    options: ClassVar[tuple[str, ...]] = ("rerank", "rerank_weight")

    @classmethod
    def read(cls, *, source: str, **arguments: Any) -> PairSet:
        """Return the valid rows of a split, as `CompositionSet` if they have false captions; see `EvaluationSet`."""
        found = super().read(source=source, **arguments)
        if "false_caption" not in found.rows.column_names:
            return found
        CompositionSet.check_rows(found.rows, source)
        return CompositionSet(
            found.rows, source=source, split=found.split, processor=found.processor
        )

    def with_options(
        self, model: Any, *, rerank: int | None = None, rerank_weight: float | None = None
    ) -> Self:
        """Return the set with a shortlist (by default 16) and weight (the model's own for each direction).

        Raises:
            ValueError: The model cannot rerank, or a value is out of range.
        """
        if rerank is None:
            rerank = 0 if model.match_head is None else SHORTLIST
        if rerank and model.match_head is None:
            raise ValueError(
                "this model has no matching head, so that nothing can be reordered; give --rerank 0"
            )
        if rerank < 0 or (rerank_weight is not None and not (rerank and 0 <= rerank_weight <= 1)):
            raise ValueError(
                f"rerank is {rerank} and rerank_weight {rerank_weight}; give a number of candidates from 0 up (without "
                "any there is no weight), and a share from 0 to 1"
            )
        weights = Weights(*model.config.rerank_weights)
        own = weights.text_to_image if weights.image_to_text == weights.text_to_image else weights
        weight = own if rerank_weight is None else rerank_weight
        settings: dict[str, Any] = {"rerank": rerank}
        if rerank:
            settings["rerank_weight"] = weight._asdict() if isinstance(weight, Weights) else weight
        return replace(self, rerank=rerank, rerank_weight=weight, settings=settings | self.settings)

    @cached_property
    def captions(self) -> list[str]:
        """All captions, image by image."""
        return [caption for captions in column(self.rows, "captions") for caption in captions]

    def as_set(self) -> RetrievalSet:
        """Return the input of `evaluate_retrieval`."""
        counts = torch.tensor([len(captions) for captions in column(self.rows, "captions")])
        return self._paired(torch.repeat_interleave(torch.arange(len(counts)), counts))

    def _paired(self, text_to_image: Tensor) -> RetrievalSet:
        processor = cast("VLMoProcessor", self.processor)
        transform = EvalTransform.of(processor)

        def pixels(numbers: range) -> list[Tensor]:
            cells: list[ImageCell] = self.rows[numbers.start : numbers.stop]["image"]
            with ThreadPoolExecutor(
                os.cpu_count()
            ) as pool:  # decoding and resizing run beside each other
                return list(pool.map(lambda cell: transform(decode_image(cell)), cells))

        def tokens(numbers: range) -> tuple[Tensor, Tensor]:
            encoded = processor(
                text=self.captions[numbers.start : numbers.stop], return_tensors="pt"
            )
            return encoded["input_ids"], encoded["attention_mask"]

        return RetrievalSet(read_images=pixels, read_texts=tokens, text_to_image=text_to_image)

    def outputs(
        self, model: Any, *, batch_size: int | None = None, console: Console | None = None
    ) -> RetrievalResult:
        """Return recalls and rankings; the processes share images, texts and pairs."""
        how = {
            "rerank": self.rerank,
            "rerank_weight": self.rerank_weight,
            "batch": batch_size or self.batch_size,
        }
        with Progress(console) as progress:
            return evaluate_retrieval(model, self.as_set(), **how, progress=progress.update)

    def metrics(self, outputs: RetrievalResult) -> list[Metric]:
        """Return `tr@K` and `ir@K`; with a shortlist also `rerank_tr@K` and `rerank_ir@K`."""
        queries = {"ir": len(self.captions), "tr": len(self.rows)}
        found = []
        for name, value in outputs.metrics.items():
            recall = name.removeprefix(_RERANKED)
            direction, _, k = recall.partition("@")
            encoder = "dual encoder"
            meaning = _MEANINGS[direction].format(k=k)
            if name != recall:
                encoder = "reranked"
                meaning = f"{meaning}, reordered by the fusion encoder"
            facts = {"label": f"{recall.upper()}, {encoder}", "meaning": meaning}
            found.append(
                Metric(name, value, chance=outputs.chance[recall], n=queries[direction], **facts)
            )
        return found

    def predictions(self, outputs: RetrievalResult) -> list[Prediction]:
        """Return a row for each caption that is looked for, then for each image."""
        image_ids = column(self.rows, "image_id")
        own = self.as_set().text_to_image.tolist()
        captions: list[Prediction] = [
            {"query": "caption", "caption": text, "image_id": image_ids[own[n]]}
            for n, text in enumerate(self.captions)
        ]
        images: list[Prediction] = [
            {"query": "image", "image_id": image_id} for image_id in image_ids
        ]
        for prefix, rankings in (("", outputs.dual), (_RERANKED, outputs.reranked)):
            if rankings is None:
                continue
            for queries, ranking, names in (
                (captions, rankings.text_to_image, image_ids),
                (images, rankings.image_to_text, self.captions),
            ):
                found = ranking.indices[:, :_FOUND].tolist()
                for row, rank, best in zip(queries, ranking.ranks.tolist(), found, strict=True):
                    row[f"{prefix}rank"] = rank
                    row[f"{prefix}found"] = [names[number] for number in best]
        return [*captions, *images]


@dataclass(frozen=True)
class CompositionSet(PairSet):
    """Images with a true and a false caption, in the form of SugarCrepe and ARO.

    An output is 1 for each encoder that scores the true caption higher, and 0.5 for one that scores both alike.
    """

    task: ClassVar[str] = "composition"

    @classmethod
    def check_rows(cls, rows: Any, source: str) -> None:
        """Raise ValueError for rows without a kind, or with another number of true captions than one."""
        check_task(rows, ["kind"], task="images with a true and a false caption")
        for image_id, captions in zip(
            column(rows, "image_id"), column(rows, "captions"), strict=True
        ):
            if len(captions) != 1:
                raise ValueError(
                    f"{source}: {image_id} has {len(captions)} captions; expected one true caption"
                )

    def with_options(self, model: Any, **options: Any) -> Self:
        """Return the set itself: options are validated, but nothing is reranked."""
        super().with_options(model, **options)
        return self

    @cached_property
    def captions(self) -> list[str]:
        """The true captions, then the false ones."""
        return [captions[0] for captions in column(self.rows, "captions")] + column(
            self.rows, "false_caption"
        )

    def as_set(self) -> RetrievalSet:
        """Return the images with both captions."""
        return self._paired(torch.arange(len(self.rows)).repeat(2))

    def outputs(
        self, model: Any, *, batch_size: int | None = None, console: Console | None = None
    ) -> list[Prediction]:
        """Return a row for each image; the processes share images, texts and pairs."""
        own = self.as_set()
        scores = dict[str, Tensor]()
        with Progress(console) as progress:
            how: dict[str, Any] = {
                "batch": batch_size or self.batch_size,
                "progress": progress.update,
            }
            images, texts = embed(model, own, **how)
            scores["dual"] = (images.repeat(2, 1) * texts).sum(dim=1).cpu()
            if model.match_head is not None:
                every = torch.arange(own.num_texts)
                scores["fusion"] = match_pairs(
                    model, own, images=own.text_to_image, texts=every, **how
                )
        columns = [
            column(self.rows, name) for name in ("image_id", "kind", "captions", "false_caption")
        ]
        outputs: list[Prediction] = [
            {"image_id": image, "kind": kind, "caption": true[0], "false_caption": false}
            for image, kind, true, false in zip(*columns, strict=True)
        ]
        for encoder, each in scores.items():
            true, false = each.view(2, -1)
            for row, preferred in zip(
                outputs, (0.5 + 0.5 * (true - false).sign()).tolist(), strict=True
            ):
                row[encoder] = preferred
        return outputs

    def metrics(self, outputs: list[Prediction]) -> list[Metric]:
        """Return accuracies of each encoder, over all rows and over the rows of each kind (`dual[swap]`)."""
        metrics = []
        for encoder in _ENCODERS if "fusion" in outputs[0] else ("dual",):
            for kind in (None, *dict.fromkeys(row["kind"] for row in outputs)):
                right = [row[encoder] for row in outputs if kind in (None, row["kind"])]
                name = encoder + (f"[{kind}]" if kind else "")
                label = f"{kind or 'all'}, {_ENCODERS[encoder]}"
                facts = {"label": label, "meaning": "" if kind else _PREFERRED}
                metrics.append(
                    Metric(name, sum(right) / len(right), chance=0.5, n=len(right), **facts)
                )
        return metrics

    def predictions(self, outputs: list[Prediction]) -> list[Prediction]:
        """Return the outputs, which are rows already."""
        return outputs
