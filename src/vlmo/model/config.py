"""Sizes and variants of the backbone (VLMo, "Multiway Transformer" and "Pre-Training Setup")."""

import math
from os import PathLike
from typing import Any, Literal, Self

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from vlmo.released import find_model

_Settings = dict[str, Any]
_ATTENTION = ("eager", "sdpa")
_SHARES = ("drop_path_rate", "hidden_dropout_prob", "rerank_weight", "rerank_weight_image_to_text")
# Depth of VLMo-Large and Base+ (VLMo, "Pre-Training Setup"), and of BEiT-3 Large.
_DEEP: _Settings = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_ABSOLUTE: _Settings = {"position_embedding": "absolute", "layer_scale_init": None}
_64_PIXELS: _Settings = {"num_fusion_layers": 1, "image_size": 64, "max_text_positions": 64}
_BEIT3: _Settings = {
    "vocab_size": 64010,
    "pad_token_id": 1,
    "max_text_positions": 1022,
    "num_fusion_layers": 0,
    "contrast_fusion_branch": False,
    "layer_norm_eps": 1e-5,
    "attention": "separate",
    "final_norm": "separate",
    "text_embedding": "plain",
    "token_order": "image_first",
    "key_bias": True,
    "inner_norm": True,
    "num_modality_types": 0,
    "use_pooler": False,
    "use_match_head": False,
}
# Largest numbers of a configuration, which may come from a stranger's file. Vocabularies have up to 262,144 words, sets
# of images 81,313 classes, for each of which transformers makes a name.
_MOST = 1 << 20
_MOST_LAYERS = 1000
_MOST_LABELS = 1 << 17
# Whole numbers that may be 0.
_NO_SIZES = ("num_fusion_layers", "num_modality_types", "pad_token_id")


