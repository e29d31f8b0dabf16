"""Models of the three stages, of retrieval and of captions (names and conventions of Hugging Face)."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import MaskedImageModelingOutput, MaskedLMOutput
from transformers.utils import ModelOutput, can_return_tuple

from vlmo.folder import write_modules
from vlmo.losses.itc import itc_loss
from vlmo.losses.masked import masked_loss
from vlmo.model.backbone import VLMoModel, VLMoPreTrainedModel
from vlmo.model.beam import BeamSearch
from vlmo.model.config import VLMoConfig
from vlmo.model.heads import (
    MAX_LOGIT_SCALE,
    ContrastHead,
    MaskedImageHead,
    MaskedLanguageHead,
    MatchHead,
    Pooler,
)


@dataclass
class VLMoContrastOutput(ModelOutput):
    """Output of a dual encoder.

    Attributes:
        loss: Contrastive loss; with `return_loss`.
        image_embeds: L2-normalized, (images, projection).
        text_embeds: L2-normalized, (texts, projection).
        logits_per_image: Similarities over temperature, (images, texts).
        logits_per_text: The transpose.
        match_logits: (batch, 2), class 1 = match; of `VLMoForPreTraining`.
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

    @property
    def contrast_heads(self) -> list[ContrastHead]:
        """The head of each ITC branch: unimodal, and VL-FFN where the model has one."""
        fusion_head = getattr(self, "fusion_contrast_head", None)
        return [self.contrast_head] if fusion_head is None else [self.contrast_head, fusion_head]

    def get_image_features(
        self, pixel_values: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Return L2-normalized vectors of images."""
        return self.contrast_head.embed_image(self.vlmo.encode(pixel_values).first)

    def get_text_features(
        self,
        input_ids: Int[Tensor, "batch text"],
        attention_mask: Int[Tensor, "batch text"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Return L2-normalized vectors of texts."""
        return self.contrast_head.embed_text(
            self.vlmo.encode(None, input_ids, attention_mask).first
        )

    def image_vectors(
        self, pixel_values: Float[Tensor, "batch 3 height width"]
    ) -> list[Float[Tensor, "batch dim"]]:
        """Return L2-normalized vectors of images in each ITC branch."""
        if len(self.contrast_heads) == 1:
            return [self.get_image_features(pixel_values)]
        # One pass through the shared lower blocks for both.
        unimodal, fused = self.vlmo.encode_branches(pixel_values)
        heads = self.contrast_heads
        return [heads[0].embed_image(unimodal), heads[1].embed_image(fused)]

    def text_vectors(
        self,
        input_ids: Int[Tensor, "batch text"],
        attention_mask: Int[Tensor, "batch text"] | None = None,
    ) -> list[Float[Tensor, "batch dim"]]:
        """Return L2-normalized vectors of texts in each ITC branch."""
        if len(self.contrast_heads) == 1:
            return [self.get_text_features(input_ids, attention_mask)]
        unimodal, fused = self.vlmo.encode_branches(None, input_ids, attention_mask)
        heads = self.contrast_heads
        return [heads[0].embed_text(unimodal), heads[1].embed_text(fused)]

    def match(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        input_ids: Int[Tensor, "batch text"],
        attention_mask: Int[Tensor, "batch text"] | None = None,
    ) -> Float[Tensor, "batch 2"]:
        """Return matching logits of the fusion encoder, class 1 = match; ValueError without a matching head."""
        if self.match_head is None:
            raise ValueError(
                "This model has no matching head (use_match_head is False): it scores no pairs."
            )
        return self.match_logits(self.vlmo.encode(pixel_values, input_ids, attention_mask).first)

    def match_logits(self, first: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch 2"]:
        """Return matching logits from the first tokens of fused pairs, of a model that has the head."""
        pooler = cast("Pooler", self.vlmo.pooler)
        head = cast("MatchHead", self.match_head)
        # The pooler reads the first token of a sequence: (batch, 1, dim).
        return head(pooler(first[:, None]))

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Clamp every temperature to 1/100 or above; called after each update."""
        for head in self.contrast_heads:
            head.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

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
            image_embeds=images,
            text_embeds=texts,
            logits_per_image=logits,
            logits_per_text=logits.T,
        )


class VLMoForImageTextRetrieval(_DualEncoder):
    """Dual encoder with the fusion encoder's matching head for reranking. Images and texts may differ in number."""

    # What stage 3 leaves holds two heads more.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"mlm_head\.",
        r"fusion_contrast_head\.",
    ]

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
    ) -> VLMoContrastOutput:
        """Embed what is given, and compare all images with all texts.

        With `return_loss` also `loss`, ITC's over all processes, of batches where row i of both belong together;
        ValueError if their numbers differ.
        """
        output = self._contrast(pixel_values, input_ids, attention_mask)
        if not return_loss:
            return output
        if pixel_values is None or input_ids is None or len(pixel_values) != len(input_ids):
            raise ValueError(
                "The loss of pairs needs pixel_values and input_ids, a text for each image."
            )
        scale = self.contrast_head.logit_scale
        loss = itc_loss(output["image_embeds"], output["text_embeds"], logit_scale=scale)
        # The loss is the first of a tuple, as in transformers.
        return VLMoContrastOutput(loss=loss, **output)


