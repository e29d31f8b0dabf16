"""The backbone, which encodes an image, a text, or the pair of both (VLMo, "Multiway Transformer")."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Self, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from vlmo.folder import check_folder
from vlmo.model.config import VLMoConfig
from vlmo.model.embeddings import ImageEmbeddings, TextEmbeddings
from vlmo.model.heads import ContrastHead, MaskedImageHead, Pooler
from vlmo.model.multiway import MultiwayBlock, QueryKeyValue
from vlmo.model.position import RelativePositionBias, sincos_positions
from vlmo.model.sequence import LANGUAGE, VISION, Queries, Sequence
from vlmo.released import find_model

_DUAL_ENCODERS = frozenset(("VLMoForImageTextRetrieval", "VLMoForPreTraining"))
"""Classes whose folders hold a contrast head."""
_HUB = ("cache_dir", "local_files_only", "revision", "subfolder", "token")

TEXT_TYPE, IMAGE_TYPE, SECOND_IMAGE_TYPE = 0, 1, 2


@dataclass
class VLMoModelOutput(ModelOutput):
    """Output of the backbone.

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
        """Load a model folder, a model of the hub, or one by its name, such as "vlmo-base-coco"; OSError without it.

        Arguments are those of transformers. Weights are read from safetensors alone.

        Raises:
            ValueError: The folder holds an adapter, or its index names files that are not in it.
        """
        name = pretrained_model_name_or_path
        if name is not None:
            name = find_model(name)
            check_folder(str(name))
        return super().from_pretrained(name, *args, **kwargs | {"use_safetensors": True})

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
                _init_positions(module.positions, config, grid=getattr(module, "grid", None))
        elif isinstance(module, MultiwayBlock) and config.layer_scale_init is not None:
            for gamma in (module.gamma_1, module.gamma_2):
                init.constant_(cast("Tensor", gamma), config.layer_scale_init)
        elif isinstance(module, ContrastHead):
            init.constant_(module.logit_scale, config.logit_scale_init)
        elif isinstance(module, MaskedImageHead):
            init.zeros_(module.mask_token)

    @property
    def backbone(self) -> VLMoModel:
        """The Transformer inside any VLMo model."""
        return cast("VLMoModel", self.base_model)

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the decoder of words, if there is one; it grows with the word table but is not tied to it."""
        head = getattr(self, "mlm_head", None)
        return None if head is None else head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the decoder of words."""
        cast("Any", self.mlm_head).decoder = value

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that weight decay leaves alone although they have two dimensions or more."""
        undecayed: list[nn.Parameter | None] = [self.backbone.image_embeddings.cls_token]
        for module in self.modules():
            if isinstance(module, RelativePositionBias):
                undecayed.append(module.table)
            elif isinstance(module, ImageEmbeddings | TextEmbeddings):
                undecayed.append(module.positions)
        identities = {id(parameter) for parameter in undecayed}
        return {name for name, parameter in self.named_parameters() if id(parameter) in identities}


def _init_positions(table: nn.Parameter, config: VLMoConfig, *, grid: tuple[int, int] | None) -> None:
    dim = config.hidden_size
    if config.position_init == "normal":
        init.trunc_normal_(table, std=config.initializer_range)
    elif grid is not None:
        init.copy_(table, torch.cat([torch.zeros(1, dim), sincos_positions(*grid, dim=dim)]))
    else:
        # As long as word vectors, with which they are normalised.
        init.copy_(table, 2**0.5 * config.initializer_range * sincos_positions(len(table), dim=dim))


class VLMoModel(VLMoPreTrainedModel):
    """The backbone: embeddings, Multiway blocks, final norm and pooler (VLMo, "Multiway Transformer")."""

    def __init__(
        self,
        config: VLMoConfig,
        add_pooling_layer: bool = True,  # noqa: FBT001, FBT002 (HF's name)
        *,
        add_contrast_head: bool = False,
    ) -> None:
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
        self.contrast_head = ContrastHead(config) if add_contrast_head else None
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike | None, *args: Any, **kwargs: Any) -> Self:
        """Load as the other classes do; of a model for retrieval with its contrast head, see `get_image_features`."""
        name, config = pretrained_model_name_or_path, kwargs.get("config")
        if name is not None and not isinstance(config, VLMoConfig):
            config = VLMoConfig.from_pretrained(name, **{key: kwargs[key] for key in _HUB if key in kwargs})
        if config is not None and not _DUAL_ENCODERS.isdisjoint(config.architectures or ()):
            kwargs.setdefault("add_contrast_head", True)
        return super().from_pretrained(name, *args, **kwargs)

    def get_image_features(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised vectors of images; ValueError if the model was not loaded from one for retrieval."""
        return self._head().embed_image(self.contrast_states(self.embed(pixel_values=pixel_values))[0])

    def get_text_features(
        self, input_ids: Int[Tensor, "batch text"], attention_mask: Int[Tensor, "batch text"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised vectors of texts; ValueError if the model was not loaded from one for retrieval."""
        sequence = self.embed(input_ids=input_ids, attention_mask=attention_mask)
        return self._head().embed_text(self.contrast_states(sequence)[0])

    def _head(self) -> ContrastHead:
        if self.contrast_head is None:
            raise ValueError("This model has no contrast head, so it embeds nothing; load a model for retrieval.")
        return self.contrast_head

    def get_input_embeddings(self) -> nn.Module:
        """Return the word table."""
        return self.text_embeddings.words

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word table."""
        self.text_embeddings.words = value

    def embed_image(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        *,
        bool_masked_pos: Bool[Tensor, "batch patch"] | None = None,
        mask_token: Float[Tensor, "dim"] | None = None,
        modality_type: int = IMAGE_TYPE,
    ) -> Float[Tensor, "batch 1+patch dim"]:
        """Return class token and patches with their type embedding."""
        hidden = self.image_embeddings(pixel_values, bool_masked_pos=bool_masked_pos, mask_token=mask_token)
        return self._add_type(hidden, modality_type)

    def embed_text(self, input_ids: Int[Tensor, "batch text"]) -> Float[Tensor, "batch text dim"]:
        """Return word pieces with their type embedding."""
        return self._add_type(self.text_embeddings(input_ids), TEXT_TYPE)

    def _add_type(self, hidden: Float[Tensor, "batch seq dim"], kind: int) -> Float[Tensor, "batch seq dim"]:
        if self.modality_types is None:
            return hidden
        # Called, not indexed, as in `TextEmbeddings`.
        return hidden + self.modality_types(torch.full((), kind, device=hidden.device))

    def embed(
        self,
        *,
        pixel_values: Float[Tensor, "batch 3 height width"] | None = None,
        input_ids: Int[Tensor, "batch text"] | None = None,
        attention_mask: Int[Tensor, "batch text"] | None = None,
    ) -> Sequence:
        """Return an image, a text, or the pair of both as one sequence."""
        return self.join(
            text=None if input_ids is None else self.embed_text(input_ids),
            attention_mask=attention_mask,
            image=None if pixel_values is None else self.embed_image(pixel_values),
            grid=None if pixel_values is None else self.image_embeddings.grid_of(pixel_values),
        )

    def join(
        self,
        *,
        text: Float[Tensor, "batch text dim"] | None = None,
        attention_mask: Int[Tensor, "batch text"] | None = None,
        image: Float[Tensor, "batch 1+patch dim"] | None = None,
        grid: tuple[int, int] | None = None,
        position_bias: list[Float[Tensor, "#batch heads seq seq"]] | None = None,
    ) -> Sequence:
        """Put embedded parts into one sequence; passes may share a `position_bias`. ValueError if masks do not fit."""
        image_first = self.config.token_order == "image_first"
        parts = [part for part in ((image, text) if image_first else (text, image)) if part is not None]
        num_text = 0 if text is None else text.shape[1]
        mask = None
        if text is not None and attention_mask is not None:
            if attention_mask.shape != text.shape[:2]:
                given, expected = tuple(attention_mask.shape), tuple(text.shape[:2])
                raise ValueError(f"attention_mask has shape {given}; expected {expected}, one entry for each token.")
            num_image = 0 if image is None else image.shape[1]
            padding = (num_image, 0) if image_first else (0, num_image)
            mask = nn.functional.pad(attention_mask.bool(), padding, value=True)
        if position_bias is None:
            position_bias = self.make_position_bias(num_text=num_text, grid=grid)
        return Sequence(
            hidden=parts[0] if len(parts) == 1 else torch.cat(parts, dim=1),
            num_text=num_text,
            position_bias=position_bias,
            attention_mask=mask,
            image_first=image_first,
        )

    def make_position_bias(
        self, *, num_text: int, grid: tuple[int, int] | None
    ) -> list[Float[Tensor, "#batch heads seq seq"]] | None:
        """Return the relative position bias of each layer; None with absolute positions."""
        return None if self.position_bias is None else self.position_bias(num_text=num_text, grid=grid)

    def run(
        self,
        sequence: Sequence,
        *,
        layers: range | None = None,
        fusion: bool,
        queries: Queries | None = None,
        record: list[tuple[Float[Tensor, "batch seq dim"], Float[Tensor, "batch head query key"] | None]] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return hidden states after `layers` (all by default), before the final norm.

        Args:
            fusion: Use the `vision_language` experts in blocks that own one; without it, each token keeps its own.
            queries: The tokens whose states are returned (all by default); the last block computes no others.
            record: Receives the states and the attention weights (if eager) of each layer.
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
                queries=queries if layer == layers[-1] else None,
            )
            if record is not None:
                record.append((hidden, weights))
        return hidden if layers or queries is None else queries.select(hidden)

    def run_to_first(
        self, sequence: Sequence, *, layers: range | None = None, fusion: bool
    ) -> Float[Tensor, "batch dim"]:
        """Return the state of the first token alone, as `run` does."""
        return self.run(sequence, layers=layers, fusion=fusion, queries=sequence.queries())[:, 0]

    def finish(self, states: Float[Tensor, "*tokens dim"], *, modality: str) -> Float[Tensor, "*tokens dim"]:
        """Apply the final norm to tokens of one modality, `"vision"` or `"language"`."""
        return self.norm[modality](states) if isinstance(self.norm, nn.ModuleDict) else self.norm(states)

    def pool_pair(self, first: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Return the vector of a pair from its first token, before the final norm; ValueError without a pooler."""
        if self.pooler is None:
            raise ValueError("This model has no pooler (use_pooler is False), so it has no vector for a whole pair.")
        leading = VISION if self.config.token_order == "image_first" else LANGUAGE
        return self.pooler(self.finish(first, modality=leading)[:, None])

    def contrast_states(self, sequence: Sequence, *, fusion_branch: bool = False) -> list[Float[Tensor, "batch dim"]]:
        """Return the first token of one modality after each ITC branch (final norm applied).

        The unimodal branch stays on the modality's own experts. The VL-FFN branch reruns the top `num_fusion_layers`
        blocks with the `vision_language` expert, from the state below them (a detail of the published code).
        """
        modality = LANGUAGE if sequence.num_text else VISION
        if not fusion_branch:
            return [self.finish(self.run_to_first(sequence, fusion=False), modality=modality)]
        depth = len(self.blocks)
        below, top = range(depth - self.config.num_fusion_layers), range(depth - self.config.num_fusion_layers, depth)
        state = replace(sequence, hidden=self.run(sequence, layers=below, fusion=False))
        return [
            self.finish(self.run_to_first(state, layers=top, fusion=fusion), modality=modality)
            for fusion in (False, True)
        ]

    @can_return_tuple
    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"] | None = None,
        input_ids: Int[Tensor, "batch text"] | None = None,
        attention_mask: Int[Tensor, "batch text"] | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> VLMoModelOutput:
        """Encode an image, a text, or the pair of both.

        Raises:
            ValueError: Neither was given, the batch sizes differ, or attention weights were asked of the sdpa
                implementation.
        """
        if pixel_values is None and input_ids is None:
            raise ValueError("VLMoModel got neither pixel_values nor input_ids; give an image, a text, or both.")
        if pixel_values is not None and input_ids is not None and pixel_values.shape[0] != input_ids.shape[0]:
            raise ValueError(f"{len(pixel_values)} images and {len(input_ids)} texts; a pair needs one of each.")
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError("Attention weights need attn_implementation='eager' (model.set_attn_implementation).")
        sequence = self.embed(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
        record: list[tuple[Tensor, Tensor | None]] = []
        fusion = pixel_values is not None and input_ids is not None
        hidden = self.run(sequence, fusion=fusion, record=record if output_hidden_states or output_attentions else None)
        norm = self.norm
        hidden = sequence.route(fusion=False)(norm, hidden) if isinstance(norm, nn.ModuleDict) else norm(hidden)
        text, image = sequence.split(hidden)
        return VLMoModelOutput(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None else self.pooler(hidden),
            text_hidden_state=None if input_ids is None else text,
            image_hidden_state=None if pixel_values is None else image,
            hidden_states=(sequence.hidden, *(state for state, _ in record)) if output_hidden_states else None,
            attentions=tuple(each for _, each in record if each is not None) if output_attentions else None,
        )
