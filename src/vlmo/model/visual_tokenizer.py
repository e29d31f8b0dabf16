"""Visual tokenizers: images into discrete tokens, the targets of masked image modeling.

`VQVisualTokenizer` is small and trained here; `DalleVisualTokenizer` wraps DALL-E's published encoder, and
`VQKDVisualTokenizer` is BEiT-2's. All read `pixel_values` as models do, and `tokenize` returns one of `num_tokens`
tokens for each patch of the model's grid, in float32 and without gradient, whatever mode and autocast around the call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    FlavaImageCodebook,
    FlavaImageCodebookConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.utils import ModelOutput

from vlmo.folder import WEIGHTS, check_folder
from vlmo.model.backbone import VLMoModel, VLMoPreTrainedModel
from vlmo.model.config import VLMoConfig, VQVisualTokenizerConfig
from vlmo.released import find_model
from vlmo.types import normalize_pixels

DALLE_STRIDE = 8
# DALL-E squeezes its pixels into [0.1, 0.9] (DALL-E, "The Logit-Laplace Distribution").
DALLE_EPSILON = 0.1


@dataclass
class VQVisualTokenizerOutput(ModelOutput):
    """Output of a `VQVisualTokenizer`; errors are mean squares in the units of `pixel_values`.

    Attributes:
        reconstruction: float32 images; the gradient passes the codebook straight through.
        commitment_loss: Distance of the encoder's codes from the codebook's.
        indices: Tokens, row by row.
        perplexity: `codebook_perplexity` of this process's batch.
    """

    reconstruction: Float[Tensor, "batch 3 height width"] | None = None
    reconstruction_loss: Float[Tensor, ""] | None = None
    commitment_loss: Float[Tensor, ""] | None = None
    indices: Int[Tensor, "batch patch"] | None = None
    perplexity: Float[Tensor, ""] | None = None


def codebook_perplexity(indices: Int[Tensor, "*shape"], *, num_tokens: int) -> Float[Tensor, ""]:
    """Return exp of the entropy of token use: 1 if all tokens are one, `num_tokens` if all are used alike."""
    shares = torch.bincount(indices.flatten(), minlength=num_tokens).float() / indices.numel()
    return torch.special.entr(shares).sum().exp()


class MixingBlock(nn.Module):
    """Residual block on a grid of patches: a depthwise 3x3 convolution, then an MLP."""

    def __init__(self, config: VQVisualTokenizerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_before_mixing = nn.LayerNorm(width)
        self.mixing = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.norm_before_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, width)

    def forward(
        self, hidden: Float[Tensor, "batch height width dim"]
    ) -> Float[Tensor, "batch height width dim"]:
        """Return the grid, each patch mixed with its neighbours."""
        # Convolutions want channels first.
        mixed = self.mixing(self.norm_before_mixing(hidden).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        hidden = hidden + mixed
        return hidden + self.down(F.gelu(self.up(self.norm_before_mlp(hidden))))


class GridNetwork(nn.Module):
    """Learnt correction to a linear map from a grid of vectors to another; zero at the start."""

    def __init__(
        self, input_size: int, output_size: int, *, config: VQVisualTokenizerConfig
    ) -> None:
        super().__init__()
        self.input = nn.Linear(input_size, config.hidden_size)
        self.blocks = nn.Sequential(*(MixingBlock(config) for _ in range(config.num_hidden_layers)))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.output = nn.Linear(config.hidden_size, output_size)

    def forward(
        self, grid: Float[Tensor, "batch height width in"]
    ) -> Float[Tensor, "batch height width out"]:
        """Return the correction, in the precision of the autocast around the call."""
        return self.output(self.norm(self.blocks(self.input(grid))))


class VQVisualTokenizer(PreTrainedModel):
    """A vector-quantised autoencoder with one code per patch.

    Encoder and decoder are the principal components of patches plus a small network that starts at zero, and k-means
    fills the codebook, so that tokens are useful after the first batch in training (`start_from`). The codebook follows
    by moving averages, not by gradient. With several processes, join the group before building the tokenizer: the
    codebook then takes in the patches of all, and is equal on each.
    """

    config_class = VQVisualTokenizerConfig
    base_model_prefix = "visual_tokenizer"
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: VQVisualTokenizerConfig) -> None:
        super().__init__(config)
        # Belongs to an optional extra, and takes a second to import.
        from vector_quantize_pytorch import VectorQuantize

        self.encoder = GridNetwork(config.patch_values, config.code_size, config=config)
        self.decoder = GridNetwork(config.code_size, config.patch_values, config=config)
        self.quantizer = VectorQuantize(
            dim=config.code_size,
            codebook_size=config.num_tokens,
            decay=config.codebook_decay,
            kmeans_init=True,
            threshold_ema_dead_code=config.dead_code_threshold,
            # Straight-through reconstructs better here: 0.111 against 0.114 after 120 steps.
            rotation_trick=False,
            # The library's own guess is cached from its first call on.
            sync_codebook=_num_processes() > 1,
        )
        self.register_buffer("patch_mean", torch.zeros(config.patch_values))
        self.register_buffer("patch_components", torch.zeros(config.code_size, config.patch_values))
        self.register_buffer("started", torch.tensor(False))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            # PyTorch's own default: small networks start at once.
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif module is self.quantizer:
            init.zeros_(module.zero)  # in no weights file
        elif module is self:
            # Comes after its parts. (transformers skips parts that own no tensor themselves, such as a GridNetwork.)
            corrections = (self.encoder.output.weight, self.decoder.output.weight)
            for tensor in (*corrections, self.patch_mean, self.patch_components, self.started):
                init.zeros_(tensor)

    @property
    def num_tokens(self) -> int:
        """Size of the visual vocabulary."""
        return self.config.num_tokens

    @torch.no_grad()
    def start_from(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> None:
        """Take principal components and codebook from images (of all processes), some patches per token.

        A first training step calls it; call it before training to start from more images than one batch has.
        """
        with _float32_math(pixel_values):
            patches = self._patches(_to_floats(pixel_values)).flatten(0, 2)
            count = _sum_over_processes(torch.tensor(float(len(patches)), device=patches.device))
            mean = _sum_over_processes(patches.sum(0)) / count
            # (values, values), the covariance times the count
            scatter = _sum_over_processes((patches - mean).T @ (patches - mean))
            # eigh sorts by rising eigenvalue; the largest come first here: (code, values).
            components = (
                torch.linalg.eigh(scatter)
                .eigenvectors.T.flip(0)[: self.config.code_size]
                .contiguous()
            )
            # The sign of a component is arbitrary, and processes may choose differently.
            if _num_processes() > 1:
                dist.broadcast(components, src=0)
            self.patch_mean.copy_(mean)
            self.patch_components.copy_(components)
            self.quantizer(self._project(patches)[None])  # runs k-means
        self.started.fill_(True)

    def check_started(self) -> None:
        """Raise ValueError if there is no codebook yet."""
        if not self.started:
            raise ValueError(
                "this visual tokenizer has no codebook yet; train it, or load a trained one."
            )

    def tokenize(
        self, pixel_values: Float[Tensor, "batch 3 height width"], *, grid: tuple[int, int]
    ) -> Int[Tensor, "batch patch"]:
        """Return tokens of each patch, row by row; ValueError without `grid` patches, or before training."""
        pixels = _to_floats(pixel_values)
        size = self.config.patch_size
        if tuple(pixels.shape[-2:]) != (grid[0] * size, grid[1] * size):
            given = tuple(pixels.shape[-2:])
            expected = f"{grid[0] * size} x {grid[1] * size}"
            raise ValueError(
                f"images of {given} pixels; a grid of {grid} patches of {size} pixels needs {expected}."
            )
        self.check_started()
        with torch.no_grad(), _float32_math(pixels):
            codes = self._encode(pixels)
            # Frozen by argument: whoever holds the tokenizer may have put it into training mode.
            _, indices, _ = self.quantizer(codes.flatten(1, 2), freeze_codebook=True)
        return indices

    def forward(
        self, pixel_values: Float[Tensor, "batch 3 height width"]
    ) -> VQVisualTokenizerOutput:
        """Return images encoded, quantised and decoded; in training the codebook follows. ValueError before it."""
        pixels = _to_floats(pixel_values)
        if self.training and not self.started:
            self.start_from(pixels)
        self.check_started()
        codes = self._encode(pixels)
        with _float32_math(pixels):
            # The library leaves float32 under CPU autocast, and would round distances to three digits.
            quantized, indices, _ = self.quantizer(codes.flatten(1, 2))
            quantized = quantized.view_as(codes)
            commitment_loss = F.mse_loss(codes, quantized.detach())
        reconstruction = self._decode(quantized)
        return VQVisualTokenizerOutput(
            reconstruction=reconstruction,
            reconstruction_loss=F.mse_loss(reconstruction, pixels),
            commitment_loss=commitment_loss,
            indices=indices,
            perplexity=codebook_perplexity(indices, num_tokens=self.num_tokens),
        )

    def _patches(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows columns values"]:
        size = self.config.patch_size
        if any(side % size for side in pixels.shape[2:]):
            raise ValueError(
                f"images of {tuple(pixels.shape[2:])} pixels; expected multiples of patch_size {size}."
            )
        # (batch, 3 * size * size, rows, columns) -> (batch, rows, columns, values)
        return F.pixel_unshuffle(pixels, size).permute(0, 2, 3, 1)

    @property
    def _scale(self) -> float:
        # Makes a mean squared distance of codes one of pixels, so that the two losses weigh alike.
        return math.sqrt(self.config.code_size / self.config.patch_values)

    def _project(self, patches: Float[Tensor, "*shape values"]) -> Float[Tensor, "*shape code"]:
        return (patches - self.patch_mean) @ self.patch_components.T * self._scale

    def _encode(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows columns code"]:
        patches = self._patches(pixels)
        correction = self.encoder(patches).float()
        with _float32_math(patches):
            return self._project(patches) + correction

    def _decode(
        self, codes: Float[Tensor, "batch rows columns code"]
    ) -> Float[Tensor, "batch 3 height width"]:
        correction = self.decoder(codes).float()
        with _float32_math(codes):
            patches = self.patch_mean + codes @ self.patch_components / self._scale + correction
        return F.pixel_shuffle(patches.permute(0, 3, 1, 2), self.config.patch_size)


class DalleVisualTokenizer(nn.Module):
    """DALL-E's encoder (8,192 tokens, one for 8 pixels), as BEiT and VLMo use it (BEiT, "Image Representations")."""

    def __init__(self, codebook: FlavaImageCodebook) -> None:
        super().__init__()
        self.codebook = codebook

    @property
    def num_tokens(self) -> int:
        """Size of the visual vocabulary."""
        return self.codebook.config.vocab_size

    @torch.no_grad()
    def tokenize(
        self, pixel_values: Float[Tensor, "batch 3 height width"], *, grid: tuple[int, int]
    ) -> Int[Tensor, "batch patch"]:
        """Return tokens of images resized to 8 pixels per patch of `grid`, row by row; ValueError if it is empty."""
        pixels = _to_floats(pixel_values)
        with _float32_math(pixels):
            # [-1, 1] -> [0, 1], of which DALL-E takes the inner 80 %.
            pixels = _resized(0.5 * pixels + 0.5, grid, patch_size=DALLE_STRIDE)
            pixels = (1 - 2 * DALLE_EPSILON) * pixels.clamp(0, 1) + DALLE_EPSILON
            return self.codebook.get_codebook_indices(pixels).flatten(1)