class VLMoForPreTraining(_DualEncoder):
    """Stage 3: backbone with the heads of ITC (both branches), ITM and MLM; ValueError without a matching head."""

    def __init__(self, config: VLMoConfig) -> None:
        if not config.use_match_head:
            raise ValueError(
                "VLMoForPreTraining trains the matching head; its configuration has use_match_head False."
            )
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
    ) -> VLMoContrastOutput:
        """Run the dual encoder and, with as many images as texts, matching and masked-language logits of each pair.

        The losses of stage 3 are those of `vlmo.tasks.vision_language.VisionLanguageObjective`.
        """
        output = self._contrast(pixel_values, input_ids, attention_mask)
        if (
            pixel_values is not None
            and input_ids is not None
            and len(pixel_values) == len(input_ids)
        ):
            fused = self.vlmo(
                pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask
            )
            output["match_logits"] = self.match_logits(fused.last_hidden_state[:, 0])
            output["mlm_logits"] = self.mlm_head(fused.text_hidden_state)
        return output


class VLMoForMaskedImageModeling(VLMoPreTrainedModel):
    """Stage 1: backbone with the head of MIM."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__(config)
        self.vlmo = VLMoModel(config, add_pooling_layer=False)
        self.mim_head = MaskedImageHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        bool_masked_pos: Bool[Tensor, "batch patch"] | None = None,
        labels: Int[Tensor, "batch patch"] | None = None,
    ) -> MaskedImageModelingOutput:
        """Return logits over visual tokens for each patch; with `labels` (visual tokens) the loss at masked patches."""
        encoded = self.vlmo(
            pixel_values, bool_masked_pos=bool_masked_pos, mask_token=self.mim_head.mask_token
        )
        # Behind the class token: (batch, patch, visual_vocab).
        logits = self.mim_head(encoded.last_hidden_state[:, 1:])
        loss = None
        if labels is not None and bool_masked_pos is None:
            loss = masked_loss(logits.flatten(0, 1), labels.flatten())
        elif labels is not None:
            loss = masked_loss(logits[bool_masked_pos], labels[bool_masked_pos])
        return MaskedImageModelingOutput(loss=loss, reconstruction=logits)


class _MaskedWords(VLMoPreTrainedModel):
    """Backbone with the head of masked words, for texts or pairs; with `causal` as in `VLMoModel.encode`."""

    causal: ClassVar[bool] = False

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
        encoded = self.vlmo(pixel_values, input_ids, attention_mask, causal=self.causal)
        logits = self.mlm_head(encoded.text_hidden_state)
        loss = None
        if labels is not None:
            # -100 marks positions without a label, as everywhere in the field.
            is_labeled = labels != -100
            loss = masked_loss(logits[is_labeled], labels[is_labeled])
        return MaskedLMOutput(loss=loss, logits=logits)


class VLMoForMaskedLM(_MaskedWords):
    """Stage 2: backbone with the head of MLM, for texts or pairs."""


class VLMoForMaskedDataModeling(_MaskedWords):
    """BEiT-3's pre-training: backbone with the head of MLM, whose logits `forward` returns, and that of MIM."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__(config)
        self.mim_head = MaskedImageHead(config)
        self.post_init()


class VLMoForImageCaptioning(_MaskedWords):
    """Captions of images: a word sees the image and the words before it (BEiT-3, "Image Captioning")."""

    causal: ClassVar[bool] = True

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int = 30,
        num_beams: int = 3,
        length_penalty: float = 0.6,
    ) -> Int[Tensor, "batch tokens"]:
        """Return a caption of each image as ids of the `tokenizer`, padded; arguments are named as in transformers.

        Defaults are BEiT-3's. No images give an empty result. ValueError for too small numbers.

        Args:
            max_new_tokens: Longest caption, with `[SEP]`; no longer than there are text positions.
            num_beams: Captions of an image that are held at a time; 1 takes the likeliest word each time (greedy).
            length_penalty: Captions compare by log-probability over length, with `[CLS]` and `[SEP]`, to this power.
        """
        if min(max_new_tokens, num_beams) < 1 or length_penalty < 0:
            raise ValueError(
                "max_new_tokens, num_beams, length_penalty are "
                f"{(max_new_tokens, num_beams, length_penalty)}; give from 1, from 1, from 0 up"
            )
        num_images = len(pixel_values)
        if num_images == 0:
            return torch.empty(0, 0, dtype=torch.long, device=pixel_values.device)
        grid = self.vlmo.image_embeddings.grid_of(pixel_values)
        cache = self._image_cache(pixel_values, num_beams=num_beams)
        search = BeamSearch(
            num_images,
            num_beams=num_beams,
            max_length=min(1 + max_new_tokens, self.config.max_text_positions),
            length_penalty=length_penalty,
            tokenizer=tokenizer,
            device=pixel_values.device,
        )
        for _ in range(search.max_length - 1):
            # A mask after the last word takes the place of the next one, as in training.
            last = F.pad(search.tokens[:, :, -1:], (0, 1), value=tokenizer.mask_token_id)
            states = self.vlmo.decode(last.flatten(0, 1), cache, grid=grid)
            log_probs = self.mlm_head(states[:, -1]).float().log_softmax(dim=-1)
            # Of the mask's states: (images * beams, vocab) -> (images, beams, vocab).
            rows = search.extend(log_probs.unflatten(0, (num_images, num_beams)))
            for layer in cache:
                # The mask's keys and values.
                layer.crop(-1)
                layer.reorder_cache(cast("torch.LongTensor", rows))
            if search.is_done.all():
                break
        return search.captions()

    def _image_cache(
        self, pixel_values: Float[Tensor, "batch 3 height width"], *, num_beams: int
    ) -> list[DynamicLayer]:
        """Return keys and values of images for each block: (images * beams, heads, seq, dim)."""
        cache = [DynamicLayer() for _ in self.vlmo.blocks]
        self.vlmo.prefill(pixel_values, cache)
        for layer in cache:
            # Beams of an image stand together.
            layer.batch_repeat_interleave(num_beams)
        return cache
