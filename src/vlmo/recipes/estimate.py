"""What a run will need, from its recipe alone: no data, no start folder, no memory (models live on the meta device).

Counted are the model and its heads as the objective runs them, under data parallelism. Not counted: the frozen visual
tokenizer of stage 1, evaluation, buffers of the libraries, and what fragments memory. The last block counts as a whole
one, although most of it is run for few tokens only, so figures are upper bounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vlmo.model import (
    VLMoConfig,
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForSemanticSegmentation,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
)
from vlmo.model.costs import Pass, saved_bytes, training_flops
from vlmo.model.visual_tokenizer import VQVisualTokenizer, VQVisualTokenizerConfig
from vlmo.objectives.pretraining import LanguageObjective, VisionLanguageConfig
from vlmo.recipes.answering_stages import QuestionStage, ReasoningStage
from vlmo.recipes.pretraining_stages import LanguageStage, TokenizerStage, VisionLanguageStage, VisionStage
from vlmo.recipes.recipe import Recipe
from vlmo.recipes.retrieval_stage import RetrievalStage
from vlmo.recipes.vision_stages import ClassificationStage, SegmentationStage

_FLOAT32, _BFLOAT16 = 4, 2
_ID = 8  # bytes of a token id
_PAD_MULTIPLE = 8
_LOGIT_COPIES = 3  # logits, their float32 form and the log of the softmax
# The published sets' classes; a set at hand may have others, and only the last layer depends on it.
_CLASSES: dict[type, int] = {QuestionStage: 3129, ReasoningStage: 2, ClassificationStage: 1000, SegmentationStage: 150}


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes for one process; FLOPs forward and backward, a multiplication and its addition being two."""

    parameters: int
    trainable_parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """Kept by one micro-batch for its backward pass, with the bf16 copies of the weights."""
    micro_batch: int
    """Samples of one process in one backward pass."""
    processes: int
    gradient_traffic: int
    """Bytes that a process sends a step to average gradients (ring all-reduce)."""
    embedding_traffic: int
    """Bytes that a process receives a step for the contrastive logits, gradients included."""
    negative_traffic: int
    """Bytes that a process receives a step for hard negatives, gradients included."""
    flops_per_sample: int
    flops_per_step: int
    """Of all processes."""
    assumed_classes: int | None
    """Size of the last layer, where the data decide it."""

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self), indent=2)

    def table(self, *, title: str) -> Table:
        """For people."""
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in self._rows():
            table.add_row(name, value)
        return table

    def _rows(self) -> list[tuple[str, str]]:
        known = self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes
        rows = [
            ("parameters", f"{self.parameters:,} ({self.trainable_parameters:,} trained)"),
            ("memory of parameters", _gib(self.parameter_bytes)),
            ("memory of gradients", _gib(self.gradient_bytes)),
            ("memory of the optimizer", _gib(self.optimizer_bytes)),
            (f"activations of a micro-batch of {self.micro_batch:,}", f"about {_gib(self.activation_bytes)}"),
            ("these together", f"about {_gib(known)}"),
            (f"sent a step by each of {self.processes:,} processes: gradients", _gib(self.gradient_traffic)),
            ("received a step: embeddings for contrast", _gib(self.embedding_traffic)),
            ("received a step: hard negatives", _gib(self.negative_traffic)),
            ("GFLOPs a sample, forward and backward", f"{self.flops_per_sample / 1e9:,.1f}"),
            ("TFLOPs a step, all processes", f"{self.flops_per_step / 1e12:,.1f}"),
        ]
        if self.assumed_classes is not None:
            rows.append(("classes, as the data may have others", f"{self.assumed_classes:,} assumed"))
        return rows


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**27 else f"{size / 2**20:,.2f} MiB"


@dataclass(frozen=True)
class _Work:
    """What a stage does with a sample, beside the model that does it."""

    model: nn.Module
    flops: float
    activation_bytes: float
    embeddings: int = 0
    """Numbers of a sample's contrastive vectors that every process reads, in all gathers."""
    negative_bytes: float = 0.0
    """Of the hard negatives that a sample asks for."""
    contrast_flops: int = 0
    """Of a sample's logits against one sample of the contrastive batch."""
    contrast_bytes: int = 0


