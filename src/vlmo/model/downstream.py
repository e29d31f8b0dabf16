"""Models of downstream tasks (VLMo, "Fine-Tuning VLMo on Downstream Tasks")."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import (
    ImageClassifierOutput,
    SemanticSegmenterOutput,
    SequenceClassifierOutput,
)
from transformers.utils import can_return_tuple

from vlmo.model.backbone import SECOND_IMAGE_TYPE, VLMoModel, VLMoPreTrainedModel
from vlmo.model.config import VLMoConfig
from vlmo.model.heads import FeaturePyramid, TaskHead
from vlmo.types import IGNORED_CLASS

# Of mmsegmentation's UPerNet with BEiT: the auxiliary head reads the third level and weighs 0.4.
_AUXILIARY_LEVEL = 2
_AUXILIARY_CHANNELS = 256


class VLMoForVisualQuestionAnswering(VLMoPreTrainedModel):
    """Fusion encoder and a classifier over a fixed set of answers, `config.id2label`; ValueError without a pooler."""

    def __init__(self, config: VLMoConfig) -> None:
        if not config.use_pooler:
            raise ValueError(
                "VLMoForVisualQuestionAnswering needs a pooler; its configuration has use_pooler False."
            )
        super().__init__(config)
        self.vlmo = VLMoModel(config)
        width = config.hidden_size
        # The published head: twice the width, as ViLT's.
        self.answer_head = TaskHead(
            width, width=2 * width, num_labels=cast("int", config.num_labels)
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        input_ids: Int[Tensor, "batch text"],
        attention_mask: Int[Tensor, "batch text"] | None = None,
        labels: Float[Tensor, "batch answers"] | Int[Tensor, "batch"] | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits of each answer; a sigmoid makes them scores.

        Args:
            labels: Score of each answer, 0 to 1 (VQAv2: from ten annotators), or the number of the one right answer,
                which then scores 1. The loss is binary cross-entropy, summed over answers, mean over the batch.
        """
        fused = self.vlmo(
            pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask
        )
        logits = self.answer_head(fused.pooler_output)
        loss = None
        if labels is not None:
            # One right answer scores 1, as ten annotators who agree do.
            scores = F.one_hot(labels, logits.shape[1]) if labels.ndim == 1 else labels
            # Summed over answers: the published code multiplies its mean by their number, 3,129.
            loss = F.binary_cross_entropy_with_logits(
                logits.float(), scores.float(), reduction="sum"
            ) / len(logits)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class VLMoForVisualReasoning(VLMoPreTrainedModel):
    """NLVR2: is a sentence about two images true? Each is fused with it apart.

    The head reads both pooled pairs; without a pooler, as in BEiT-3 (arXiv 2208.10442), the first image and text state
    of both pairs.

    Raises:
        ValueError: There is a table of modality types without one for the second image, or a pooler without a table.
    """

    def __init__(self, config: VLMoConfig) -> None:
        types = config.num_modality_types
        if types <= SECOND_IMAGE_TYPE and (types or config.use_pooler):
            raise ValueError(f"num_modality_types is {types}; VLMoForVisualReasoning needs 3.")
        super().__init__(config)
        self.vlmo = VLMoModel(config)
        width = 2 * config.hidden_size
        num_labels = cast("int", config.num_labels)
        if config.use_pooler:
            self.reasoning_head = TaskHead(width, width=width, num_labels=num_labels)
        else:
            self.reasoning_head = TaskHead(
                2 * width, width=width, num_labels=num_labels, norm_inputs=True
            )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Float[Tensor, "batch 2 3 height width"],
        input_ids: Int[Tensor, "batch text"],
        attention_mask: Int[Tensor, "batch text"] | None = None,
        labels: Int[Tensor, "batch"] | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits of false (0) and true (1); with `labels` the cross-entropy. ValueError without two images."""
        if pixel_values.ndim != 5 or pixel_values.shape[1] != 2:
            shape = tuple(pixel_values.shape)
            raise ValueError(
                f"pixel_values have shape {shape}; expected (batch, 2, 3, height, width)."
            )
        vectors = []
        text = (input_ids, attention_mask)
        for image, kind in zip(
            pixel_values.unbind(1), (SECOND_IMAGE_TYPE - 1, SECOND_IMAGE_TYPE), strict=True
        ):
            if self.vlmo.pooler is not None:
                # A modality type tells the second image from the first.
                first = self.vlmo.encode(image, *text, image_type=kind).first
                vectors.append(self.vlmo.pooler(first[:, None]))
            else:
                fused = self.vlmo(image, *text, image_type=kind)
                vectors += [fused.image_hidden_state[:, 0], fused.text_hidden_state[:, 0]]
        # (batch, 2 * dim), or (batch, 4 * dim) without a pooler
        logits = self.reasoning_head(torch.cat(vectors, dim=-1))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class VLMoForImageClassification(VLMoPreTrainedModel):
    """Image encoder and a linear classifier on the mean of the patches (BEiT's recipe).

    The mean is taken of states before the final norm and has a norm of its own; the backbone's final norm is kept for
    other tasks, unused.
    """

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__(config)
        self.vlmo = VLMoModel(config, add_pooling_layer=False)
        self.classifier_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, cast("int", config.num_labels))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        labels: Int[Tensor, "batch"] | Float[Tensor, "batch classes"] | None = None,
    ) -> ImageClassifierOutput:
        """Return logits of each class; with `labels` (class numbers, or shares as from mixup) the cross-entropy."""
        # Without the class token (BEiT's `use_mean_pooling`).
        patches = self.vlmo(pixel_values, output_hidden_states=True).hidden_states[-1][:, 1:]
        logits = self.classifier(self.classifier_norm(patches.mean(dim=1)))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class VLMoForSemanticSegmentation(VLMoPreTrainedModel):
    """Image encoder and UPerNet on four levels of its states, `config.feature_layers`, as BEiT does.

    The backbone's final norm is kept for other tasks, unused.

    Raises:
        ValueError: The number of classes is not 2 to 255.
    """

    auxiliary_weight = 0.4

    def __init__(self, config: VLMoConfig) -> None:
        from transformers.models.upernet.modeling_upernet import (
            UperNetConfig,
            UperNetFCNHead,
            UperNetHead,
        )

        # Labels are levels of 8-bit images, of which 255 marks pixels that do not count.
        if not 2 <= cast("int", config.num_labels) <= IGNORED_CLASS:
            raise ValueError(
                f"num_labels is {config.num_labels}; segmentation needs 2 to {IGNORED_CLASS} classes."
            )
        super().__init__(config)
        self.vlmo = VLMoModel(config, add_pooling_layer=False)
        self.pyramid = FeaturePyramid(config)
        settings = UperNetConfig(
            hidden_size=config.segmentation_channels,
            auxiliary_channels=_AUXILIARY_CHANNELS,
            auxiliary_in_channels=config.hidden_size,
        )
        settings.num_labels = cast("int", config.num_labels)
        levels = [config.hidden_size] * len(config.feature_layers)
        self.decode_head = UperNetHead(settings, in_channels=levels)
        self.auxiliary_head = UperNetFCNHead(
            settings, in_channels=levels, in_index=_AUXILIARY_LEVEL
        )
        self.post_init()

    def levels(
        self, pixel_values: Float[Tensor, "batch 3 height width"]
    ) -> list[Float[Tensor, "batch dim h w"]]:
        """Return states of the patches after each of `config.feature_layers` blocks, on their grid."""
        grid = self.vlmo.image_embeddings.grid_of(pixel_values)
        states = self.vlmo(pixel_values, output_hidden_states=True).hidden_states
        return [
            # (batch, 1 + patch, dim) -> (batch, dim, rows, columns)
            states[layer][:, 1:].transpose(1, 2).unflatten(2, grid)
            for layer in self.config.feature_layers
        ]

    @can_return_tuple
    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        labels: Int[Tensor, "batch height width"] | None = None,
    ) -> SemanticSegmenterOutput:
        """Return logits at the image's size; with `labels`, the loss (255 ignored)."""
        levels = self.pyramid(self.levels(pixel_values))
        to_image: dict[str, Any] = {
            "size": pixel_values.shape[-2:],
            "mode": "bilinear",
            "align_corners": False,
        }
        # Levels begin at a fourth of the size: logits are brought to that of the labels.
        logits = F.interpolate(self.decode_head(levels), **to_image)
        loss = None
        if labels is not None:
            auxiliary = F.interpolate(self.auxiliary_head(levels), **to_image)
            loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_CLASS)
            loss = loss + self.auxiliary_weight * F.cross_entropy(
                auxiliary.float(), labels, ignore_index=IGNORED_CLASS
            )
        return SemanticSegmenterOutput(loss=loss, logits=logits)
