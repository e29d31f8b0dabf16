"""One backbone with three ways in: an image, a text, or both. Nothing else encodes anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Self, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from vlmo.model.config import VLMoConfig
from vlmo.model.embeddings import ImageEmbeddings, TextEmbeddings
from vlmo.model.heads import ContrastHead, MaskedImageHead
from vlmo.model.multiway import LANGUAGE, SHARED, VISION, Kept, MultiwayBlock, QueryKeyValue, Route
from vlmo.model.position import RelativePositionBias
from vlmo.released import find_model, naming_released

TEXT_TYPE, IMAGE_TYPE, SECOND_IMAGE_TYPE = 0, 1, 2


@dataclass
class VLMoModelOutput(ModelOutput):
    """What the backbone returns.

    Attributes:
        last_hidden_state: After the final norm; text tokens first, then `[I_CLS]` and the patches row by row (the
            other way round with token_order `"image_first"`).
        pooler_output: Dense layer and tanh on the first token (None without a pooler).
        text_hidden_state: The text part of `last_hidden_state`.
        image_hidden_state: The image part of `last_hidden_state`.
        hidden_states: The embeddings and the output of each block, before the final norm.
        attentions: Attention weights of each block (eager implementation only).
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    text_hidden_state: Tensor | None = None
    image_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Sequence:
    """Embedded tokens on their way through the blocks; built once, then run as often as an objective needs.

    Attributes:
        hidden: Text tokens, then image tokens; the other way round if `image_first`.
        position_bias: Of each layer, or None with absolute positions.
        attention_mask: Over all tokens, True keeps; None keeps all.
    """

    hidden: Float[Tensor, "batch seq dim"]
    num_text: int
    position_bias: list[Float[Tensor, "heads seq seq"]] | None
    attention_mask: Bool[Tensor, "batch seq"] | None
    image_first: bool = False

    def at(self, hidden: Float[Tensor, "batch seq dim"]) -> Sequence:
        """The same tokens further on."""
        return replace(self, hidden=hidden)

    def route(self, *, fusion: bool) -> Route:
        """Where each token goes; with `fusion`, through the `vision_language` experts of blocks that own one."""
        num_image = self.hidden.shape[1] - self.num_text
        return Route(num_text=self.num_text, num_image=num_image, fusion=fusion, image_first=self.image_first)

    def text_part(self, states: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch text dim"]:
        """The text tokens of states that this sequence has become."""
        num_image = states.shape[1] - self.num_text
        return states[:, num_image:] if self.image_first else states[:, : self.num_text]

    def image_part(self, states: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch image dim"]:
        """The image tokens, `[I_CLS]` first."""
        num_image = states.shape[1] - self.num_text
        return states[:, :num_image] if self.image_first else states[:, self.num_text :]

    def keep(
        self, *, words: Int[Tensor, "batch words"] | None = None, patches: Int[Tensor, "batch patches"] | None = None
    ) -> Kept:
        """The first token, then `words` (places in the text) or `patches` (places in the image, class token 0)."""
        batch, seq, _ = self.hidden.shape
        num_image = seq - self.num_text
        first = torch.zeros(batch, 1, dtype=torch.long, device=self.hidden.device)
        leading_text = int(self.num_text > 0 and not (self.image_first and num_image))
        if words is not None:
            words = words + num_image if self.image_first else words
            return Kept(torch.cat([first, words], dim=1), num_text=leading_text + words.shape[1])
        if patches is not None:
            patches = patches if self.image_first else patches + self.num_text
            return Kept(torch.cat([first, patches], dim=1), num_text=leading_text)
        return Kept(first, num_text=leading_text)


class VLMoPreTrainedModel(PreTrainedModel):
    """Loading, saving and initial weights of every VLMo model."""

    config: VLMoConfig
    config_class = VLMoConfig
    base_model_prefix = "vlmo"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["MultiwayBlock", "ImageEmbeddings", "TextEmbeddings"]
    _supports_sdpa = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike | None, *args: Any, **kwargs: Any) -> Self:
        """The model of a folder, of the hub, or one that comes with the package, such as "vlmo-small".

        Arguments are those of transformers.

        Raises:
            OSError: There is no such model.
        """
        name = pretrained_model_name_or_path
        with naming_released(name):
            return super().from_pretrained(None if name is None else find_model(name), *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # transformers marks loaded tensors and skips them; a row of a loaded table must be left alone too.
            if not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                init.zeros_(cast("Tensor", module.running_mean))
                init.ones_(cast("Tensor", module.running_var))
                init.zeros_(cast("Tensor", module.num_batches_tracked))
        else:
            self._init_own_weights(module)

    def _init_own_weights(self, module: nn.Module) -> None:
        """Parameters of no torch layer. All must be here: what a loaded folder lacks starts as raw memory otherwise."""
        config = self.config
        if isinstance(module, QueryKeyValue):
            for bias in (module.query_bias, module.key_bias, module.value_bias):
                if bias is not None:
                    init.zeros_(bias)
        elif isinstance(module, RelativePositionBias):
            init.zeros_(module.table)
        elif isinstance(module, ImageEmbeddings | TextEmbeddings):
            if isinstance(module, ImageEmbeddings):
                init.trunc_normal_(module.cls_token, std=config.initializer_range)
            if module.positions is not None:
                init.trunc_normal_(module.positions, std=config.initializer_range)
        elif isinstance(module, MultiwayBlock) and config.layer_scale_init is not None:
            for gamma in (module.gamma_1, module.gamma_2):
                init.constant_(cast("Tensor", gamma), config.layer_scale_init)
        elif isinstance(module, ContrastHead):
            init.constant_(module.logit_scale, config.logit_scale_init)
        elif isinstance(module, MaskedImageHead):
            init.zeros_(module.mask_token)

    @property
    def backbone(self) -> VLMoModel:
        """The shared Transformer inside any VLMo model."""
        return cast("VLMoModel", self.base_model)

    def no_weight_decay(self) -> set[str]:
        """Full names of parameters that weight decay leaves alone although they have two dimensions or more."""
        undecayed: list[nn.Parameter | None] = [self.backbone.image_embeddings.cls_token]
        for module in self.modules():
            if isinstance(module, RelativePositionBias):
                undecayed.append(module.table)
            elif isinstance(module, ImageEmbeddings | TextEmbeddings):
                undecayed.append(module.positions)
        identities = {id(parameter) for parameter in undecayed}
        return {name for name, parameter in self.named_parameters() if id(parameter) in identities}


class Pooler(nn.Module):
    """Dense layer and tanh on the first token."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch dim"]:
        """One vector for each sequence, from states after the final norm."""
        return torch.tanh(self.dense(hidden[:, 0]))


class VLMoModel(VLMoPreTrainedModel):
    """The backbone: embeddings, Multiway blocks, final norm and pooler (VLMo, "Multiway Transformer")."""

    def __init__(self, config: VLMoConfig, add_pooling_layer: bool = True) -> None:  # noqa: FBT001, FBT002 (HF's name)
        super().__init__(config)
        self.image_embeddings = ImageEmbeddings(config)
        self.text_embeddings = TextEmbeddings(config)
        self.modality_types = (
            nn.Embedding(config.num_modality_types, config.hidden_size) if config.num_modality_types else None
        )
        self.position_bias = RelativePositionBias(config) if config.position_embedding == "relative" else None
        depth = config.num_hidden_layers
        drop_paths = torch.linspace(0, config.drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            MultiwayBlock(
                config, has_fusion_expert=layer >= depth - config.num_fusion_layers, drop_path=drop_paths[layer]
            )
            for layer in range(depth)
        )
        norms = {name: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for name in (VISION, LANGUAGE)}
        self.norm = nn.ModuleDict(norms) if config.final_norm == "separate" else norms[VISION]
        self.pooler = Pooler(config) if add_pooling_layer and config.use_pooler else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        return self.text_embeddings.words

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the word table."""
        self.text_embeddings.words = value

    def embed_image(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        *,
        bool_masked_pos: Bool[Tensor, "batch patch"] | None = None,
        mask_token: Float[Tensor, "dim"] | None = None,
        modality_type: int = IMAGE_TYPE,
    ) -> Float[Tensor, "batch 1+patch dim"]:
        """Class token and patches with their type embedding."""
        hidden = self.image_embeddings(pixel_values, bool_masked_pos=bool_masked_pos, mask_token=mask_token)
        return self._add_type(hidden, modality_type)

    def embed_text(self, input_ids: Int[Tensor, "batch text"]) -> Float[Tensor, "batch text dim"]:
        """Word pieces with their type embedding."""
        return self._add_type(self.text_embeddings(input_ids), TEXT_TYPE)

    def _add_type(self, hidden: Float[Tensor, "batch seq dim"], kind: int) -> Float[Tensor, "batch seq dim"]:
        if self.modality_types is None:
            return hidden
        # Called, not indexed, as in `TextEmbeddings`.
        return hidden + self.modality_types(torch.full((), kind, device=hidden.device))

    def join(
        self,
        *,
        text: Float[Tensor, "batch text dim"] | None = None,
        attention_mask: Int[Tensor, "batch text"] | None = None,
        image: Float[Tensor, "batch 1+patch dim"] | None = None,
        grid: tuple[int, int] | None = None,
        position_bias: list[Float[Tensor, "#batch heads seq seq"]] | None = None,
    ) -> Sequence:
        """Puts embedded parts into one sequence. `position_bias` may be handed in to be shared by passes.

        Raises:
            ValueError: `attention_mask` is not of the text's shape.
        """
        image_first = self.config.token_order == "image_first"
        parts = [part for part in ((image, text) if image_first else (text, image)) if part is not None]
        num_text = 0 if text is None else text.shape[1]
        mask = None
        if text is not None and attention_mask is not None:
            if attention_mask.shape != text.shape[:2]:
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}; expected {tuple(text.shape[:2])}, one "
                    "entry for each token."
                )
            num_image = 0 if image is None else image.shape[1]
            mask = nn.functional.pad(
                attention_mask.bool(), (num_image, 0) if image_first else (0, num_image), value=True
            )
        if position_bias is None:
            position_bias = self.make_position_bias(num_text=num_text, grid=grid)
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return Sequence(
            hidden=hidden,
            num_text=num_text,
            position_bias=position_bias,
            attention_mask=mask,
            image_first=image_first,
        )

    def make_position_bias(
        self, *, num_text: int, grid: tuple[int, int] | None
    ) -> list[Float[Tensor, "#batch heads seq seq"]] | None:
        """Relative position bias of each layer; None with absolute positions."""
        return None if self.position_bias is None else self.position_bias(num_text=num_text, grid=grid)

    def run(
        self,
        sequence: Sequence,
        *,
        layers: range | None = None,
        fusion: bool,
        kept: Kept | None = None,
        record: _Record | None = None,
    ) -> Float[Tensor, "batch kept dim"]:
        """Hidden states after `layers` (all by default), before the final norm.

        Args:
            fusion: Whether blocks that own a `vision_language` expert use it; without it, each token keeps its own.
            kept: The tokens whose states are returned (all by default); the last block computes no others.
        """
        hidden = sequence.hidden
        route = sequence.route(fusion=fusion)
        layers = range(len(self.blocks)) if layers is None else layers
        for layer in layers:
            bias = None if sequence.position_bias is None else sequence.position_bias[layer]
            hidden, weights = self.blocks[layer](
                hidden,
                bias,
                route=route,
                attention_mask=sequence.attention_mask,
                kept=kept if layer == layers[-1] else None,
            )
            if record is not None:
                record.add(hidden, weights)
        return hidden if layers or kept is None else kept.of(hidden)

    def run_to_first(
        self, sequence: Sequence, *, layers: range | None = None, fusion: bool
    ) -> Float[Tensor, "batch dim"]:
        """State of the first token alone, as `run` returns it."""
        return self.run(sequence, layers=layers, fusion=fusion, kept=sequence.keep())[:, 0]

    def finish(self, states: Float[Tensor, "*tokens dim"], *, modality: str) -> Float[Tensor, "*tokens dim"]:
        """The final norm on tokens of one modality, `"vision"` or `"language"`."""
        return self.norm[modality](states) if isinstance(self.norm, nn.ModuleDict) else self.norm(states)

    def pool_pair(self, first: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """The vector of a pair from the state of its first token, before the final norm.

        Raises:
            ValueError: The model has no pooler.
        """
        if self.pooler is None:
            raise ValueError("This model has no pooler (use_pooler is False), so it has no vector for a whole pair.")
        leading = VISION if self.config.token_order == "image_first" else LANGUAGE
        return self.pooler(self.finish(first, modality=leading)[:, None])

    def contrast_endings(self, sequence: Sequence) -> list[Float[Tensor, "batch dim"]]:
        """First token of one modality after each of ITC's endings (final norm applied).

        The first ending stays on the modality's own experts; the second, unless it is switched off, reruns the top
        `num_fusion_layers` blocks with the `vision_language` expert, from the state below them (a detail of the
        published code).
        """
        modality = LANGUAGE if sequence.num_text else VISION
        if not self.config.has_fusion_ending:
            return [self.finish(self.run_to_first(sequence, fusion=False), modality=modality)]
        depth = len(self.blocks)
        below, top = range(depth - self.config.num_fusion_layers), range(depth - self.config.num_fusion_layers, depth)
        state = sequence.at(self.run(sequence, layers=below, fusion=False))
        return [
            self.finish(self.run_to_first(state, layers=top, fusion=fusion), modality=modality)
            for fusion in (False, True)
        ]

    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"] | None = None,
        input_ids: Int[Tensor, "batch text"] | None = None,
        attention_mask: Int[Tensor, "batch text"] | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> VLMoModelOutput | tuple[Tensor, ...]:
        """Encodes an image, a text, or the pair of both.

        Raises:
            ValueError: Neither was given, the batch sizes differ, or attention weights were asked of the sdpa
                implementation.
        """
        if pixel_values is None and input_ids is None:
            raise ValueError("VLMoModel got neither pixel_values nor input_ids; give an image, a text, or both.")
        if pixel_values is not None and input_ids is not None and len(pixel_values) != len(input_ids):
            raise ValueError(f"{len(pixel_values)} images and {len(input_ids)} texts; a pair needs one of each.")
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError("Attention weights need attn_implementation='eager' (model.set_attn_implementation).")
        sequence = self.join(
            text=None if input_ids is None else self.embed_text(input_ids),
            attention_mask=attention_mask,
            image=None if pixel_values is None else self.embed_image(pixel_values),
            grid=None if pixel_values is None else self.image_embeddings.grid_of(pixel_values),
        )
        record = _Record(sequence.hidden) if output_hidden_states or output_attentions else None
        fusion = pixel_values is not None and input_ids is not None
        hidden = self.run(sequence, fusion=fusion, record=record)
        norm = self.norm
        hidden = sequence.route(fusion=False)(norm, hidden) if isinstance(norm, nn.ModuleDict) else norm(hidden)
        output = VLMoModelOutput(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None else self.pooler(hidden),
            text_hidden_state=None if input_ids is None else sequence.text_part(hidden),
            image_hidden_state=None if pixel_values is None else sequence.image_part(hidden),
            hidden_states=tuple(record.hidden) if record and output_hidden_states else None,
            attentions=tuple(record.attentions) if record and output_attentions else None,
        )
        return output if return_dict is not False else output.to_tuple()


class _Record:
    """Intermediate states of one run."""

    def __init__(self, embeddings: Tensor) -> None:
        self.hidden = [embeddings]
        self.attentions: list[Tensor] = []

    def add(self, hidden: Tensor, weights: Tensor | None) -> None:
        self.hidden.append(hidden)
        if weights is not None:
            self.attentions.append(weights)


def language_stage_parameters(model: VLMoPreTrainedModel) -> Iterable[nn.Parameter]:
    """What stage 2 trains: text side, language experts, type and position tables, final norm; all else is frozen.

    (VLMo, "Stagewise Pre-Training"; which small tables move is a detail of the published code.) Heads are the caller's.
    """
    backbone = model.backbone
    modules: list[nn.Module | None] = [
        backbone.text_embeddings,
        backbone.modality_types,
        backbone.norm[LANGUAGE] if isinstance(backbone.norm, nn.ModuleDict) else backbone.norm,
        backbone.position_bias,
    ]
    for block in backbone.modules():
        if isinstance(block, MultiwayBlock):
            modules.append(block.experts[SHARED if SHARED in block.experts else LANGUAGE])
            # Separate attention has a language half, which stage 1 has not trained.
            attention = block.attention
            parts = (block.norm1, attention.qkv, attention.inner_norm, attention.projection)
            modules += [part[LANGUAGE] for part in parts if part is not None and LANGUAGE in part]
    return [parameter for module in modules if module is not None for parameter in module.parameters()]