@strict
class VLMoConfig(PreTrainedConfig):
    """Configuration of every VLMo model; the defaults are VLMo-Base.

    Attributes:
        num_fusion_layers: Number of top blocks that own a `vision_language` expert; 0 leaves the expert out.
        max_text_positions: Longest text that the position tables can hold, in tokens.
        position_embedding: `"relative"` (a bias table, base and large) or `"absolute"` (base_plus).
        position_init: First values of absolute positions, which are learnt: `"normal"` (published) or `"sincos"`, which
            tells a short run at once what lies left, right, above and below.
        layer_scale_init: First value of LayerScale; None leaves LayerScale out (base_plus).
        hidden_dropout_prob: Dropout on embeddings. The published code ties it to `drop_path_rate`; here it is apart.
        experts: `"multiway"` or `"shared"` (a standard Transformer: one FFN for all tokens).
        attention: `"shared"`, or `"separate"` projections and first norm for each modality (attention joins them).
        contrast_fusion_branch: Give ITC a second branch, through the `vision_language` experts (VL-FFN).
        num_visual_tokens: Size of the vocabulary of masked image modeling.
        num_modality_types: Rows of the modality table: text, image and, for two images, second image; 0: no table.
        rerank_weight: Share of the matching score when a shortlist is reordered, between 0 and 1.
        rerank_weight_image_to_text: The same where texts are ranked for an image; None: `rerank_weight`.
        rerank_min_words: Least number of words of a text that searches rerank by default; names may gain nothing.
        token_order: `"text_first"`, or `"image_first"` (BEiT-3; absolute positions only).
        final_norm: `"shared"`, or `"separate"` norms after the last block for vision and language (BEiT-3).
        text_embedding: `"bert"` (word, segment, position, LayerNorm) or `"plain"` (word and position; BEiT-3, which
            also predicts words by one linear layer).
        key_bias: Give keys a bias. It cancels in the softmax unless `attention` is separate (BEiT-3).
        inner_norm: Put a LayerNorm before the attention's output projection and inside each expert (BEiT-3).
        use_match_head: Give a retrieval model the head that scores pairs; it needs the pooler.
        segmentation_channels: Width of the segmentation head.
    """

    model_type = "vlmo"
    # The key in older folders.
    attribute_map = {"contrast_fusion_ending": "contrast_fusion_branch"}

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    num_fusion_layers: int = 2
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    vocab_size: int = 30522
    max_text_positions: int = 196
    position_embedding: Literal["relative", "absolute"] = "relative"
    position_init: Literal["normal", "sincos"] = "normal"
    layer_scale_init: float | None = 0.1
    drop_path_rate: float = 0.0
    hidden_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-6
    text_layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    experts: Literal["multiway", "shared"] = "multiway"
    attention: Literal["shared", "separate"] = "shared"
    contrast_fusion_branch: bool = True
    projection_size: int | None = None
    logit_scale_init: float = math.log(1 / 0.07)
    num_visual_tokens: int = 8192
    num_modality_types: int = 2
    rerank_weight: float = 0.5
    rerank_weight_image_to_text: float | None = None
    rerank_min_words: int = 1
    pad_token_id: int | None = 0
    token_order: Literal["text_first", "image_first"] = "text_first"
    final_norm: Literal["shared", "separate"] = "shared"
    text_embedding: Literal["bert", "plain"] = "bert"
    key_bias: bool = False
    inner_norm: bool = False
    use_pooler: bool = True
    use_match_head: bool = True
    segmentation_channels: int = 512
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.projection_size is None:
            self.projection_size = self.hidden_size
        super().__post_init__(**kwargs)
        self._check()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any) -> Self:
        """Load the configuration of a folder, of the hub, or of a model by its name; OSError without such a model.

        Arguments are those of transformers.
        """
        return super().from_pretrained(find_model(pretrained_model_name_or_path), **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Read settings of a file; ValueError for a wrong one, or if their attention is code of the hub."""
        # transformers would load "owner/repository" as code.
        attention = (
            config_dict.get("_attn_implementation")
            or config_dict.get("attn_implementation")
            or "sdpa"
        )
        if attention not in _ATTENTION:
            raise ValueError(
                f"_attn_implementation is {attention!r}; expected one of {', '.join(_ATTENTION)}"
            )
        if isinstance(labels := config_dict.get("num_labels"), int) and labels > _MOST_LABELS:
            raise ValueError(f"num_labels is {labels}; expected at most {_MOST_LABELS}")
        try:
            return super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(" ".join(str(error).split())) from error

    def _check(self) -> None:
        """Raise ValueError for a number out of its range, or settings that do not go together."""
        for name in _SHARES:
            if (value := vars(self)[name]) is not None and not 0 <= value <= 1:
                raise ValueError(f"VLMoConfig.{name} is {value}; expected a number from 0 to 1.")
        for name, kind in VLMoConfig.__annotations__.items():
            most = _MOST_LAYERS if name == "num_hidden_layers" else _MOST
            if (
                kind in {int, int | None}
                and name not in _NO_SIZES
                and not 1 <= (value := vars(self)[name]) <= most
            ):
                raise ValueError(
                    f"VLMoConfig.{name} is {value}; expected a number from 1 to {most}."
                )
        self._check_parts()

    def _check_parts(self) -> None:
        """Raise ValueError for settings that do not go together."""
        heads = self.num_attention_heads
        patch = self.patch_size
        depth = self.num_hidden_layers
        if self.hidden_size % heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}."
            )
        if self.image_size % patch:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {patch}."
            )
        if not 0 <= self.num_fusion_layers <= depth:
            raise ValueError(
                f"num_fusion_layers is {self.num_fusion_layers}; expected 0 to {depth}, all layers."
            )
        if self.num_modality_types < 0 or self.num_modality_types == 1:
            raise ValueError(
                f"num_modality_types is {self.num_modality_types}; expected 0 (no table), 2, or 3."
            )
        # The table of offsets is built for text first, and starts at zero.
        if self.position_embedding == "relative" and (self.token_order, self.position_init) != (
            "text_first",
            "normal",
        ):
            raise ValueError(
                "token_order 'image_first' and position_init 'sincos' need absolute positions."
            )
        if self.use_match_head and not self.use_pooler:
            raise ValueError(
                "use_match_head needs use_pooler: the head reads the pooled first token."
            )

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Numbers of blocks after which the levels of segmentation are taken, BEiT's: (4, 6, 8, 12) with twelve."""
        # A third, a half, two thirds and all of the depth: BEiT's out_indices 3, 5, 7, 11 of Base.
        depth = self.num_hidden_layers
        return (max(1, depth // 3), max(1, depth // 2), max(1, 2 * depth // 3), depth)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width at the configured image size."""
        return self.image_size // self.patch_size, self.image_size // self.patch_size

    @property
    def rerank_weights(self) -> tuple[float, float]:
        """Shares of the matching score: of texts for an image, and of images for a text."""
        image_to_text = self.rerank_weight_image_to_text
        return self.rerank_weight if image_to_text is None else image_to_text, self.rerank_weight

    @property
    def has_fusion_branch(self) -> bool:
        """True if ITC is also computed through the `vision_language` experts."""
        return (
            self.contrast_fusion_branch
            and self.num_fusion_layers > 0
            and self.experts == "multiway"
        )

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """VLMo-Base, 175M parameters in the backbone."""
        return cls(**changes)

    @classmethod
    def base_plus(cls, **changes: Any) -> Self:
        """VLMo-Base+, 167M parameters: narrower and deeper, absolute positions, no LayerScale."""
        return cls(**_DEEP | {"hidden_size": 544, "num_fusion_layers": 3} | _ABSOLUTE | changes)

    @classmethod
    def large(cls, **changes: Any) -> Self:
        """VLMo-Large, 562M parameters."""
        return cls(**_DEEP | {"num_fusion_layers": 3, "layer_scale_init": 1e-5} | changes)

    @classmethod
    def beit3_base(cls, **changes: Any) -> Self:
        """BEiT-3 Base (arXiv 2208.10442): this backbone with two branches for all but the attention itself."""
        return cls(**_BEIT3 | _ABSOLUTE | changes)

    @classmethod
    def beit3_large(cls, **changes: Any) -> Self:
        """BEiT-3 Large."""
        return cls.beit3_base(**_DEEP | changes)

    @classmethod
    def beit3_giant(cls, **changes: Any) -> Self:
        """BEiT-3's paper, table 2: 1.9B with its heads; no weights are published.

        Without the norms inside attention and experts, with which an expert has 693M parameters, not 692M.
        """
        sizes = {
            "hidden_size": 1408,
            "num_hidden_layers": 40,
            "num_attention_heads": 16,
            "intermediate_size": 6144,
        }
        parts = {
            "attention": "shared",
            "num_fusion_layers": 3,
            "key_bias": False,
            "inner_norm": False,
        }
        return cls.beit3_base(**sizes | parts | {"patch_size": 14} | changes)

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """6 layers of 192 at 64 pixels: trains on two CPU cores."""
        sizes: _Settings = {
            "hidden_size": 192,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
        }
        return cls(**_64_PIXELS | sizes | {"vocab_size": 4000, "num_visual_tokens": 1024} | changes)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """3 layers of 32 at 64 pixels: for tests."""
        sizes: _Settings = {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
        }
        return cls(**_64_PIXELS | sizes | {"vocab_size": 96, "num_visual_tokens": 64} | changes)


@strict
class VQVisualTokenizerConfig(PreTrainedConfig):
    """Shape of a `VQVisualTokenizer`; the defaults suit images of 64 px.

    Attributes:
        patch_size: Pixels per side that become one token.
        hidden_size: Width of the encoder's and of the decoder's network.
        num_hidden_layers: Blocks in the encoder's network, and again in the decoder's.
        num_tokens: Size of the visual vocabulary.
        code_size: Width of a code, at most the number of values in a patch.
        codebook_decay: Share that the codebook's moving averages keep at each forward pass in training.
        dead_code_threshold: A code that fewer patches chose (moving average over all processes' patches of a forward
            pass) is replaced by a patch of the batch; 0 keeps dead codes.
    """

    model_type = "vlmo_visual_tokenizer"

    patch_size: int = 16
    hidden_size: int = 256
    num_hidden_layers: int = 1
    intermediate_size: int = 512
    num_tokens: int = 1024
    code_size: int = 64
    codebook_decay: float = 0.95
    dead_code_threshold: float = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        """Raise ValueError for a number that is too small, a code wider than a patch, or a decay of 1 or more."""
        super().__post_init__(**kwargs)
        sizes = ("patch_size", "hidden_size", "intermediate_size", "num_tokens", "code_size")
        for name in (*sizes, "num_hidden_layers", "dead_code_threshold"):
            if (value := vars(self)[name]) < (least := int(name in sizes)):
                raise ValueError(
                    f"VQVisualTokenizerConfig.{name} is {value}; give a number from {least} up."
                )
        if self.code_size > self.patch_values or not 0 <= self.codebook_decay < 1:
            most = self.patch_values
            decay = self.codebook_decay
            raise ValueError(
                f"code_size {self.code_size}, codebook_decay {decay}; give at most {most}, 0 to below 1."
            )

    @property
    def patch_values(self) -> int:
        """Numbers in a patch: three for each pixel."""
        return 3 * self.patch_size**2


# AutoTokenizer reads a folder's configuration, too.
AutoConfig.register(VLMoConfig.model_type, VLMoConfig, exist_ok=True)