def estimate(recipe: Recipe, *, processes: int = 1) -> Estimate:
    """What each of `processes` needs for the recipe's run.

    Raises:
        ValueError: The global batch cannot be shared by so many processes.
    """
    pieces = processes * recipe.loader.accumulation
    batch = recipe.loader.global_batch_size
    if processes < 1 or batch % pieces:
        raise ValueError(
            f"processes is {processes}; loader.global_batch_size {batch} must be a multiple of processes x "
            f"loader.accumulation ({recipe.loader.accumulation})"
        )
    with torch.device("meta"):
        work = _STAGES[type(recipe.stage)](recipe)
    parameters = list(work.model.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    copies = _BFLOAT16 * total if _half(recipe) else 0  # of the weights, under autocast
    micro, others = batch // pieces, processes - 1
    contrastive = micro * processes
    flops = work.flops + contrastive * work.contrast_flops
    return Estimate(
        parameters=total,
        trainable_parameters=trained,
        parameter_bytes=total * _FLOAT32,
        gradient_bytes=trained * _FLOAT32,
        optimizer_bytes=2 * trained * _FLOAT32,
        activation_bytes=round(micro * (work.activation_bytes + contrastive * work.contrast_bytes)) + copies,
        micro_batch=micro,
        processes=processes,
        gradient_traffic=round(2 * others / processes * trained * _FLOAT32),
        embedding_traffic=recipe.loader.accumulation * micro * others * work.embeddings * _FLOAT32,
        negative_traffic=round(recipe.loader.accumulation * micro * others / processes * work.negative_bytes),
        flops_per_sample=round(flops),
        flops_per_step=round(flops * batch),
        assumed_classes=_CLASSES.get(type(recipe.stage)),
    )


def _config(recipe: Recipe, **changes: Any) -> VLMoConfig:
    settings = asdict(recipe.model)
    if recipe.stage.reads_text:
        settings["vocab_size"] = recipe.text.vocab_size
    if (classes := _CLASSES.get(type(recipe.stage))) is not None:
        settings["id2label"] = dict(enumerate(map(str, range(classes))))
    return VLMoConfig(**settings | changes)


def _half(recipe: Recipe) -> bool:
    return recipe.trainer.precision == "bf16"


def _num_image(config: VLMoConfig) -> int:
    return 1 + config.grid[0] * config.grid[1]


def _num_text(recipe: Recipe) -> int:
    return -(-recipe.text.max_length // _PAD_MULTIPLE) * _PAD_MULTIPLE


def _patch_flops(config: VLMoConfig) -> int:
    """Of one picture's embedding; the pixels need no gradient."""
    patches, values = _num_image(config) - 1, config.num_channels * config.patch_size**2
    return 2 * 2 * patches * values * config.hidden_size


def _work(recipe: Recipe, model: nn.Module, passes: list[Pass], *, heads: float, pictures: int, **more: Any) -> _Work:
    """The work of blocks, patch embeddings and heads; `heads` are multiplications of a sample, forward."""
    config, frozen = cast(VLMoConfig, model.config), more.pop("frozen_attention", False)
    head_bytes = more.pop("head_bytes", 0.0)
    flops = training_flops(config, passes, frozen_attention=frozen) + pictures * _patch_flops(config) + 6 * heads
    saved = saved_bytes(config, passes, half=_half(recipe)) + head_bytes
    saved += pictures * _FLOAT32 * config.num_channels * config.image_size**2
    return _Work(model, flops=flops, activation_bytes=saved, **more)


def _tokenizer(recipe: Recipe) -> _Work:
    stage = cast(TokenizerStage, recipe.stage)
    config = VQVisualTokenizerConfig(**asdict(stage.tokenizer))
    model = VQVisualTokenizer(config)
    patches = (recipe.model.image_size // config.patch_size) ** 2
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    multiplications = sum(layer.weight.numel() for layer in layers)
    widths = sum(layer.weight.shape[0] + layer.weight[0].numel() for layer in layers if isinstance(layer, nn.Linear))
    lookup = 2 * config.code_size * config.num_tokens
    return _Work(
        model,
        flops=patches * (6.0 * multiplications + lookup),
        activation_bytes=float(patches * _FLOAT32 * (widths + config.num_tokens)),
    )


def _vision(recipe: Recipe) -> _Work:
    model = VLMoForMaskedImageModeling(config := _config(recipe))
    masked = cast(VisionStage, recipe.stage).masked_share * (_num_image(config) - 1)
    passes = [Pass(config.num_hidden_layers, num_image=_num_image(config))]
    return _work(
        recipe,
        model,
        passes,
        heads=masked * config.hidden_size * config.num_visual_tokens,
        pictures=1,
        head_bytes=_LOGIT_COPIES * _FLOAT32 * masked * config.num_visual_tokens,
    )


def _words(recipe: Recipe, config: VLMoConfig) -> tuple[float, float]:
    """Multiplications and bytes of a text's masked words in their head."""
    masked = recipe.data.mlm_probability * _num_text(recipe)
    multiplications = masked * config.hidden_size * (config.hidden_size + config.vocab_size)
    return multiplications, _LOGIT_COPIES * _FLOAT32 * masked * config.vocab_size


def _language(recipe: Recipe) -> _Work:
    stage = cast(LanguageStage, recipe.stage)
    model = VLMoForMaskedLM(config := _config(recipe))
    LanguageObjective(model, freeze=stage.freeze)  # freezes
    heads, head_bytes = _words(recipe, config)
    passes = [Pass(config.num_hidden_layers, num_text=_num_text(recipe))]
    return _work(recipe, model, passes, heads=heads, pictures=0, head_bytes=head_bytes, frozen_attention=stage.freeze)


def _pairs(recipe: Recipe) -> _Work:
    """Stage 3, and fine-tuning for retrieval."""
    stage = cast(VisionLanguageStage | RetrievalStage, recipe.stage)
    losses: VisionLanguageConfig = stage.losses
    if isinstance(stage, VisionLanguageStage):
        model = VLMoForPreTraining(config := _config(recipe))
        endings = 2 if config.has_fusion_ending else 1
    else:
        changes = {"use_match_head": losses.itm_weight > 0, "contrast_fusion_ending": False}
        model, endings = VLMoForImageTextRetrieval(config := _config(recipe, **changes)), 1
    text, image, depth = _num_text(recipe), _num_image(config), config.num_hidden_layers
    again = (endings - 1) * config.num_fusion_layers
    masks, matches = (int(weight > 0) / losses.fused_stride for weight in (losses.mlm_weight, losses.itm_weight))
    passes = [Pass(depth + again, num_image=image), Pass(depth + again, num_text=text)]
    passes.append(Pass(depth, num_text=text, num_image=image, rows=masks + 3 * matches))
    words, word_bytes = _words(recipe, config)
    dim, projection = config.hidden_size, cast("int", config.projection_size)
    return _work(
        recipe,
        model,
        passes,
        heads=2 * endings * dim * projection + masks * words + 3 * matches * dim * dim,
        pictures=1,
        head_bytes=masks * word_bytes,
        # Both directions of each ending gather with a gradient, and the first once more to draw hard negatives.
        embeddings=2 * projection * (2 * endings + 1),
        negative_bytes=matches * (2 * image * dim * _FLOAT32 + 2 * text * _ID),
        contrast_flops=2 * 2 * projection * (3 * endings + 1),
        contrast_bytes=2 * endings * _LOGIT_COPIES * _FLOAT32,
    )


def _question(recipe: Recipe) -> _Work:
    model = VLMoForVisualQuestionAnswering(config := _config(recipe))
    return _pair_classifier(recipe, model, config, pictures=1)


def _reasoning(recipe: Recipe) -> _Work:
    model = VLMoForVisualReasoning(config := _config(recipe, num_modality_types=3))
    return _pair_classifier(recipe, model, config, pictures=2)


def _pair_classifier(recipe: Recipe, model: nn.Module, config: VLMoConfig, *, pictures: int) -> _Work:
    passes = [
        Pass(config.num_hidden_layers, num_text=_num_text(recipe), num_image=_num_image(config), rows=float(pictures))
    ]
    dim = config.hidden_size
    heads = pictures * dim * dim + 2 * dim * (pictures * dim + cast("int", config.num_labels))
    return _work(recipe, model, passes, heads=heads, pictures=pictures)


def _classification(recipe: Recipe) -> _Work:
    model = VLMoForImageClassification(config := _config(recipe))
    passes = [Pass(config.num_hidden_layers, num_image=_num_image(config))]
    return _work(recipe, model, passes, heads=config.hidden_size * cast("int", config.num_labels), pictures=1)


def _segmentation(recipe: Recipe) -> _Work:
    stage = cast(SegmentationStage, recipe.stage)
    layers = None if stage.layers is None else list(stage.layers)
    config = _config(recipe, segmentation_channels=stage.channels, segmentation_layers=layers)
    model = VLMoForSemanticSegmentation(config)
    work = _work(recipe, model, [Pass(config.num_hidden_layers, num_image=_num_image(config))], heads=0.0, pictures=1)
    flops, saved = _convolutions(model, config)
    pixels = 2 * _LOGIT_COPIES * _FLOAT32 * cast("int", config.num_labels) * config.image_size**2
    saved = saved * (0.5 if _half(recipe) else 1.0) + pixels
    return replace(work, flops=work.flops + flops, activation_bytes=work.activation_bytes + saved)


def _convolutions(model: VLMoForSemanticSegmentation, config: VLMoConfig) -> tuple[float, float]:
    """Operations and kept bytes of the heads on one picture, counted in a run on the meta device."""
    rows = 2  # batch normalisation needs more than one value
    levels = [torch.empty(rows, config.hidden_size, *config.grid).requires_grad_() for _ in config.feature_layers]
    kept: dict[int, Tensor] = {}
    own = {id(parameter) for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        pyramid = model.pyramid(levels)
        (model.decode_head(pyramid).sum() + model.auxiliary_head(pyramid).sum()).backward()
    return counter.get_total_flops() / rows, sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / rows


_STAGES: dict[type, Callable[[Recipe], _Work]] = {
    TokenizerStage: _tokenizer,
    VisionStage: _vision,
    LanguageStage: _language,
    VisionLanguageStage: _pairs,
    RetrievalStage: _pairs,
    QuestionStage: _question,
    ReasoningStage: _reasoning,
    ClassificationStage: _classification,
    SegmentationStage: _segmentation,
}
