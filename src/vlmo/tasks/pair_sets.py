"""Evaluation sets of pairs: for search, and of true against false captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Int
from rich.console import Console
from torch import Tensor

from vlmo.data.decoding import decode_image
from vlmo.data.rows import arrow_table, column, select_rows
from vlmo.evaluation import RetrievalResult, RetrievalSet, Weights, evaluate_retrieval
from vlmo.evaluation.inference import BATCH
from vlmo.evaluation.metrics import Metric
from vlmo.evaluation.retrieval import Ranking
from vlmo.evaluation.scoring import embed, match_pairs
from vlmo.processing import EvalTransform
from vlmo.progress import Progress
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Reads
from vlmo.tasks.labels import check_task
from vlmo.tasks.result import Json, Prediction

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoForImageTextRetrieval

# Candidates of a query that an evaluation reranks by default.
SHORTLIST = 16
_RERANKED = "rerank_"
# As many candidates as the largest recall counts are written to files.
_NUM_SHOWN = 10
_PREFERRED = "share of images whose true caption has the higher score"
_MEANINGS = {
    "ir": "share of captions whose own image has rank {k} or better among all images of the split",
    "tr": "share of images with one of their captions at rank {k} or better among all captions of "
    "the split",
}


@dataclass(frozen=True)
class PairSet(EvaluationSet):
    """Images and captions to search among; its outputs are a `RetrievalResult`.

    Attributes:
        rerank: Candidates of a query that the fusion encoder reranks.
        rerank_weight: Share of the matching score in the new order, or one for each direction.
    """

    rerank: int = 0
    rerank_weight: float | Weights = 0.5

    task = "retrieval"
    hub_task = "image-text-retrieval"
    reads = Reads(caption=True)
    batch_size = BATCH
    default_data = "emoji-pairs"
    options = ("rerank", "rerank_weight")

    @classmethod
    def read(cls, *, source: str, **options: Any) -> PairSet:
        """Return the valid rows of a split, as `CompositionSet` if they have false captions."""
        pairs = super().read(source=source, **options)
        # The columns are known once the rows are open.
        if "false_caption" not in pairs.rows.column_names:
            return pairs
        CompositionSet.check_rows(pairs.rows, source)
        return CompositionSet(
            pairs.rows, source=source, split=pairs.split, processor=pairs.processor
        )

    def with_options(
        self,
        model: VLMoForImageTextRetrieval,
        *,
        rerank: int | None = None,
        rerank_weight: float | None = None,
    ) -> Self:
        """Return the set with a shortlist (by default 16) and weight (by default the model's).

        Raises:
            ValueError: The model cannot rerank, or a value is out of range.
        """
        if rerank is None:
            # The shortlist of a model without a matching head would stay in its order.
            rerank = 0 if model.match_head is None else SHORTLIST
        if rerank and model.match_head is None:
            raise ValueError(
                "this model has no matching head, so that nothing can be reordered; give --rerank 0"
            )
        weights = Weights(*model.config.rerank_weights)
        if rerank_weight is not None:
            # A weight of the user is for both directions.
            weights = Weights(rerank_weight, rerank_weight)
        in_range = min(weights) >= 0 and max(weights) <= 1
        if rerank < 0 or not in_range or (rerank_weight is not None and not rerank):
            raise ValueError(
                f"rerank is {rerank} and rerank_weight {rerank_weight}; give a number of "
                "candidates from 0 up (without any there is no weight), and a share from 0 to 1"
            )
        settings: Json = {"rerank": rerank}
        if rerank:
            # One number says it, if both directions weigh alike.
            is_one = weights.image_to_text == weights.text_to_image
            settings["rerank_weight"] = weights.text_to_image if is_one else weights._asdict()
        settings |= self.settings
        return replace(self, rerank=rerank, rerank_weight=weights, settings=settings)

    @cached_property
    def captions(self) -> list[str]:
        """All captions, image by image."""
        return list(chain.from_iterable(column(self.rows, "captions")))

    @cached_property
    def text_to_image(self) -> Int[Tensor, "captions"]:
        """Number of the image of a caption."""
        counts = torch.tensor(list(map(len, column(self.rows, "captions"))))
        # Of images with 2, 1 and 3 captions: 0, 0, 1, 2, 2, 2.
        return torch.repeat_interleave(counts)

    def as_set(self) -> RetrievalSet:
        """Return the input of `evaluate_retrieval`."""
        return RetrievalSet(self._read_images, self._read_texts, self.text_to_image)

    def _read_images(self, rows: range) -> list[Tensor]:
        transform = EvalTransform.of(self.processor)
        cells = column(select_rows(self.rows, rows), "image")
        # Decoding and resizing release Python's lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda cell: transform(decode_image(cell)), cells))

    def _read_texts(self, rows: range) -> tuple[Tensor, Tensor]:
        captions = self.captions[rows.start : rows.stop]
        encoded = self.processor(text=captions, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]

    def outputs(
        self,
        model: VLMoForImageTextRetrieval,
        *,
        batch_size: int | None = None,
        console: Console | None = None,
    ) -> RetrievalResult:
        """Return recalls and rankings; the processes share images, texts and pairs."""
        with Progress(console) as progress:
            return evaluate_retrieval(
                model,
                self.as_set(),
                rerank=self.rerank,
                rerank_weight=self.rerank_weight,
                batch=batch_size or self.batch_size,
                progress=progress.update,
            )

    def metrics(self, outputs: RetrievalResult) -> list[Metric]:
        """Return `tr@K` and `ir@K`; with a shortlist also `rerank_tr@K` and `rerank_ir@K`."""
        # A caption looks for its image, an image for its captions.
        num_queries = {"ir": len(self.captions), "tr": len(self.rows)}
        metrics = []
        for name, value in outputs.metrics.items():
            recall = name.removeprefix(_RERANKED)
            direction, k = recall.split("@")
            label = f"{recall.upper()}, dual encoder"
            meaning = _MEANINGS[direction].format(k=k)
            if name != recall:
                label = f"{recall.upper()}, reranked"
                meaning += ", reordered by the fusion encoder"
            metric = Metric(
                name, value, outputs.chance[recall], num_queries[direction], label, meaning
            )
            metrics.append(metric)
        return metrics

    def predictions(self, outputs: RetrievalResult) -> list[Prediction]:
        """Return a row for all captions that are looked for, then for all images."""
        image_ids = column(self.rows, "image_id")
        # A row per query, in both directions, so that recalls can be computed again.
        captions: list[Prediction] = []
        for caption, image in zip(self.captions, self.text_to_image.tolist(), strict=True):
            row = {"query": "caption", "caption": caption, "image_id": image_ids[image]}
            captions.append(row)
        images: list[Prediction] = [{"query": "image", "image_id": name} for name in image_ids]
        for prefix, rankings in (("", outputs.dual), (_RERANKED, outputs.reranked)):
            if rankings is not None:
                _add_ranking(captions, rankings.text_to_image, names=image_ids, prefix=prefix)
                _add_ranking(images, rankings.image_to_text, names=self.captions, prefix=prefix)
        return captions + images


def _add_ranking(
    rows: list[Prediction], ranking: Ranking, *, names: Sequence[str], prefix: str
) -> None:
    candidates = ranking.indices[:, :_NUM_SHOWN].tolist()
    for row, rank, best in zip(rows, ranking.ranks.tolist(), candidates, strict=True):
        row[f"{prefix}rank"] = rank
        row[f"{prefix}found"] = [names[number] for number in best]


class CompositionSet(PairSet):
    """Images with a true and a false caption, in the form of SugarCrepe and ARO.

    In an output, an encoder has 1 if it scores the true caption higher, and 0.5 if it scores both
    alike.
    """

    task = "composition"

    @classmethod
    def check_rows(cls, rows: Dataset, source: str) -> None:
        """Raise ValueError for rows without a kind, or without exactly one true caption."""
        check_task(rows, "COMPOSITION_FEATURES", task="images with a true and a false caption")
        for row in arrow_table(rows, ["image_id", "captions"]).to_pylist():
            count = len(row["captions"])
            if count != 1:
                raise ValueError(
                    f"{source}: {row['image_id']} has {count} captions; expected one true caption"
                )

    def with_options(self, model: VLMoForImageTextRetrieval, **options: Any) -> Self:
        """Return the set itself: options are validated, but nothing is reranked."""
        super().with_options(model, **options)
        return self

    @cached_property
    def captions(self) -> list[str]:
        """The true captions, then the false ones."""
        true = chain.from_iterable(column(self.rows, "captions"))
        return [*true, *column(self.rows, "false_caption")]

    @cached_property
    def text_to_image(self) -> Int[Tensor, "captions"]:
        """Number of the image of a caption."""
        return torch.arange(len(self.rows)).repeat(2)

    def outputs(
        self,
        model: VLMoForImageTextRetrieval,
        *,
        batch_size: int | None = None,
        console: Console | None = None,
    ) -> list[Prediction]:
        """Return a row for each image; the processes share images, texts and pairs."""
        pairs = self.as_set()
        batch = batch_size or self.batch_size
        scores: dict[str, Tensor] = {}
        with Progress(console) as progress:
            images, texts = embed(model, pairs, batch=batch, progress=progress.update)
            # Similarities of all true captions, then of all false ones: (2 * images,).
            scores["dual"] = (images.repeat(2, 1) * texts).sum(dim=1).cpu()
            if model.match_head is not None:
                scores["fusion"] = match_pairs(
                    model,
                    pairs,
                    images=pairs.text_to_image,
                    texts=torch.arange(pairs.num_texts),
                    batch=batch,
                    progress=progress.update,
                )
        columns = ["image_id", "kind", "captions", "false_caption"]
        outputs: list[Prediction] = arrow_table(self.rows, columns).to_pylist()
        for row in outputs:
            row["caption"] = row.pop("captions")[0]
        for encoder, values in scores.items():
            # Both (images,).
            true, false = values.chunk(2)
            for row, sign in zip(outputs, (true - false).sign().tolist(), strict=True):
                # 1 for the true caption, 0 for the false one, 0.5 for a tie.
                row[encoder] = 0.5 + 0.5 * sign
        return outputs

    def metrics(self, outputs: list[Prediction]) -> list[Metric]:
        """Return accuracies of the encoders, over all rows and by kind (`dual[swap]`)."""
        metrics = []
        for encoder in ("dual", "fusion"):
            # By suffix of the metric's name; a model without a matching head has no scores.
            scores: dict[str, list[float]] = {}
            for row in outputs:
                if encoder in row:
                    scores.setdefault("", []).append(row[encoder])
                    scores.setdefault(f"[{row['kind']}]", []).append(row[encoder])
            for suffix, values in scores.items():
                metric = Metric(
                    encoder + suffix,
                    fmean(values),
                    chance=0.5,
                    n=len(values),
                    label=f"{suffix.strip('[]') or 'all'}, {encoder} encoder",
                    meaning="" if suffix else _PREFERRED,
                )
                metrics.append(metric)
        return metrics

    def predictions(self, outputs: list[Prediction]) -> list[Prediction]:
        """Return the outputs, which are rows already."""
        return outputs
