"""What each stage does with a sample: the model on the meta device, operations, and bytes for the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
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
from vlmo.model.costs import Pass, block_bytes, input_bytes, training_flops
from vlmo.model.visual_tokenizer import VQVisualTokenizer, VQVisualTokenizerConfig
from vlmo.objectives.gradient_cache import row_blocks
from vlmo.objectives.unimodal import LanguageObjective
from vlmo.objectives.vision_language import VisionLanguageConfig
from vlmo.recipes.schema import Recipe
from vlmo.tasks import (
    ClassificationStage,
    LanguageStage,
    QuestionStage,
    ReasoningStage,
    RetrievalStage,
    SegmentationStage,
    TokenizerStage,
    VisionLanguageStage,
    VisionStage,
)

_FLOAT32 = 4
_PAD_MULTIPLE = 8
_LOGIT_COPIES = 3  # logits, their float32 form and the log of the softmax


@dataclass(frozen=True)
class PairWork:
    """What the contrast and hard negatives of a pair take.

    Attributes:
        chosen_share: Of the pairs, those that get hard negatives.
        groups: Parts of the batch within which they are drawn.
        picture_bytes: Of a picture as it travels; `gradient_bytes` come back.
        text: Tokens of a padded text.
    """

    endings: int
    projection: int
    chosen_share: float
    groups: int
    picture_bytes: int
    gradient_bytes: int
    text: int

    def contrast_flops(self, contrastive: int) -> int:
        """Of a pair's logits: both directions of each ending, forward and backward, and once more to draw negatives."""
        return 2 * 2 * self.projection * contrastive * (3 * self.endings + bool(self.chosen_share))

    def fetched_share(self, processes: int) -> float:
        """Of the pairs, those whose hard negatives may lie on another process."""
        return 0.0 if self.groups % processes == 0 else self.chosen_share

    def kept_bytes(self, micro: int, contrastive: int) -> float:
        """All embeddings and their gradients, logits (all, or of many a block at a time), and fetched negatives."""
        block = row_blocks(micro, width=contrastive)[0]
        kept = 2 * self.endings if block.stop == micro else 1
        logits = kept * _LOGIT_COPIES * _FLOAT32 * block.stop * contrastive
        fetched = self.fetched_share(contrastive // micro) * micro * self.picture_bytes
        return 2 * 2 * self.endings * self.projection * _FLOAT32 * contrastive + logits + fetched


@dataclass(frozen=True)
class Encoding:
    """Sequences that go through the blocks together.

    Attributes:
        share: Rows for each sample.
        chunk: Rows at a time; None = all.
        again: Only the input of a chunk is kept, and the chunk is computed again in the backward pass.
        other_bytes: Kept of a row beside what blocks keep.
    """

    passes: tuple[Pass, ...]
    share: float = 1.0
    chunk: int | None = None
    again: bool = False
    other_bytes: float = 0.0

    def rows_at_a_time(self, micro: int) -> float:
        """Of a micro-batch."""
        rows = micro * self.share
        return rows if self.chunk is None else min(rows, self.chunk)

    def runs(self, micro: int) -> int:
        """Through all blocks, in a micro-batch."""
        return math.ceil(micro * self.share / self.rows_at_a_time(micro)) if self.share else 0


@dataclass(frozen=True)
class Work:
    """What a stage does with a sample, and the model that does it.

    Attributes:
        flops: Of a sample, forward and backward, but for the contrast.
        row_bytes: Kept of a sample beside what its encodings keep.
        assumed_classes: Size of the last layer, where the data decide it.
    """

    model: nn.Module
    flops: float
    row_bytes: float
    half: bool = False
    checkpointed: bool = False
    encodings: tuple[Encoding, ...] = ()
    pairs: PairWork | None = None
    assumed_classes: int | None = None

    def flops_of_a_sample(self, *, contrastive: int) -> float:
        """In a contrastive batch of so many."""
        return self.flops + (0 if self.pairs is None else self.pairs.contrast_flops(contrastive))

    def kept_bytes(self, micro: int, *, contrastive: int) -> float:
        """What a micro-batch keeps for its backward pass, at most."""
        config = cast(VLMoConfig, self.model.config)
        kept, moment = micro * self.row_bytes, 0.0
        for each in self.encodings:
            blocks = [block_bytes(config, sequence, half=self.half) for sequence in each.passes]
            of_blocks = [input_bytes(config, sequence) for sequence in each.passes] if self.checkpointed else blocks
            row = each.other_bytes + sum(p.blocks * size for p, size in zip(each.passes, of_blocks, strict=True))
            one_block = max(blocks) if self.checkpointed else 0
            if each.again:
                moment = max(moment, each.rows_at_a_time(micro) * (row + one_block))
            else:
                kept += micro * each.share * row
                moment = max(moment, each.rows_at_a_time(micro) * one_block)
        return kept + moment + (0 if self.pairs is None else self.pairs.kept_bytes(micro, contrastive))

    def runs_of_a_block(self, micro: int) -> tuple[float, float]:
        """How often a block runs in a micro-batch, in the mean: forward (some of it again), and backward."""
        if not self.encodings:
            return 0.0, 0.0
        depth = cast(VLMoConfig, self.model.config).num_hidden_layers
        runs = [(each, each.runs(micro) * sum(p.blocks for p in each.passes) / depth) for each in self.encodings]
        return sum(count * (2 if each.again else 1) for each, count in runs), sum(count for _, count in runs)


def work_of(recipe: Recipe) -> Work:
    """The work of the recipe's stage; call it where the meta device is the default one."""
    return replace(_STAGES[type(recipe.stage)](recipe), assumed_classes=recipe.stage.num_classes)


def _config(recipe: Recipe, **changes: Any) -> VLMoConfig:
    settings = asdict(recipe.model)
    if recipe.stage.reads_text:
        settings["vocab_size"] = recipe.text.vocab_size
    if (classes := recipe.stage.num_classes) is not None:
        settings["id2label"] = dict(enumerate(map(str, range(classes))))
    return VLMoConfig(**settings | changes)


def _num_image(config: VLMoConfig) -> int:
    return 1 + config.grid[0] * config.grid[1]


def _num_text(recipe: Recipe) -> int:
    return -(-recipe.text.max_length // _PAD_MULTIPLE) * _PAD_MULTIPLE


def _patch_flops(config: VLMoConfig) -> int:
    """Of one picture's embedding; the pixels need no gradient."""
    patches, values = _num_image(config) - 1, config.num_channels * config.patch_size**2
    return 2 * 2 * patches * values * config.hidden_size


def _pixels(config: VLMoConfig) -> int:
    return config.num_channels * config.image_size**2


def _work(recipe: Recipe, model: nn.Module, *encodings: Encoding, flops: float, row_bytes: float, **more: Any) -> Work:
    """The work of the blocks and of what comes before and after them: `flops` and `row_bytes` of a sample."""
    config, frozen = cast(VLMoConfig, model.config), more.pop("frozen_attention", False)
    for each in encodings:
        flops += each.share * sum(training_flops(config, p, frozen_attention=frozen) for p in each.passes)
    half, checkpointed = recipe.trainer.precision == "bf16", recipe.trainer.engine.activation_checkpointing
    return Work(
        model, flops=flops, row_bytes=row_bytes, half=half, checkpointed=checkpointed, encodings=encodings, **more
    )


def _tokenizer(recipe: Recipe) -> Work:
    stage = cast(TokenizerStage, recipe.stage)
    config = VQVisualTokenizerConfig(**asdict(stage.tokenizer))
    model = VQVisualTokenizer(config)
    patches = (recipe.model.image_size // config.patch_size) ** 2
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    multiplications = sum(layer.weight.numel() for layer in layers)
    widths = sum(layer.weight.shape[0] + layer.weight[0].numel() for layer in layers if isinstance(layer, nn.Linear))
    lookup = 2 * config.code_size * config.num_tokens
    return Work(
        model,
        flops=patches * (6.0 * multiplications + lookup),
        row_bytes=float(patches * _FLOAT32 * (widths + config.num_tokens)),
    )


def _vision(recipe: Recipe) -> Work:
    model = VLMoForMaskedImageModeling(config := _config(recipe))
    masked = cast(VisionStage, recipe.stage).masked_share * (_num_image(config) - 1)
    return _work(
        recipe,
        model,
        Encoding((Pass(config.num_hidden_layers, num_image=_num_image(config)),)),
        flops=_patch_flops(config) + 6 * masked * config.hidden_size * config.num_visual_tokens,
        row_bytes=_FLOAT32 * (_pixels(config) + _LOGIT_COPIES * masked * config.num_visual_tokens),
    )


def _words(recipe: Recipe, config: VLMoConfig) -> tuple[float, float]:
    """Operations and bytes of a text's masked words in their head."""
    masked = recipe.data.mlm_probability * _num_text(recipe)
    multiplications = masked * config.hidden_size * (config.hidden_size + config.vocab_size)
    return 6 * multiplications, _LOGIT_COPIES * _FLOAT32 * masked * config.vocab_size


def _language(recipe: Recipe) -> Work:
    stage = cast(LanguageStage, recipe.stage)
    model = VLMoForMaskedLM(config := _config(recipe))
    LanguageObjective(model, freeze=stage.freeze)  # freezes
    flops, word_bytes = _words(recipe, config)
    encoding = Encoding((Pass(config.num_hidden_layers, num_text=_num_text(recipe)),))
    return _work(recipe, model, encoding, flops=flops, row_bytes=word_bytes, frozen_attention=stage.freeze)


def _pairs(recipe: Recipe) -> Work:
    """Stage 3, and fine-tuning for retrieval."""
    stage = cast(VisionLanguageStage | RetrievalStage, recipe.stage)
    losses: VisionLanguageConfig = stage.losses
    if isinstance(stage, VisionLanguageStage):
        model = VLMoForPreTraining(config := _config(recipe))
        endings = 2 if config.has_fusion_branch else 1
    else:
        changes = {"use_match_head": losses.itm_weight > 0, "contrast_fusion_branch": False}
        model, endings = VLMoForImageTextRetrieval(config := _config(recipe, **changes)), 1
    text, image, dim = _num_text(recipe), _num_image(config), config.hidden_size
    projection, cached = cast("int", config.projection_size), losses.cache_chunk is not None
    masks, matches = (int(weight > 0) / losses.fused_stride for weight in (losses.mlm_weight, losses.itm_weight))
    word_flops, word_bytes = _words(recipe, config)
    flops = _patch_flops(config) + 6 * 2 * endings * dim * projection + masks * word_flops + 6 * 3 * matches * dim * dim
    embedded = image * dim * _FLOAT32
    return _work(
        recipe,
        model,
        *_pair_encodings(recipe, config, losses, endings=endings, word_bytes=word_bytes),
        flops=flops,
        row_bytes=_pixels(config) if cached else _FLOAT32 * _pixels(config) + masks * word_bytes,
        pairs=PairWork(
            endings=endings,
            projection=projection,
            chosen_share=matches,
            groups=losses.negative_groups,
            picture_bytes=_pixels(config) if cached else embedded,
            gradient_bytes=0 if cached else embedded,
            text=text,
        ),
    )


def _pair_encodings(
    recipe: Recipe, config: VLMoConfig, losses: VisionLanguageConfig, *, endings: int, word_bytes: float
) -> list[Encoding]:
    """Pictures and texts apart, then pairs: masked, true, and with two kinds of negatives."""
    text, image, depth = _num_text(recipe), _num_image(config), config.num_hidden_layers
    masks, matches = (int(weight > 0) / losses.fused_stride for weight in (losses.mlm_weight, losses.itm_weight))
    alone = depth + (endings - 1) * config.num_fusion_layers
    apart, pair = (Pass(alone, num_image=image), Pass(alone, num_text=text)), (Pass(depth, text, image),)
    if losses.cache_chunk is None:
        return [Encoding(apart), Encoding(pair, share=masks + 3 * matches, chunk=losses.fused_chunk)]
    floats, chunk = _FLOAT32 * _pixels(config), losses.fused_chunk or losses.cache_chunk
    return [
        Encoding(apart, chunk=losses.cache_chunk, again=True, other_bytes=floats),
        Encoding(pair, share=masks, chunk=chunk, again=True, other_bytes=floats + word_bytes),
        *3 * [Encoding(pair, share=matches, chunk=chunk, again=True, other_bytes=floats)],
    ]


def _question(recipe: Recipe) -> Work:
    model = VLMoForVisualQuestionAnswering(config := _config(recipe))
    return _pair_classifier(recipe, model, config, pictures=1)


def _reasoning(recipe: Recipe) -> Work:
    model = VLMoForVisualReasoning(config := _config(recipe, num_modality_types=3))
    return _pair_classifier(recipe, model, config, pictures=2)


def _pair_classifier(recipe: Recipe, model: nn.Module, config: VLMoConfig, *, pictures: int) -> Work:
    encoding = Encoding((Pass(config.num_hidden_layers, _num_text(recipe), _num_image(config)),), share=pictures)
    dim = config.hidden_size
    heads = pictures * dim * dim + 2 * dim * (pictures * dim + cast("int", config.num_labels))
    flops = pictures * _patch_flops(config) + 6 * heads
    return _work(recipe, model, encoding, flops=flops, row_bytes=pictures * _FLOAT32 * _pixels(config))


def _classification(recipe: Recipe) -> Work:
    model = VLMoForImageClassification(config := _config(recipe))
    flops = _patch_flops(config) + 6 * config.hidden_size * cast("int", config.num_labels)
    encoding = Encoding((Pass(config.num_hidden_layers, num_image=_num_image(config)),))
    return _work(recipe, model, encoding, flops=flops, row_bytes=_FLOAT32 * _pixels(config))


def _segmentation(recipe: Recipe) -> Work:
    stage = cast(SegmentationStage, recipe.stage)
    layers = None if stage.layers is None else list(stage.layers)
    config = _config(recipe, segmentation_channels=stage.channels, segmentation_layers=layers)
    model = VLMoForSemanticSegmentation(config)
    flops, saved = _convolutions(model, config)
    saved = saved * (0.5 if recipe.trainer.precision == "bf16" else 1.0)
    logits = 2 * _LOGIT_COPIES * _FLOAT32 * cast("int", config.num_labels) * config.image_size**2
    return _work(
        recipe,
        model,
        Encoding((Pass(config.num_hidden_layers, num_image=_num_image(config)),)),
        flops=_patch_flops(config) + flops,
        row_bytes=_FLOAT32 * _pixels(config) + saved + logits,
    )


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


_STAGES: dict[type, Callable[[Recipe], Work]] = {
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