class VQKDVisualTokenizer(VLMoPreTrainedModel):
    """BEiT-2's tokenizer (VQ-KD, arXiv 2208.06366): an encoder of images, and a codebook; its decoder is left out."""

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__(config)
        self.vlmo = VLMoModel(config, add_pooling_layer=False)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        width = cast("int", config.projection_size)
        self.projection = nn.Linear(config.hidden_size, width)
        self.codebook = nn.Embedding(self.num_tokens, width)
        self.post_init()

    @property
    def num_tokens(self) -> int:
        """Size of the visual vocabulary."""
        return self.config.num_visual_tokens

    @torch.no_grad()
    def tokenize(
        self, pixel_values: Float[Tensor, "batch 3 height width"], *, grid: tuple[int, int]
    ) -> Int[Tensor, "batch patch"]:
        """Return tokens of images resized to `patch_size` pixels per patch of `grid`, row by row."""
        with _float32_math(pixel_values):
            pixels = _resized(
                _to_floats(pixel_values), grid, patch_size=self.config.patch_size
            ).clamp(-1, 1)
            # Behind the class token: (batch, patch, dim).
            states = self.vlmo(pixels).last_hidden_state[:, 1:]
            codes = self.codebook.weight
            vectors = F.normalize(self.projection(self.dense(states).tanh()), dim=-1)
            # Nearest code: -|v - c|^2 without the |v|^2 that all codes share.
            return (2 * vectors @ codes.T - codes.square().sum(dim=-1)).argmax(dim=-1)


