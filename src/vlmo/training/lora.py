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

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmo.checkpoints.loading import named_class, one_line_errors
from vlmo.folder import file_in, read_json
from vlmo.folder.atomic import write_folder
from vlmo.folder.card import add_section
from vlmo.model.config import VLMoConfig
from vlmo.model.stages import start_from
from vlmo.training.config import LORA_LAYERS, LoraConfig

BASE = "base.json"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT's
_TRAINED_WHOLE = ("pooler", "modality_types")
_PROCESSOR = ("preprocessor_config", "processor_config", "special_tokens", "tokenizer", "vocab")
_BESIDE = ("README.md", "data_sources.json", *_PROCESSOR)
_SECTION = "Adapter"


def add_adapters(
    model: nn.Module, config: LoraConfig, *, start: str, missing: Sequence[str] = ()
) -> None:
    """Put adapters, which change nothing yet, around the target layers, and freeze what is not trained.

    Args:
        start: The folder that the model starts from, for the adapter's configuration.
        missing: Tensors of the model that this folder does not hold.

    Raises:
        ValueError: It lacks a tensor that would stay as it is, random.
        ModuleNotFoundError: PEFT is not installed.
    """
    import peft

    # Only then there are adapters.
    assert config.rank is not None
    trained_whole = tuple(f"{name}." for name in _whole(model))
    if lost := [name for name in missing if not name.startswith(trained_whole)]:
        raise ValueError(
            f"{start} lacks {len(lost)} tensors that adapters leave as they are, such as {lost[0]}; start from a model "
            "that has them, or leave out --lora.rank"
        )
    # PEFT annotates alpha as a whole number, which it need not be.
    make_settings: Any = peft.LoraConfig
    settings = make_settings(
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,
        lora_dropout=config.dropout,
        target_modules=rf"vlmo\.blocks\.\d+\..+\.({'|'.join(LORA_LAYERS[name] for name in config.targets)})",
        base_model_name_or_path=start,
    )
    peft.LoraModel(model, {"default": settings}, "default")
    for name in _whole(model):
        model.get_submodule(name).requires_grad_(requires_grad=True)


def save_adapter(folder: Path, model: Any, weights: dict[str, Tensor], *, start: str) -> None:
    """Write the adapter of a model into a folder that holds its `config.json` and card."""
    whole = tuple(f"{name}." for name in _whole(model))
    # PEFT's files do not hold the adapter's name, `default`.
    kept = {
        _PREFIX + re.sub(r"(lora_[AB])\.default\.", r"\1.", name): tensor.detach()
        .cpu()
        .contiguous()
        for name, tensor in weights.items()
        if "lora_" in name or name.startswith(whole)
    }
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    settings = model.peft_config["default"]
    # So that PEFT, too, finds what was trained whole.
    settings.modules_to_save = _whole(model)
    settings.inference_mode = True
    settings.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / BASE).write_text(
        json.dumps({"start": start, "config": config}, indent=2) + "\n", encoding="utf-8"
    )
    (folder / "config.json").unlink()
    body = f"This folder holds a LoRA adapter of `{start}`. `vlmo merge FOLDER --out MODEL` makes a model folder of it."
    add_section(folder, title=_SECTION, body=body)


_OTHER_KINDS = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "fan_in_fan_out")
"""Settings of adapters that are added to weights in another way."""


def merge_adapter(folder: str | Path, out: str | Path) -> None:
    """Write the model folder of an adapter that `save_adapter` has written: its start with the adapter added.

    Raises:
        ValueError: It is no such adapter, or does not fit the model that it names.
        FileExistsError: `out` exists.
    """
    folder = Path(folder)
    out = Path(out)
    if not all((folder / name).is_file() for name in (BASE, CONFIG, WEIGHTS)):
        raise ValueError(f"{folder} is no adapter of vlmo: expected {BASE}, {CONFIG} and {WEIGHTS}")
    if out.exists():
        raise FileExistsError(17, "exists already", str(out))
    with one_line_errors(folder):
        # All other settings say what was trained, which the names of the tensors say too.
        settings = read_json(file_in(folder, CONFIG))
        base = read_json(file_in(folder, BASE))
        if other := [name for name in _OTHER_KINDS if settings.get(name)]:
            raise ValueError(
                f"{', '.join(other)} in {CONFIG} make it an adapter of another kind than plain LoRA"
            )
        # Plain LoRA: W + alpha / r * B A ("Low-Rank Parametrized Update Matrices").
        rank = settings["r"]
        scale = settings["lora_alpha"] / settings["r"]
        adapter = load_file(file_in(folder, WEIGHTS))
        config = VLMoConfig.from_dict(base["config"])
        start = str(base["start"])
        model = named_class(folder, base["config"]["architectures"])(config)
        report = start_from(model, start)
        # Else it would stay random.
        if lost := [name for name in report.missing if _PREFIX + name not in adapter]:
            raise ValueError(f"neither the adapter nor {start} holds {lost[0]}; is it whole?")
        _add_to_weights(model, adapter, rank=rank, scale=scale)
    with write_folder(out) as aside:
        model.save_pretrained(aside)
        for file in folder.iterdir():
            if file.name.startswith(_BESIDE):
                shutil.copy(file_in(folder, file.name), aside / file.name)
        if (aside / "README.md").is_file():
            add_section(aside, title=_SECTION, body=f"Trained with LoRA from `{start}`; merged.")


@torch.no_grad()
def _add_to_weights(
    model: nn.Module, adapter: dict[str, Tensor], *, rank: int, scale: float
) -> None:
    """Add the products of an adapter to the weights of its model, and replace what was trained whole."""
    weights = model.state_dict()
    for full_name, tensor in adapter.items():
        name = full_name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if ".lora_B." in name and full_name.replace(".lora_B.", ".lora_A.") in adapter:
            # It is added with its A.
            continue
        if ".lora_A." in name:
            name = name.replace(".lora_A.", ".")
            up = adapter[full_name.replace(".lora_A.", ".lora_B.")]
            weight = weights.get(name, tensor)
            # Before the product, which may be of any size.
            if up.shape == (len(weight), rank) and tensor.shape == (rank, weight.shape[-1]):
                tensor = weight.float() + scale * (up.float() @ tensor.float())
        if (
            name not in weights
            or tensor.shape != weights[name].shape
            or not tensor.isfinite().all()
        ):
            raise ValueError(
                f"the adapter does not fit its model: {name} is none of it, or has another shape or rank, or "
                "numbers that are not finite"
            )
        weights[name].copy_(tensor)


def _whole(model: nn.Module) -> list[str]:
    heads = [name for name, _ in model.named_children() if name != "vlmo"]
    backbone = model.get_submodule("vlmo")
    parts = [name for name in _TRAINED_WHOLE if getattr(backbone, name, None) is not None]
    return heads + [f"vlmo.{name}" for name in parts]
