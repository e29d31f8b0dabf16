"""The backbone, which encodes an image, a text, or the pair of both (VLMo, "Multiway Transformer")."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, NamedTuple, Self, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import DynamicLayer
from transformers.utils import ModelOutput, can_return_tuple

from vlmo.folder import check_folder
from vlmo.model.config import VLMoConfig
from vlmo.model.embeddings import (
    ImageEmbeddings,
    RelativePositionBias,
    TextEmbeddings,
    sincos_positions,
)
from vlmo.model.heads import ContrastHead, MaskedImageHead, Pooler
from vlmo.model.multiway import (
    LANGUAGE,
    VISION,
    MultiwayBlock,
    OutputTokens,
    QueryKeyValue,
    Route,
    TokenSequence,
    layer_norms,
)
from vlmo.released import find_model

# Rows of the modality table; the published code adds the third one for NLVR2.
TEXT_TYPE = 0
IMAGE_TYPE = 1
SECOND_IMAGE_TYPE = 2


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


class Encoded(NamedTuple):
    """States after the final norm of the tokens that `VLMoModel.encode` is asked for.

    Attributes:
        first: That of the first token.
        tokens: Those of the wanted words or patches, row by row.
        positions: Their numbers in the flattened mask of wanted ones.
    """

    first: Float[Tensor, "batch dim"]
    tokens: Float[Tensor, "wanted dim"]
    positions: Int[Tensor, "wanted"]


class ImageOptions(NamedTuple):
    """Choices in how images are embedded.

    Attributes:
        bool_masked_pos: True for patches that `mask_token` replaces.
        image_type: Row of the modality table for the patches.
        image_rows: The image of each text, for pairs that share images, which are embedded once.
    """

    bool_masked_pos: Bool[Tensor, "images patch"] | None = None
    mask_token: Float[Tensor, "dim"] | None = None
    image_type: int = IMAGE_TYPE
    image_rows: Int[Tensor, "pairs"] | None = None


_PLAIN_IMAGES = ImageOptions()


class VLMoPreTrainedModel(PreTrainedModel):
    """Loading, saving and initial weights of every VLMo model."""

    config: VLMoConfig
    config_class = VLMoConfig
    base_model_prefix = "vlmo"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    # What a device map (accelerate) keeps on one device.
    _no_split_modules = ["MultiwayBlock", "ImageEmbeddings", "TextEmbeddings"]
    _supports_sdpa = True

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike | None, *args: Any, **kwargs: Any
    ) -> Self:
        """Load a model folder, a model of the hub, or one by its name, such as "vlmo-base-coco"; OSError without it.

        Arguments are those of transformers. Weights are read from safetensors alone.

        Raises:
            ValueError: The folder holds an adapter, or its index names files that are not in it.
        """
        name = pretrained_model_name_or_path
        if name is not None:
            name = find_model(name)
            check_folder(str(name))
        # A pickled weights file could run code when it is read.
        return super().from_pretrained(name, *args, **kwargs | {"use_safetensors": True})

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill every parameter: what a loaded folder lacks starts as raw memory otherwise."""
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
            # BERT's and BEiT's first weights: normal, std 0.02, cut off.
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        if (
            isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
            and module.bias is not None
        ):
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
        config = self.config
        if isinstance(module, QueryKeyValue):
            for bias in (module.query_bias, module.key_bias, module.value_bias):
                if bias is not None:
                    init.zeros_(bias)
        elif isinstance(module, RelativePositionBias):
            # No bias at first: all positions are alike, as in BEiT.
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

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that weight decay leaves alone although they have two dimensions or more."""
        # BEiT's list: class token and position tables, which are no matrices of a layer.
        undecayed: list[nn.Parameter | None] = [self.backbone.image_embeddings.cls_token]
        for module in self.modules():
            if isinstance(module, RelativePositionBias):
                undecayed.append(module.table)
            elif isinstance(module, ImageEmbeddings | TextEmbeddings):
                undecayed.append(module.positions)
        identities = {id(parameter) for parameter in undecayed}
        return {name for name, parameter in self.named_parameters() if id(parameter) in identities}


def _init_positions(
    table: nn.Parameter, config: VLMoConfig, *, grid: tuple[int, int] | None
) -> None:
    dim = config.hidden_size
    if config.position_init == "normal":
        init.trunc_normal_(table, std=config.initializer_range)
    elif grid is not None:
        # The class token's position has no place on the grid: zeros.
        init.copy_(table, torch.cat([torch.zeros(1, dim), sincos_positions(*grid, dim=dim)]))
    else:
        # As long as word vectors, with which they are normalized.
        init.copy_(table, 2**0.5 * config.initializer_range * sincos_positions(len(table), dim=dim))


def _causal_bias(
    hidden: Float[Tensor, "batch seq dim"], *, words: slice
) -> Float[Tensor, "1 seq seq"]:
    """Return -inf where a token (row) does not see a word: words see no later ones, the image sees none."""
    position = torch.arange(hidden.shape[1], device=hidden.device)
    # (seq): True for columns of words, whatever stands before or after them
    is_word = (position >= words.start) & (position < words.stop)
    # (query, key): the image's rows see no word, words see themselves and those before.
    unseen = is_word & (~is_word[:, None] | (position > position[:, None]))
    return hidden.new_zeros(1, 1, 1).masked_fill(unseen, -torch.inf)


def _sequence_mask(
    attention_mask: Tensor, input_ids: Int[Tensor, "batch text"], route: Route
) -> Bool[Tensor, "batch seq"]:
    """Return True for the tokens that are attended to: words of the mask, and all patches."""
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; "
            f"expected {tuple(input_ids.shape)}, one entry for each token."
        )
    padding = (route.num_image, 0) if route.image_first else (0, route.num_image)
    return nn.functional.pad(attention_mask.bool(), padding, value=True)


class VLMoModel(VLMoPreTrainedModel):
    """The backbone: embeddings, Multiway blocks, final norm and pooler (VLMo, "Multiway Transformer")."""

    def __init__(
        self,
        config: VLMoConfig,
        add_pooling_layer: bool = True,  # noqa: FBT001, FBT002 (HF's name)
    ) -> None:
        super().__init__(config)
        self.image_embeddings = ImageEmbeddings(config)
        self.text_embeddings = TextEmbeddings(config)
        types = config.num_modality_types
        self.modality_types = nn.Embedding(types, config.hidden_size) if types else None
        self.position_bias = (
            RelativePositionBias(config) if config.position_embedding == "relative" else None
        )
        depth = config.num_hidden_layers
        # Rates of stochastic depth grow linearly with depth, as in BEiT. On the CPU also where the
        # model is made without numbers (`torch.device("meta")`).
        drop_paths = torch.linspace(0, config.drop_path_rate, depth, device="cpu").tolist()
        first_fused = depth - config.num_fusion_layers
        self.blocks = nn.ModuleList(
            MultiwayBlock(config, has_fusion_expert=layer >= first_fused, drop_path=drop_path)
            for layer, drop_path in enumerate(drop_paths)
        )
        if config.final_norm == "separate":
            self.norm = layer_norms(config, (VISION, LANGUAGE))
        else:
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = Pooler(config) if add_pooling_layer and config.use_pooler else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the word table."""
        return self.text_embeddings.words

    def encode(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"] | None = None,
        input_ids: Int[Tensor, "batch text"] | None = None,
        attention_mask: Int[Tensor, "batch text"] | None = None,
        *,
        wanted: Bool[Tensor, "batch tokens"] | None = None,
        mask_token: Float[Tensor, "dim"] | None = None,
        image_type: int = IMAGE_TYPE,
        image_rows: Int[Tensor, "pairs"] | None = None,
        causal: bool = False,
    ) -> Encoded:
        """Encode images, texts or pairs to the states of the first token and of the `wanted` ones alone.

        Args:
            wanted: True for some words, or for some patches of images alone.
            mask_token: Stands in place of the wanted patches; with `image_type` and `image_rows` see `ImageOptions`.
            causal: Words see the image and the words before them, the image itself alone (BEiT-3 on captions).

        Raises:
            ValueError: Neither images nor texts were given, or shapes do not fit.
        """
        masked = None if mask_token is None else wanted
        images = ImageOptions(masked, mask_token, image_type, image_rows)
        sequence = self._embed(
            pixel_values, input_ids, attention_mask, images=images, causal=causal
        )
        outputs, places = sequence.outputs(wanted)
        # (batch, 1 + columns, dim), the first token in front
        states = self._run(sequence, fusion=sequence.route.is_pair, queries=outputs)
        # (wanted, dim): columns that only fill up a row are left out
        tokens = states[:, 1:].flatten(0, 1).index_select(0, places.in_outputs)
        first = self._final_norm(states[:, 0], sequence.route.leads)
        modality = LANGUAGE if sequence.route.num_text else VISION
        return Encoded(first, self._final_norm(tokens, modality), places.in_mask)

    def encode_branches(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"] | None = None,
        input_ids: Int[Tensor, "batch text"] | None = None,
        attention_mask: Int[Tensor, "batch text"] | None = None,
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
        """Return states of the first token of images or texts in both ITC branches: unimodal and VL-FFN.

        The VL-FFN branch runs the top `num_fusion_layers` blocks again with the `vision_language` expert,
        from the state below them (a detail of the published code).
        """
        sequence = self._embed(pixel_values, input_ids, attention_mask)
        outputs, _ = sequence.outputs(None)
        split = len(self.blocks) - self.config.num_fusion_layers
        hidden = self._run(sequence, fusion=False, layers=range(split))
        below_top = replace(sequence, hidden=hidden)
        top = range(split, len(self.blocks))
        unimodal = self._run(below_top, fusion=False, layers=top, queries=outputs)
        fused = self._run(below_top, fusion=True, layers=top, queries=outputs)
        leads = sequence.route.leads
        return self._final_norm(unimodal[:, 0], leads), self._final_norm(fused[:, 0], leads)

    def prefill(
        self, pixel_values: Float[Tensor, "batch 3 height width"], cache: list[DynamicLayer]
    ) -> None:
        """Write the keys and values of images, which the words of `decode` see, into the cache of each block."""
        sequence = self._embed(pixel_values, None, None)
        # The last block, too, has to give no more than its cache.
        outputs, _ = sequence.outputs(None)
        self._run(sequence, fusion=True, queries=outputs, cache=cache)

    def decode(
        self,
        input_ids: Int[Tensor, "batch text"],
        cache: list[DynamicLayer],
        *,
        grid: tuple[int, int],
    ) -> Float[Tensor, "batch text dim"]:
        """Return states of the next words of captions, as `encode` of pairs does with `causal`.

        Args:
            cache: From `prefill` and earlier calls; receives the keys and values of these words.
            grid: Rows and columns of the images' patches.
        """
        count = input_ids.shape[1]
        cache_length = cache[0].get_seq_length()
        # Number of words before these.
        start = cache_length - 1 - grid[0] * grid[1]
        length = start + count
        hidden = self._with_type(self.text_embeddings(input_ids, start=start), TEXT_TYPE)
        causal_bias = _causal_bias(hidden, words=slice(0, count))
        causal_bias = nn.functional.pad(causal_bias, (cache_length, 0))
        # Words attend to all of the cache: (1, words, cache + words).
        bias = [causal_bias] * len(self.blocks)
        if self.position_bias is not None:
            # Columns of the position bias begin with the words, those of the cache with the image.
            position_bias = self.position_bias(
                num_text=length, grid=grid, rows=slice(start, length)
            )
            for layer, table in enumerate(position_bias):
                reordered = torch.cat([table[..., length:], table[..., :length]], dim=-1)
                bias[layer] = causal_bias + reordered
        sequence = TokenSequence(hidden, Route(count, 0), bias, None)
        return self._final_norm(self._run(sequence, fusion=True, cache=cache), LANGUAGE)

    def _embed(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        *,
        images: ImageOptions = _PLAIN_IMAGES,
        causal: bool = False,
    ) -> TokenSequence:
        """Return the embedded tokens of images, texts or pairs, with their position bias and mask."""
        if pixel_values is None and input_ids is None:
            raise ValueError(
                "VLMoModel got neither pixel_values nor input_ids; give an image, a text, or both."
            )
        parts = []
        num_text = 0
        num_image = 0
        grid = None
        image_first = self.config.token_order == "image_first"
        # Texts first, even if images stand before them: dropout samples in this order.
        if input_ids is not None:
            parts.append(self._with_type(self.text_embeddings(input_ids), TEXT_TYPE))
            num_text = input_ids.shape[1]
        if pixel_values is not None:
            image = self._embed_images(pixel_values, images)
            # Not by len(), which would fix the batch of an exported graph.
            if input_ids is not None and image.shape[0] != input_ids.shape[0]:
                raise ValueError(
                    f"{image.shape[0]} images and {input_ids.shape[0]} texts; a pair needs one of each."
                )
            parts.insert(0 if image_first else len(parts), image)
            grid = self.image_embeddings.grid_of(pixel_values)
            num_image = image.shape[1]
        hidden = torch.cat(parts, dim=1)
        route = Route(num_text, num_image, image_first)
        bias = self._bias(hidden, route, grid, causal=causal)
        mask = None
        if input_ids is not None and attention_mask is not None:
            mask = _sequence_mask(attention_mask, input_ids, route)
        return TokenSequence(hidden, route, bias, mask)

    def _embed_images(
        self, pixel_values: Float[Tensor, "images 3 height width"], options: ImageOptions
    ) -> Float[Tensor, "batch 1+patch dim"]:
        """Return class token and patches, of each image or of those of `image_rows`."""
        image = self.image_embeddings(
            pixel_values, bool_masked_pos=options.bool_masked_pos, mask_token=options.mask_token
        )
        image = self._with_type(image, options.image_type)
        return image if options.image_rows is None else image.index_select(0, options.image_rows)

    def _bias(
        self,
        hidden: Float[Tensor, "batch seq dim"],
        route: Route,
        grid: tuple[int, int] | None,
        *,
        causal: bool,
    ) -> list[Float[Tensor, "#heads seq seq"]] | None:
        """Return what is added to the attention logits of each block: positions, and words that are not seen."""
        bias = None
        if self.position_bias is not None:
            bias = self.position_bias(num_text=route.num_text, grid=grid)
        if not causal:
            return bias
        start = route.num_image if route.image_first else 0
        causal_bias = _causal_bias(hidden, words=slice(start, start + route.num_text))
        if bias is None:
            return [causal_bias] * len(self.blocks)
        return [table + causal_bias for table in bias]

    def _run(
        self,
        sequence: TokenSequence,
        *,
        fusion: bool,
        layers: range | None = None,
        queries: OutputTokens | None = None,
        record: list[tuple[Tensor, Tensor | None]] | None = None,
        cache: list[DynamicLayer] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return states after the `layers` (all by default), before the final norm.

        Args:
            fusion: Use the `vision_language` experts where there are any.
            queries: Tokens that the last of the layers computes, all by default.
            record: Receives the states after each block, and its attention weights.
            cache: Keys and values of each block, which are attended to and extended.
        """
        if layers is None:
            layers = range(len(self.blocks))
        hidden = sequence.hidden
        route = replace(sequence.route, fusion=fusion)
        for layer in layers:
            hidden, weights = self.blocks[layer](
                hidden,
                None if sequence.bias is None else sequence.bias[layer],
                route=route,
                attention_mask=sequence.mask,
                queries=queries if layer == layers[-1] else None,
                cache=None if cache is None else cache[layer],
            )
            if record is not None:
                record.append((hidden, weights))
        return hidden

    def _with_type(
        self, hidden: Float[Tensor, "batch seq dim"], kind: int
    ) -> Float[Tensor, "batch seq dim"]:
        if self.modality_types is None:
            return hidden
        # Called, not indexed, as in `TextEmbeddings`.
        return hidden + self.modality_types(torch.full((), kind, device=hidden.device))

    def _final_norm(
        self, states: Float[Tensor, "*tokens dim"], modality: str
    ) -> Float[Tensor, "*tokens dim"]:
        if isinstance(self.norm, nn.ModuleDict):
            return self.norm[modality](states)
        return self.norm(states)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"] | None = None,
        input_ids: Int[Tensor, "batch text"] | None = None,
        attention_mask: Int[Tensor, "batch text"] | None = None,
        *,
        bool_masked_pos: Bool[Tensor, "batch patch"] | None = None,
        mask_token: Float[Tensor, "dim"] | None = None,
        image_type: int = IMAGE_TYPE,
        causal: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> VLMoModelOutput:
        """Encode all tokens as `encode` does; ValueError also if attention weights are asked of sdpa."""
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                "Attention weights need attn_implementation='eager' (model.set_attn_implementation)."
            )
        images = ImageOptions(bool_masked_pos, mask_token, image_type)
        sequence = self._embed(
            pixel_values, input_ids, attention_mask, images=images, causal=causal
        )
        route = sequence.route
        record: list[tuple[Tensor, Tensor | None]] = [(sequence.hidden, None)]
        keeps_blocks = output_hidden_states or output_attentions
        hidden = self._run(sequence, fusion=route.is_pair, record=record if keeps_blocks else None)
        norm = self.norm
        hidden = route(norm, hidden) if isinstance(norm, nn.ModuleDict) else norm(hidden)
        text, image = route.split(hidden)
        attentions = tuple(weights for _, weights in record if weights is not None)
        return VLMoModelOutput(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None else self.pooler(hidden),
            text_hidden_state=None if input_ids is None else text,
            image_hidden_state=None if pixel_values is None else image,
            hidden_states=tuple(states for states, _ in record) if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )
