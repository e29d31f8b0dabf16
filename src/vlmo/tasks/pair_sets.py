"""Evaluation sets of pairs: images and captions to search among, and images with a true and a false caption."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from vlmo.data.decoding import ImageCell, decode_image
from vlmo.data.rows import column
from vlmo.evaluation import RetrievalResult, RetrievalSet, Weights, evaluate_retrieval
from vlmo.evaluation.inference import BATCH
from vlmo.evaluation.metrics import EXAMPLE_CHANCE, Metric, example_scores, words_alone
from vlmo.evaluation.scoring import embed_images, embed_texts, match_pairs
from vlmo.processing import TransformConfig, eval_transform
from vlmo.progress import Progress
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.labels import check_task
from vlmo.tasks.result import Prediction

if TYPE_CHECKING:
    from vlmo.processing import VLMoProcessor

SHORTLIST = 16
"""Candidates of each query that an evaluation reranks by default."""
PUBLISHED_SHORTLIST = 32
"""The same in the published code."""
_RERANKED = "rerank_"
MATCHING = {
    "match_auc": ("AUC of matching", "share of (true pair, random pair) where matching ranks the true one higher"),
    "match_accuracy": ("accuracy of matching", "right decisions on true pairs and as many with a random text"),
    "match_accuracy_hard": (
        "accuracy of matching, hard",
        "right decisions on true pairs and as many with the dual encoder's best wrong text",
    ),
}
"""Label and meaning of the metrics of matching."""
_ENCODERS = {"dual": "dual encoder", "fusion": "fusion encoder", "words": "words alone"}
"""Scorers of true and false captions, with their names."""
_ENCODER_MEANING = "share of images whose true caption has the higher score"
_WORDS_MEANING = "share of true captions that a linear model prefers which reads the words and sees no image"
_EXAMPLE_MEANINGS = {
    "text": "share of pairs of images where both prefer their own caption",
    "image": "share of pairs of images where both captions prefer their own image",
    "group": "share of pairs of images where all four preferences are right",
}
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
    rerank_score: Literal["weighted", "published"] = "weighted"
    """published: the order of cosine similarity + logit of a match, as in the published code; without weight."""

    task: ClassVar[str] = "retrieval"
    hub_task: ClassVar[str] = "image-text-retrieval"
    needs: ClassVar[dict[str, Any]] = {}
    batch_size: ClassVar[int] = BATCH
    default_data: ClassVar[str | None] = "emoji-pairs"
    options: ClassVar[tuple[str, ...]] = ("rerank", "rerank_weight", "rerank_score")

    @classmethod
    def read(cls, *, source: str, **arguments: Any) -> PairSet:
        """Return the valid rows of a split, as `CompositionSet` if they have false captions; see `EvaluationSet`."""
        found = super().read(source=source, **arguments)
        if "false_caption" not in found.rows.column_names:
            return found
        CompositionSet.check_rows(found.rows, source)
        return CompositionSet(found.rows, source=source, split=found.split, processor=found.processor)

    def with_options(
        self,
        model: Any,
        *,
        rerank: int | None = None,
        rerank_weight: float | None = None,
        rerank_score: Literal["weighted", "published"] = "weighted",
    ) -> Self:
        """Return the set with a shortlist (by default 16, or 32 for the published score), weight and kind of score.

        Raises:
            ValueError: The model cannot rerank, or a value is out of range.
        """
        has_head, published = model.match_head is not None, rerank_score == "published"
        if rerank is None:
            rerank = (PUBLISHED_SHORTLIST if published else SHORTLIST) if has_head else 0
        if rerank and not has_head:
            raise ValueError("this model has no matching head, so that nothing can be reordered; give --rerank 0")
        if rerank < 0 or (rerank_weight is not None and not 0 <= rerank_weight <= 1):
            raise ValueError(
                f"rerank is {rerank} and rerank_weight {rerank_weight}; give a number of candidates from 0 up, and a "
                "share from 0 to 1"
            )
        if not rerank and (rerank_weight is not None or published):
            given = f"rerank_weight is {rerank_weight}" if rerank_weight is not None else "the published score is given"
            raise ValueError(f"{given}, but nothing is reordered (rerank is 0); leave one out")
        if published and rerank_weight is not None:
            raise ValueError(f"rerank_weight is {rerank_weight}, but the published score has no weight; leave one out")
        weights = Weights(*model.config.rerank_weights)
        own = weights.text_to_image if weights.image_to_text == weights.text_to_image else weights
        weight = own if rerank_weight is None else rerank_weight
        chosen: dict[str, Any] = {"rerank": rerank}
        if published:
            chosen["rerank_score"] = rerank_score
        elif rerank:
            chosen["rerank_weight"] = weight._asdict() if isinstance(weight, Weights) else weight
        settings = chosen | self.settings
        return replace(self, rerank=rerank, rerank_weight=weight, rerank_score=rerank_score, settings=settings)

    @cached_property
    def captions(self) -> list[str]:
        """All captions, image by image."""
        return [caption for captions in column(self.rows, "captions") for caption in captions]

    def image(self, number: int) -> Image.Image:
        """Return one decoded image."""
        return decode_image(self.rows[number]["image"])

    def as_set(self) -> RetrievalSet:
        """Return the input of `evaluate_retrieval`."""
        counts = torch.tensor([len(captions) for captions in column(self.rows, "captions")])
        return RetrievalSet(
            read_images=self._pixels,
            read_texts=self._tokens,
            text_to_image=torch.repeat_interleave(torch.arange(len(counts)), counts),
        )

    def _pixels(self, numbers: range) -> Tensor:
        transform = eval_transform(TransformConfig(image_size=cast("VLMoProcessor", self.processor).image_size))
        cells: list[ImageCell] = self.rows[numbers.start : numbers.stop]["image"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and resizing run beside each other
            return torch.stack(list(pool.map(lambda cell: transform(decode_image(cell)), cells)))

    def _tokens(self, numbers: range) -> tuple[Tensor, Tensor]:
        processor = cast("VLMoProcessor", self.processor)
        encoded = processor(text=self.captions[numbers.start : numbers.stop], return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]

    def outputs(self, model: Any, *, batch_size: int | None = None, console: Console | None = None) -> RetrievalResult:
        """Return recalls and rankings; the processes share images, texts and pairs."""
        with Progress(console) as progress:
            return evaluate_retrieval(
                model,
                self.as_set(),
                rerank=self.rerank,
                rerank_weight=self.rerank_weight,
                published_score=self.rerank_score == "published",
                batch=batch_size or self.batch_size,
                progress=progress.update,
            )

    def metrics(self, outputs: RetrievalResult) -> list[Metric]:
        """Return `tr@K` and `ir@K`; with a shortlist also `rerank_tr@K`, `rerank_ir@K` and those of matching."""
        queries = {"ir": len(self.captions), "tr": len(self.rows)}
        found = []
        for name, value in outputs.metrics.items():
            if name in MATCHING:
                label, meaning = MATCHING[name]
                found.append(Metric(name, value, chance=0.5, label=label, meaning=meaning))
                continue
            recall = name.removeprefix(_RERANKED)
            direction, _, k = recall.partition("@")
            encoder, meaning = "dual encoder", _MEANINGS[direction].format(k=k)
            if name != recall:
                encoder, meaning = "reranked", f"{meaning}, reordered by the fusion encoder"
            chance, label = outputs.chance[recall], f"{recall.upper()}, {encoder}"
            found.append(Metric(name, value, chance=chance, n=queries[direction], label=label, meaning=meaning))
        return found

    def predictions(self, outputs: RetrievalResult) -> list[Prediction]:
        """Return a row for each caption that is looked for, then for each image."""
        image_ids = column(self.rows, "image_id")
        own = self.as_set().text_to_image.tolist()
        captions: list[Prediction] = [
            {"query": "caption", "caption": text, "image_id": image_ids[own[n]]} for n, text in enumerate(self.captions)
        ]
        images: list[Prediction] = [{"query": "image", "image_id": image_id} for image_id in image_ids]
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

    An output is 1 for each encoder that scores the true caption higher, and 0.5 for one that scores both alike. Where a
    column `group` joins two images with the same two captions, as in Winoground, outputs hold both scores too.
    """

    task: ClassVar[str] = "composition"

    @classmethod
    def check_rows(cls, rows: Any, source: str) -> None:
        """Raise ValueError for rows without a kind, or with another number of true captions than one."""
        check_task(rows, ["kind"], task="images with a true and a false caption")
        for image_id, captions in zip(column(rows, "image_id"), column(rows, "captions"), strict=True):
            if len(captions) != 1:
                raise ValueError(f"{source}: {image_id} has {len(captions)} captions; expected one true caption")
        if "group" in rows.column_names:
            found: dict[str, list[tuple[str, str]]] = {}
            names = ("group", "captions", "false_caption")
            for group, true, false in zip(*(column(rows, name) for name in names), strict=True):
                found.setdefault(group, []).append((true[0], false))
            for group, pairs in found.items():
                if len(pairs) != 2 or pairs[0] != pairs[1][::-1]:
                    raise ValueError(
                        f"{source}: the group {group} has {len(pairs)} rows; expected two whose true captions are each "
                        "other's false ones (with --limit, an even number)"
                    )

    def with_options(self, model: Any, **options: Any) -> Self:
        """Return the set itself: options are validated, but nothing is reranked."""
        super().with_options(model, **options)
        return self

    @cached_property
    def captions(self) -> list[str]:
        """The true captions, then the false ones."""
        return [captions[0] for captions in column(self.rows, "captions")] + column(self.rows, "false_caption")

    def as_set(self) -> RetrievalSet:
        """Return the images with both captions."""
        numbers = torch.arange(len(self.rows)).repeat(2)
        return RetrievalSet(read_images=self._pixels, read_texts=self._tokens, text_to_image=numbers)

    def outputs(self, model: Any, *, batch_size: int | None = None, console: Console | None = None) -> list[Prediction]:
        """Return a row for each image; the processes share images, texts and pairs."""
        own, batch = self.as_set(), batch_size or self.batch_size
        scores: dict[str, Tensor] = {}
        with Progress(console) as progress:
            options: dict[str, Any] = {"batch": batch, "progress": progress.update}
            images, texts = embed_images(model, own, **options), embed_texts(model, own, **options)
            scores["dual"] = (images.repeat(2, 1) * texts).sum(dim=1)
            if model.match_head is not None:
                every = torch.arange(own.num_texts)
                scores["fusion"] = match_pairs(model, own, images=own.text_to_image, texts=every, **options)
        both = {name: each.float().cpu().view(2, -1) for name, each in scores.items()}
        margins = {name: true - false for name, (true, false) in both.items()} | {"words": words_alone(self.captions)}
        groups = column(self.rows, "group") if "group" in self.rows.column_names else []
        names, kinds = column(self.rows, "image_id"), column(self.rows, "kind")
        preferred = {name: (0.5 + 0.5 * margin.sign()).tolist() for name, margin in margins.items()}
        outputs = [
            {"image_id": name, "kind": kind, "caption": true[0], "false_caption": false}
            | {encoder: found[row] for encoder, found in preferred.items()}
            for row, (name, kind, true, false) in enumerate(
                zip(names, kinds, column(self.rows, "captions"), column(self.rows, "false_caption"), strict=True)
            )
        ]
        for row, group in enumerate(groups):
            outputs[row] |= {"group": group} | {f"{name}_scores": each[:, row].tolist() for name, each in both.items()}
        return outputs

    def metrics(self, outputs: list[Prediction]) -> list[Metric]:
        """Return accuracies of each encoder, over all rows and over the rows of each kind (`dual[swap]`).

        Groups also have Winoground's scores, `dual_text`, `dual_image` and `dual_group`; chance is a random order.
        """
        metrics = []
        for encoder, title in _ENCODERS.items():
            for kind in (None, *dict.fromkeys(row["kind"] for row in outputs)) if encoder in outputs[0] else ():
                right = [row[encoder] for row in outputs if kind in (None, row["kind"])]
                meaning = "share of images whose true caption has the higher score" if kind is None else ""
                if encoder == "words" and kind is None:
                    meaning = (
                        "share of true captions that a linear model prefers which reads the words and sees no image"
                    )
                name, label = encoder + (f"[{kind}]" if kind else ""), f"{kind or 'all'}, {title}"
                value = sum(right) / len(right)
                metrics.append(Metric(name, value, chance=0.5, n=len(right), label=label, meaning=meaning))
        examples: dict[str, list[Prediction]] = {}
        for row in outputs if "group" in outputs[0] else ():
            examples.setdefault(row["group"], []).append(row)
        whole = [rows for rows in examples.values() if len(rows) == 2]  # the other row's image may be invalid
        for encoder in ("dual", "fusion") if whole else ():
            if (name := f"{encoder}_scores") in outputs[0]:  # the second row's true caption is caption 1
                scores = torch.tensor([[first[name], second[name][::-1]] for first, second in whole])
                for score, share in example_scores(scores).items():
                    facts = {"label": f"{score} score, {_ENCODERS[encoder]}", "meaning": _EXAMPLE_MEANINGS[score]}
                    metrics.append(Metric(f"{encoder}_{score}", share, chance=EXAMPLE_CHANCE[score], **facts))
        return metrics

    def predictions(self, outputs: list[Prediction]) -> list[Prediction]:
        """Return the outputs, which are rows already."""
        return outputs
