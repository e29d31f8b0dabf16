"""Models of the three stages and of retrieval (names and conventions of Hugging Face)."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import MaskedImageModelingOutput, MaskedLMOutput
from transformers.utils import ModelOutput, can_return_tuple

from vlmo.folder import write_modules
from vlmo.model.backbone import VLMoModel, VLMoPreTrainedModel
from vlmo.model.config import VLMoConfig
from vlmo.model.heads import ContrastHead, MaskedImageHead, MaskedLanguageHead, MatchHead
from vlmo.model.sequence import VISION, masked_positions


@dataclass
class VLMoContrastOutput(ModelOutput):
    """Output of a dual encoder.

    Attributes:
        loss: The training loss; with `return_loss` or `labels`.
        image_embeds: L2-normalised, (images, projection).
        text_embeds: L2-normalised, (texts, projection).
        logits_per_image: Similarities over temperature, (images, texts).
        logits_per_text: The transpose.
        match_logits: (batch, 2), class 1 = match; of `VLMoForPreTraining`, or when asked for.
        mlm_logits: (batch, text, vocab) from the fused pair; of `VLMoForPreTraining`.
    """

    loss: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    match_logits: Tensor | None = None
    mlm_logits: Tensor | None = None


class _DualEncoder(VLMoPreTrainedModel):
    """Dual encoder for images and texts, with the matching head of the fusion encoder."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__(config)
        self.vlmo = VLMoModel(config)
        self.contrast_head = ContrastHead(config)
        self.match_head = MatchHead(config) if config.use_match_head else None

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        """Write a model folder, with the file by which sentence-transformers finds its class; as transformers does."""
        super().save_pretrained(save_directory, *args, **kwargs)
        write_modules(save_directory)

    def get_image_features(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised `image_embeds`."""
        (state,) = self.vlmo.contrast_states(self.vlmo.embed(pixel_values=pixel_values))
        return self.contrast_head.embed_image(state)

    def get_text_features(
        self, input_ids: Int[Tensor, "batch text"], attention_mask: Int[Tensor, "batch text"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised `text_embeds`."""
        (state,) = self.vlmo.contrast_states(self.vlmo.embed(input_ids=input_ids, attention_mask=attention_mask))
        return self.contrast_head.embed_text(state)

    def match(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        input_ids: Int[Tensor, "batch text"],
        attention_mask: Int[Tensor, "batch text"] | None = None,
    ) -> Float[Tensor, "batch 2"]:
        """Return matching logits of the fusion encoder, class 1 = match; ValueError without a matching head."""
        if self.match_head is None:
            return self.judge(None)  # raises before the work
        fused = self.vlmo(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
        return self.judge(fused.pooler_output)

    def judge(self, pooled: Float[Tensor, "batch dim"] | None) -> Float[Tensor, "batch 2"]:
        """Return matching logits from pooled pairs; ValueError if the model has no matching head."""
        if self.match_head is None or pooled is None:
            raise ValueError("This model has no matching head (use_match_head is False): it judges no pairs.")
        return self.match_head(pooled)

    def clamp_logit_scale_(self) -> None:
        """Clamp every temperature to 1/100 or above; called after each update."""
        for module in self.modules():
            if isinstance(module, ContrastHead):
                module.clamp_logit_scale_()

    def _contrast(
        self, pixel_values: Tensor | None, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> VLMoContrastOutput:
        if pixel_values is None and input_ids is None:
            raise ValueError("Got neither pixel_values nor input_ids; give images, texts, or both.")
        images = None if pixel_values is None else self.get_image_features(pixel_values)
        texts = None if input_ids is None else self.get_text_features(input_ids, attention_mask)
        if images is None or texts is None:
            return VLMoContrastOutput(image_embeds=images, text_embeds=texts)
        logits = self.contrast_head(images, texts)
        return VLMoContrastOutput(
            image_embeds=images, text_embeds=texts, logits_per_image=logits, logits_per_text=logits.T
        )


class VLMoForImageTextRetrieval(_DualEncoder):
    """Dual encoder with the fusion encoder's matching head for reranking. Images and texts may differ in number."""

    # What stage 3 leaves holds two heads more.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"mlm_head\.", r"fusion_contrast_head\."]

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 height width"] | None = None,
        input_ids: Int[Tensor, "texts text"] | None = None,
        attention_mask: Int[Tensor, "texts text"] | None = None,
        return_loss: bool | None = None,  # noqa: FBT001 (CLIP's)
        *,
        output_match_logits: bool = False,
    ) -> VLMoContrastOutput:
        """Embed what is given, compare all images with all texts; `match_logits` row by row, ValueError if no pairs.

        With `return_loss` also `loss`, CLIP's: of a batch where each image has the text of its number.
        """
        output = self._contrast(pixel_values, input_ids, attention_mask)
        if return_loss:
            output = VLMoContrastOutput(loss=_contrast_loss(output.logits_per_image), **output)  # the first of a tuple
        if output_match_logits:
            if pixel_values is None or input_ids is None:
                raise ValueError("output_match_logits needs pixel_values and input_ids, a text for each image.")
            output["match_logits"] = self.match(pixel_values, input_ids, attention_mask)
        return output


class VLMoForPreTraining(_DualEncoder):
    """Stage 3: backbone with the heads of ITC (both branches), ITM and MLM; ValueError without a matching head."""

    def __init__(self, config: VLMoConfig) -> None:
        if not config.use_match_head:
            raise ValueError("VLMoForPreTraining trains the matching head; its configuration has use_match_head False.")
        super().__init__(config)
        self.fusion_contrast_head = ContrastHead(config) if config.has_fusion_branch else None
        self.mlm_head = MaskedLanguageHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 height width"] | None = None,
        input_ids: Int[Tensor, "texts text"] | None = None,
        attention_mask: Int[Tensor, "texts text"] | None = None,
        return_loss: bool | None = None,  # noqa: FBT001 (CLIP's)
        *,
        input_ids_masked: Int[Tensor, "texts text"] | None = None,
        labels: Int[Tensor, "texts text"] | None = None,
    ) -> VLMoContrastOutput:
        """Run the dual encoder and, with as many images as texts, matching and masked-language logits of each pair.

        `vlmo.losses` computes the same losses over all processes, with fewer passes.

        Args:
            return_loss: Return the `loss` of a batch where each image has the text of its number: ITC of all branches,
                plus ITM with a hard negative text and image for each pair, sampled from the batch.
            input_ids_masked: The texts with masked words, for the masked-language logits; default: `input_ids`.
            labels: True ids at masked places, -100 elsewhere; MLM's loss, times 0.25, is added to `loss`. The words are
                seen, and not predicted, unless those places are masked in `input_ids_masked` or `input_ids`.

        Raises:
            ValueError: A loss is asked for without a text for each image.
        """
        output = self._contrast(pixel_values, input_ids, attention_mask)
        if pixel_values is None or input_ids is None or len(pixel_values) != len(input_ids):
            if return_loss or labels is not None:
                raise ValueError("return_loss and labels need pixel_values and input_ids, a text for each image.")
            return output
        losses, given = [], (pixel_values, input_ids, attention_mask)
        fused = self.vlmo(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
        output["match_logits"] = match_logits = self.judge(fused.pooler_output)
        if return_loss and (logits := output.logits_per_image) is not None:
            losses += [self._branches_loss(logits, *given), self._match_loss(logits, match_logits, *given)]
        if input_ids_masked is not None:
            fused = self.vlmo(pixel_values=pixel_values, input_ids=input_ids_masked, attention_mask=attention_mask)
        output["mlm_logits"] = mlm_logits = self.mlm_head(fused.text_hidden_state)
        if labels is not None:
            losses.append(0.25 * F.cross_entropy(mlm_logits.flatten(0, 1).float(), labels.flatten()))
        return VLMoContrastOutput(loss=torch.stack(losses).sum(), **output) if losses else output

    def _branches_loss(
        self, logits: Tensor, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None
    ) -> Tensor:
        """Return the mean of ITC's loss over its branches; `logits` are those of the first."""
        loss, head = _contrast_loss(logits), self.fusion_contrast_head
        if head is None:
            return loss
        image, text = (
            self.vlmo.contrast_states(sequence, fusion_branch=True)[1]
            for sequence in (
                self.vlmo.embed(pixel_values=pixel_values),
                self.vlmo.embed(input_ids=input_ids, attention_mask=attention_mask),
            )
        )
        return (loss + _contrast_loss(head(head.embed_image(image), head.embed_text(text)))) / 2

    def _match_loss(
        self,
        logits: Tensor,
        match_logits: Tensor,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """Return ITM's loss: each pair, and with another image and another text, as sampled by the softmax of ITC.

        Outside of training these are the likeliest, so that an evaluation repeats itself.
        """
        count = len(input_ids)
        if count == 1:  # the last of an epoch: there is no other pair
            return F.cross_entropy(match_logits.float(), input_ids.new_ones(1))
        own = torch.eye(count, dtype=torch.bool, device=input_ids.device)
        chances = [x.detach().float().masked_fill(own, -torch.inf).softmax(dim=1) for x in (logits, logits.T)]
        other_text, other_image = (x.multinomial(1)[:, 0] if self.training else x.argmax(dim=1) for x in chances)
        every = torch.arange(count, device=input_ids.device)
        texts = torch.cat([every, other_text])
        wrong = self.match(
            pixel_values[torch.cat([other_image, every])],
            input_ids[texts],
            None if attention_mask is None else attention_mask[texts],
        )
        labels = torch.tensor([1, 0, 0], device=every.device).repeat_interleave(count)
        return F.cross_entropy(torch.cat([match_logits, wrong]).float(), labels)


def _contrast_loss(logits: Float[Tensor, "images texts"] | None) -> Float[Tensor, ""]:
    """Return CLIP's symmetric cross-entropy; ValueError unless there is a text for each image."""
    if logits is None or logits.shape[0] != logits.shape[1]:
        raise ValueError("return_loss needs pixel_values and input_ids, a text for each image.")
    rows = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits.float(), rows) + F.cross_entropy(logits.T.float(), rows)) / 2


class VLMoForMaskedImageModeling(VLMoPreTrainedModel):
    """Stage 1: backbone with the head of MIM."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__(config)
        self.vlmo = VLMoModel(config, add_pooling_layer=False)
        self.mim_head = MaskedImageHead(config)
        self.post_init()

    def encode(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        *,
        bool_masked_pos: Bool[Tensor, "batch patch"] | None,
        only_masked: bool = False,
    ) -> Float[Tensor, "*patches dim"]:
        """Return final hidden states of the patches, with the mask token where `bool_masked_pos` is True.

        Args:
            only_masked: Return those of the masked patches, (masked, dim) row by row, and compute no others.
        """
        backbone = self.vlmo
        image = backbone.embed_image(pixel_values, bool_masked_pos=bool_masked_pos, mask_token=self.mim_head.mask_token)
        sequence = backbone.join(image=image, grid=backbone.image_embeddings.grid_of(pixel_values))
        if only_masked and bool_masked_pos is not None:
            positions, filled = masked_positions(bool_masked_pos)
            queries = sequence.queries(patches=1 + positions)
            states = backbone.run(sequence, fusion=False, queries=queries)[:, 1:][filled]
        else:
            states = backbone.run(sequence, fusion=False)[:, 1:]
        return backbone.finish(states, modality=VISION)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        bool_masked_pos: Bool[Tensor, "batch patch"] | None = None,
        labels: Int[Tensor, "batch patch"] | None = None,
    ) -> MaskedImageModelingOutput:
        """Return logits over visual tokens for each patch; with `labels` (visual tokens) the loss at masked patches."""
        logits = self.mim_head(self.encode(pixel_values, bool_masked_pos=bool_masked_pos))
        loss = None
        if labels is not None:
            chosen = slice(None) if bool_masked_pos is None else bool_masked_pos
            loss = F.cross_entropy(logits[chosen].flatten(0, -2).float(), labels[chosen].flatten())
        return MaskedImageModelingOutput(loss=loss, reconstruction=logits)


class VLMoForMaskedLM(VLMoPreTrainedModel):
    """Stage 2: backbone with the head of MLM, for texts or pairs."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__(config)
        self.vlmo = VLMoModel(config, add_pooling_layer=False)
        self.mlm_head = MaskedLanguageHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch text"],
        attention_mask: Int[Tensor, "batch text"] | None = None,
        pixel_values: Float[Tensor, "batch 3 height width"] | None = None,
        labels: Int[Tensor, "batch text"] | None = None,
    ) -> MaskedLMOutput:
        """Return logits over the vocabulary for every token; the loss where `labels` is not -100."""
        encoded = self.vlmo(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        logits = self.mlm_head(encoded.text_hidden_state)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)
