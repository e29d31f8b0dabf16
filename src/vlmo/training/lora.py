"""LoRA (arXiv 2106.09685): train low-rank adapters of the blocks, keep them alone, merge them on request. Uses PEFT.

An adapter folder has PEFT's two files and, in place of a model folder's `config.json`, `base.json`: the configuration
of the adapted model, and the folder that it starts from.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmo.checkpoints.loading import load_model, named_class, one_line_errors, read_json
from vlmo.folder.atomic import write_folder
from vlmo.folder.card import add_section
from vlmo.lazy import need_package
from vlmo.model.backbone import VLMoPreTrainedModel
from vlmo.model.config import FusionStart, VLMoConfig
from vlmo.model.stages import start_from
from vlmo.released import find_model, no_adapter
from vlmo.training.config import LORA_LAYERS, LoraConfig

BASE, CONFIG, WEIGHTS = "base.json", "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT's
_TRAINED_WHOLE = ("pooler", "modality_types")
_BESIDE = ("README.md", "preprocessor_config", "processor_config", "special_tokens", "tokenizer", "vocab")
_SECTION = "Adapter"


def add_adapters(model: nn.Module, config: LoraConfig, *, start: str, missing: Sequence[str] = ()) -> None:
    """Put adapters, which change nothing yet, around the target layers, and freeze what is not trained.

    Args:
        start: The folder that the model starts from, for the adapter's configuration.
        missing: Tensors of the model that this folder does not hold.

    Raises:
        ValueError: It lacks a tensor that would stay as it is, random.
        ModuleNotFoundError: PEFT is not installed.
    """
    assert config.rank is not None  # only then there are adapters
    if lost := [name for name in missing if not name.startswith(tuple(f"{each}." for each in _whole(model)))]:
        raise ValueError(
            f"{start} lacks {len(lost)} tensors that adapters leave as they are, such as {lost[0]}; start from a model "
            "that has them, or leave out --lora.rank"
        )
    settings = _peft().LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,
        lora_dropout=config.dropout,
        target_modules=rf"vlmo\.blocks\.\d+\..+\.({'|'.join(LORA_LAYERS[name] for name in config.targets)})",
        base_model_name_or_path=start,
    )
    _peft().LoraModel(model, {"default": settings}, "default")
    for name in _whole(model):
        model.get_submodule(name).requires_grad_(requires_grad=True)


def save_adapter(
    folder: Path, model: Any, weights: dict[str, Tensor], *, start: str, fusion_experts_from: FusionStart
) -> None:
    """Write the adapter of a model into a folder that holds its `config.json` and card.

    Args:
        weights: State dictionary of the model.
        start: The folder that the model started from; `fusion_experts_from` as in `start_from`.
    """
    whole = tuple(f"{name}." for name in _whole(model))
    kept = {
        _PREFIX + re.sub(r"(lora_[AB])\.default\.", r"\1.", name): tensor.detach().cpu().contiguous()
        for name, tensor in weights.items()
        if "lora_" in name or name.startswith(whole)
    }
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    settings = model.peft_config["default"]
    settings.modules_to_save, settings.inference_mode = _whole(model), True
    settings.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    base = {"start": start, "fusion_experts_from": fusion_experts_from, "config": config}
    (folder / BASE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")
    (folder / "config.json").unlink()
    told = f"This folder holds a LoRA adapter of `{start}`. `vlmo merge FOLDER --out MODEL` makes a model folder of it."
    add_section(folder, title=_SECTION, body=told)


def merge_adapter(folder: str | Path, out: str | Path) -> None:
    """Write the model folder of an adapter: its start folder with the adapter added to the weights.

    Also merges an adapter that PEFT itself has saved for a model folder.

    Raises:
        ValueError: It is no LoRA adapter, or does not fit the model that it names.
        FileExistsError: `out` exists.
    """
    folder, out = Path(folder), Path(out)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(no_adapter(folder))
    if out.exists():
        raise FileExistsError(17, "exists already", str(out))
    with one_line_errors(folder):
        settings = _peft().LoraConfig.from_pretrained(folder)
    if not isinstance(settings, _peft().LoraConfig) or settings.use_dora:
        raise ValueError(f"{folder} holds an adapter of another kind than plain LoRA; merge it with PEFT")
    model: Any = _base_model(folder, settings)
    settings.modules_to_save = None  # they replace the model's own, where PEFT would keep both
    tuner = _peft().LoraModel(model, {"default": settings}, "default")
    weights = {
        re.sub(r"(lora_[AB])\.", r"\1.default.", name.removeprefix(_PREFIX)): tensor
        for name, tensor in load_file(folder / WEIGHTS).items()
    }
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    differing = [name for name, tensor in weights.items() if shapes.get(name) != tensor.shape]
    if differing := sorted(differing + [name for name in shapes if "lora_" in name and name not in weights]):
        raise ValueError(f"{folder} does not fit its model {settings.base_model_name_or_path}: {differing[0]} differs")
    model.load_state_dict(weights, strict=False)
    merged = tuner.merge_and_unload()
    with write_folder(out) as aside:
        merged.save_pretrained(aside)
        # An adapter that PEFT itself has saved has none of these, and a card that says nothing.
        source = folder if (folder / BASE).is_file() else Path(find_model(settings.base_model_name_or_path))
        for file in source.iterdir():
            if file.name.startswith(_BESIDE):
                shutil.copy(file, aside / file.name)
        if (aside / "README.md").is_file():
            told = f"Trained with LoRA from `{settings.base_model_name_or_path}`; merged."
            add_section(aside, title=_SECTION, body=told)


def _base_model(folder: Path, settings: Any) -> VLMoPreTrainedModel:
    """Return the model that an adapter was put into, as it was before."""
    if not (folder / BASE).is_file():
        return load_model(settings.base_model_name_or_path or "")
    base = read_json(folder / BASE)
    with one_line_errors(folder / BASE):
        config, start, kind = VLMoConfig.from_dict(base["config"]), base["start"], base["fusion_experts_from"]
        model = named_class(folder, base["config"]["architectures"])(config)
    start_from(model, start, fusion_experts_from=kind)
    return model.eval()


def _whole(model: nn.Module) -> list[str]:
    """Return the modules that are trained whole: heads, pooler and modality types."""
    heads = [name for name, _ in model.named_children() if name != "vlmo"]
    own = [name for name in _TRAINED_WHOLE if getattr(model.get_submodule("vlmo"), name, None) is not None]
    return heads + [f"vlmo.{name}" for name in own]


def _peft() -> Any:
    need_package("peft", extra="lora", user="LoRA")
    import peft

    return peft