VisualTokenizer = VQVisualTokenizer | DalleVisualTokenizer | VQKDVisualTokenizer


def load_visual_tokenizer(name_or_folder: str | Path) -> VisualTokenizer:
    """Load a visual tokenizer of a folder or the hub, or by its name, such as "vqkd-base-3x768-clip".

    It is frozen, in float32. ValueError if it is no visual tokenizer, or incomplete.
    """
    name = str(find_model(name_or_folder))
    classes: dict[str, type[PreTrainedModel]] = {
        VLMoConfig.model_type: VQKDVisualTokenizer,
        VQVisualTokenizerConfig.model_type: VQVisualTokenizer,
        FlavaImageCodebookConfig.model_type: FlavaImageCodebook,
    }
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
        kind = config.get("model_type")
        known = [VQKDVisualTokenizer.__name__]
        if kind not in classes or (
            kind == VLMoConfig.model_type and config.get("architectures") != known
        ):
            raise ValueError(
                f"{name!r} holds a model of type {kind!r}, no visual tokenizer; expected {list(classes)}."
            )
        check_folder(name, WEIGHTS, "pytorch_model.bin")
        loaded: Any = classes[kind].from_pretrained(
            name, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"no visual tokenizer can be read at {name!r}: {error}") from error
    # transformers fills missing weights at random with a warning only.
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"the visual tokenizer at {name!r} lacks {len(missing)} weights, {missing[0]} among them."
        )
    if isinstance(model, VQVisualTokenizer):
        model.check_started()
    elif isinstance(model, FlavaImageCodebook):
        model = DalleVisualTokenizer(model)
    return model.requires_grad_(False).eval()


def _to_floats(pixel_values: Float[Tensor, "..."]) -> Float[Tensor, "batch 3 height width"]:
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"pixel_values has shape {shape}; expected (batch, 3, height, width).")
    return normalize_pixels(pixel_values).float()


def _resized(
    pixels: Float[Tensor, "batch 3 height width"], grid: tuple[int, int], *, patch_size: int
) -> Float[Tensor, "batch 3 new_height new_width"]:
    if min(grid) < 1:
        raise ValueError(f"grid is {tuple(grid)}; give numbers of rows and columns from 1 up.")
    size = (grid[0] * patch_size, grid[1] * patch_size)
    same = tuple(pixels.shape[-2:]) == size
    return pixels if same else F.interpolate(pixels, size=size, mode="bicubic", antialias=True)


def _float32_math(tensor: Float[Tensor, "..."]) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _sum_over_processes(tensor: Tensor) -> Tensor:
    if _num_processes() > 1:
        dist.all_reduce(tensor)
    return tensor
