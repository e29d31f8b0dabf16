"""From one stage to the next: start from a model folder, choose parameters, layer-wise learning rate decay."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vlmo.folder import WEIGHTS, check_processor, read_config, weight_files
from vlmo.model.backbone import SECOND_IMAGE_TYPE, VLMoPreTrainedModel
from vlmo.model.config import VLMoConfig
from vlmo.model.embeddings import resize_absolute_positions, resize_bias_table
from vlmo.model.multiway import LANGUAGE, SHARED, MultiwayBlock
from vlmo.released import find_model

# Settings that change what the numbers of a weight mean, though its shape may fit.
_MUST_AGREE = ("num_attention_heads", "token_order", "experts", "attention")
_WORDS = "vlmo.text_embeddings.words.weight"
_POSITIONS = "vlmo.image_embeddings.positions"


@dataclass(frozen=True)
class StartReport:
    """Report of each parameter when a model starts from a folder.

    Attributes:
        loaded: Taken as they were.
        resized: Position tables brought to another image size, or a modality table with a row more (second image).
        filled: `vision_language` experts that the folder lacks, and where they came from.
        missing: Left at their random start.
        unused: In the folder, but not in the model.
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    filled: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return lines for people: everything that was not simply loaded, by name."""
        lines = [f"{len(self.loaded)} tensors loaded"]
        lines += [f"resized: {name}" for name in self.resized]
        lines += [f"filled: {name} from {source}" for name, source in self.filled.items()]
        lines += [f"not in the start folder, left random: {name}" for name in self.missing]
        return lines + [f"in the start folder, not used: {name}" for name in self.unused]


@torch.no_grad()
def start_from(model: VLMoPreTrainedModel, folder: str | Path) -> StartReport:
    """Copy the tensors of `folder` into `model`, in place (VLMo, "Stagewise Pre-Training").

    The language expert of the same layer fills `vision_language` experts that the folder lacks.

    Raises:
        ValueError: The folder is no model folder, or a tensor has another shape.
    """
    folder = Path(find_model(folder))
    weights, config = _read(folder, new=model.config)
    report = StartReport()
    state = model.state_dict()
    has_words = (folder / "tokenizer_config.json").is_file()
    for name, tensor in list(weights.items()):
        if not _is_used(name, tensor, state=state, has_words=has_words):
            report.unused.append(name)
            del weights[name]
            continue
        resized = _fit(name, tensor, like=state[name], source=config.grid, target=model.config.grid)
        if resized.shape != state[name].shape:
            raise ValueError(
                f"{folder}: {name} has shape {tuple(tensor.shape)}; expected {tuple(state[name].shape)}, "
                "as the model's configuration."
            )
        (report.loaded if resized is tensor else report.resized).append(name)
        state[name].copy_(resized)
    for name in state:
        if name in weights:
            continue
        source = name.replace(".vision_language.", ".language.")
        if source in weights:
            state[name].copy_(state[source])
            report.filled[name] = source
        else:
            report.missing.append(name)
    if not report.loaded and not report.resized:
        raise ValueError(
            f"{folder} holds no tensor that this model has; it is a folder of another kind of model."
        )
    return report


def _is_used(name: str, tensor: Tensor, *, state: dict[str, Tensor], has_words: bool) -> bool:
    """Return False for a tensor that the model lacks, or whose other shape shows that it means other things."""
    if name not in state:
        return False
    if tensor.shape == state[name].shape:
        return True
    # A classifier of another number of answers or classes belongs to another task.
    if "classifier" in name.split("."):
        return False
    # A model of images alone, such as an imported BEiT: its word table belongs to no words.
    return has_words or name != _WORDS


def language_stage_parameters(model: VLMoPreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters that stage 2 trains, without its head (VLMo, "Stagewise Pre-Training").

    Text embeddings, language experts, type and position tables and the final norm (small tables as in published code).
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
    return [
        parameter for module in modules if module is not None for parameter in module.parameters()
    ]


def layer_decay_factors(model: VLMoPreTrainedModel, *, decay: float) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter, by its full name (BEiT, "Fine-Tuning BEiT ...").

    `decay` (ValueError unless above 0 and at most 1) to the power of the distance from the top. Layer ids are BEiT's: 0
    for embeddings (of pixels, words and modality types), *i* + 1 for block *i*, the last for heads, norms after the
    blocks, the pooler and the table of relative positions, which serves all blocks.
    """
    if not 0 < decay <= 1:
        raise ValueError(
            f"the layer decay is {decay}; give a number above 0, at most 1 (which leaves all rates equal)"
        )
    backbone = model.backbone
    blocks = [block for block in backbone.blocks if isinstance(block, MultiwayBlock)]
    embeddings = (backbone.image_embeddings, backbone.text_embeddings, backbone.modality_types)
    layers: list[tuple[int, nn.Module | None]] = [(0, module) for module in embeddings]
    layers += [(number + 1, block) for number, block in enumerate(blocks)]
    ids = {
        id(weight): layer
        for layer, module in layers
        if module is not None
        for weight in module.parameters()
    }
    # BEiT's `get_num_layer_for_vit`.
    top = len(blocks) + 1
    return {
        name: decay ** (top - ids.get(id(parameter), top))
        for name, parameter in model.named_parameters()
    }


def _read(folder: Path, *, new: VLMoConfig) -> tuple[dict[str, Tensor], VLMoConfig]:
    files = weight_files(folder)
    kind = read_config(folder).get("model_type")
    if not files:
        raise ValueError(f"{folder} holds no weights: expected {WEIGHTS}")
    if kind != VLMoConfig.model_type:
        raise ValueError(
            f"{folder} holds a model of type {kind!r}; expected {VLMoConfig.model_type!r}."
        )
    check_processor(folder)
    config = VLMoConfig.from_pretrained(folder)
    on_one_side = (config.layer_scale_init is None) != (new.layer_scale_init is None)
    for name in (*_MUST_AGREE, *["layer_scale_init"] * on_one_side):
        if (before := vars(config)[name]) != (after := vars(new)[name]):
            option = (
                f"--model.{name.replace('_', '-')} {before} or "
                if config.hidden_size == new.hidden_size
                else ""
            )
            hint = f"give {option}another folder, or take its own sizes: vlmo finetune {folder} --data DATA"
            raise ValueError(f"{folder} has {name} {before!r}, the model {after!r}; {hint}")
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    # A backbone alone names its tensors without the prefix.
    if not any(name.startswith("vlmo.") for name in weights):
        weights = {f"vlmo.{name}": tensor for name, tensor in weights.items()}
    spoilt = [
        name
        for name, tensor in weights.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if spoilt:
        raise ValueError(
            f"{folder}: {', '.join(spoilt[:3])} hold numbers that are not finite; start from elsewhere."
        )
    return weights, config


@torch.no_grad()
def _fit(
    name: str, tensor: Tensor, *, like: Tensor, source: tuple[int, int], target: tuple[int, int]
) -> Tensor:
    if name == "vlmo.position_bias.table":
        return resize_bias_table(tensor, source=source, target=target)
    if name == _POSITIONS:
        return resize_absolute_positions(tensor, source=source, target=target)
    if name == "vlmo.modality_types.weight" and len(tensor) == SECOND_IMAGE_TYPE < len(like):
        # The second image's row starts as the image's, as in the published code (docs/paper.md).
        return torch.cat([tensor, tensor[SECOND_IMAGE_TYPE - 1 :]])
    return tensor
