"""Scores of images and captions by both encoders, and the share of examples that they fulfill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from rich.console import Console
from rich.table import Column, Table

from vlmo.data.decoding import ImageCell, decode_image
from vlmo.evaluation.metrics import Metric
from vlmo.model.reranking import rerank_score
from vlmo.progress import Progress
from vlmo.retrieval import Encoder
from vlmo.tasks.result import Json, Prediction, TaskResult
from vlmo.terminal import escaped, suggestion
from vlmo.zero_shot.suites import SUITES, Condition, Example, Suite

_BATCH = 32
# Prefixes of the names of metrics.
_ENCODERS = {"dual": "", "fusion": "fusion_", "reranked": "reranked_"}
_TASK = "image_caption_selection"


@dataclass(frozen=True)
class BenchmarkResult:
    """Metrics of a suite.

    Attributes:
        result: Metrics `acc`, `fusion_acc` and `reranked_acc` and the like, by kind too
            (`acc[swap_att]`), and the scores of all examples.
        pretrained: Fingerprint of the model.
    """

    suite: Suite
    result: TaskResult
    pretrained: str

    def table(self) -> Table:
        """Return metrics of the encoders in percent, with 95 % intervals, beside chance."""
        rows: dict[str, dict[str, Metric]] = {}
        for metric in self.result.measured:
            encoder, _, row = metric.label.partition(" ")
            rows.setdefault(row, {})[encoder] = metric
        title = f"{self.suite.dataset}, {len(self.result.predictions)} examples, percent (95 %)"
        table = Table(Column(no_wrap=True), Column("n", justify="right"), title=title)
        headings = [*next(iter(rows.values())), "chance"]
        published = self.suite.published
        if published:
            headings.append("published")
            table.caption = f"published: {self.suite.source}"
        for heading in headings:
            table.add_column(heading, justify="right")
        for row, metrics in rows.items():
            first = metrics["dual"]
            cells = [str(first.n), *map(_shown, metrics.values()), _percent(first.chance)]
            if published:
                cells.append(_percent(published.get(row)))
            table.add_row(escaped(row), *cells)
        return table

    def write_json(self, path: Path, *, folder: Path) -> Path:
        """Write the result in the fields of CLIP_benchmark, with more beside them."""
        facts: Json = {
            "dataset": self.suite.dataset,
            "pretrained": self.pretrained,
            "language": "en",
            "published": {"metrics": dict(self.suite.published), "source": self.suite.source},
        }
        return self.result.write_json(path, folder=folder, facts=facts)


def _shown(metric: Metric) -> str:
    low, high = metric.interval or (0, 1)
    return f"{_percent(metric.value)} ({_percent(low)}-{_percent(high)})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def run_suite(
    encoder: Encoder,
    name: str,
    data: str,
    *,
    images: Path | None = None,
    limit: int | None = None,
    console: Console | None = None,
) -> BenchmarkResult:
    """Return the shares of a suite's examples in which the true pairs score above the false ones.

    As in the publications, a tie is wrong. With a matching head, or a reranker, three orders are
    measured: by similarity, by the log-odds of a match, and by the mixture of both with the model's
    weights (`rerank_score`), of which captions of an image have one and images of a caption another.

    Args:
        name: Of `SUITES`.
        data: Folder or file of the set; composition: anything that `open_source` takes.
        images: Folder of the images; by default `images` beside the files, or their own.
        limit: Read the first examples only.

    Raises:
        ValueError: There is no such suite, or its files or images are missing or of another form.
    """
    if name not in SUITES:
        raise ValueError(f"no suite {name!r}{suggestion(name, SUITES)} All: {', '.join(SUITES)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give a number of examples from 1 up, or none for all")
    suite = SUITES[name]
    measured, predictions = _measure(
        encoder, suite, islice(suite.read(data, images), limit), console=console
    )
    if not predictions:
        raise ValueError(f"{data} has no examples; give the files of {suite.dataset}")
    result = TaskResult(_TASK, data, "test", measured, predictions)
    return BenchmarkResult(suite, result, encoder.fingerprint)


def _measure(
    encoder: Encoder, suite: Suite, examples: Iterator[Example], *, console: Console | None
) -> tuple[list[Metric], list[Prediction]]:
    predictions: list[Prediction] = []
    # By names of a metric and an encoder, a part for each batch.
    parts: dict[tuple[str, str], list[Bool[np.ndarray, " example"]]] = {}
    with Progress(console) as progress:
        while batch := list(islice(examples, _BATCH)):
            similarity, match = score_examples(encoder, batch)
            for metric, condition in suite.conditions.items():
                fulfilled = _fulfilled(encoder, condition, similarity, match)
                for order, right in fulfilled.items():
                    parts.setdefault((metric, order), []).append(right)
            predictions += _rows(batch, similarity, match)
            progress.update("examples", len(predictions), None)
    kinds = [row["kind"] for row in predictions]
    measured: list[Metric] = []
    for (metric, order), part in parts.items():
        chance = suite.conditions[metric].chance
        measured += _metrics(metric, order, np.concatenate(part), kinds=kinds, chance=chance)
    return measured, predictions


def score_examples(
    encoder: Encoder, examples: Sequence[Example]
) -> tuple[
    Float[np.ndarray, "example image caption"],
    Float[np.ndarray, "example image caption"] | None,
]:
    """Return cosine similarities and log-odds of a match of all pairs; None without a fusion encoder."""
    cells: list[tuple[ImageCell, Example]] = []
    captions: list[str] = []
    for example in examples:
        cells += [(cell, example) for cell in example.images]
        captions += example.captions
    count = len(examples)
    pixels = list(encoder.pool.map(lambda cell: encoder.both_pixels(_decoded(*cell)), cells))
    images = encoder.embed_pixels([own for own, _ in pixels]).reshape(count, -1, encoder.dim)
    texts = encoder.embed_texts(captions).reshape(count, -1, encoder.dim)
    similarity = images @ texts.transpose(0, 2, 1)
    if not encoder.can_match:
        return similarity, None
    pairs = []
    for (_, matched), (_, example) in zip(pixels, cells, strict=True):
        pairs += [(matched, caption) for caption in example.captions]
    return similarity, encoder.match_pairs(pairs).reshape(similarity.shape)


def _decoded(cell: ImageCell, example: Example) -> Image.Image:
    image = decode_image(cell)
    return image if example.box is None else image.crop(example.box)


def _fulfilled(
    encoder: Encoder,
    condition: Condition,
    similarity: Float[np.ndarray, "example image caption"],
    match: Float[np.ndarray, "example image caption"] | None,
) -> dict[str, Bool[np.ndarray, " example"]]:
    """Return by encoder which examples fulfill a condition."""
    fulfilled: dict[str, Bool[np.ndarray, " example"]] = {}
    for (image, caption), (other_image, other_caption) in condition.comparisons:
        margins = {
            "dual": similarity[:, image, caption] - similarity[:, other_image, other_caption]
        }
        if match is not None:
            margins["fusion"] = match[:, image, caption] - match[:, other_image, other_caption]
            same_image = image == other_image
            margins["reranked"] = rerank_score(
                margins["dual"],
                margins["fusion"],
                weight=encoder.rerank_weight_image_to_text if same_image else encoder.rerank_weight,
                scale=encoder.inverse_temperature,
            )
        for order, margin in margins.items():
            fulfilled[order] = fulfilled.get(order, True) & (margin > 0)
    return fulfilled


def _rows(
    examples: Sequence[Example],
    similarity: Float[np.ndarray, "example image caption"],
    match: Float[np.ndarray, "example image caption"] | None,
) -> Iterator[Prediction]:
    for number, example in enumerate(examples):
        row: Prediction = {"name": example.name, "kind": example.kind}
        row["captions"] = list(example.captions)
        row["similarity"] = similarity[number].tolist()
        if match is not None:
            row["match"] = match[number].tolist()
        yield row


def _metrics(
    metric: str,
    order: str,
    right: Bool[np.ndarray, " example"],
    *,
    kinds: Sequence[str],
    chance: float,
) -> Iterator[Metric]:
    """Yield a metric of all examples, and of their kinds if there are several."""
    groups = {"": np.ones(len(right), dtype=bool)}
    if len(set(kinds)) > 1:
        for kind in dict.fromkeys(kinds):
            groups[f"[{kind}]"] = np.array(kinds) == kind
    for suffix, chosen in groups.items():
        yield Metric(
            f"{_ENCODERS[order]}{metric}{suffix}",
            float(right[chosen].mean()),
            chance,
            int(chosen.sum()),
            label=f"{order} {metric}{suffix}",
        )
