"""Shared parts of the published layouts: tables of names and tasks, sizes from tensor shapes, names in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vlmo.model import VLMoConfig, VLMoPreTrainedModel

MAX_TEXT_POSITIONS = 196
"""Text positions of every published position table."""
DEFAULT_TEXT_LENGTH = 40
"""Tokens of a text in every published stage but the second."""
NUM_CLASS_ROWS = 3
"""Rows of a table for a class token: to any, any to it, to itself."""
NUM_CROSS_ROWS = 2
"""Rows of a table between the modalities."""
USUAL_SIZES = {768: (12, 12), 544: (16, 24), 1024: (16, 24)}
"""Heads and blocks by width: base, base_plus and large of VLMo, BEiT and BEiT-3."""
OUR_IMAGE_POSITIONS, OUR_TEXT_POSITIONS = "vlmo.image_embeddings.positions", "vlmo.text_embeddings.positions"
OUR_TABLE, OUR_WORDS = "vlmo.position_bias.table", "vlmo.text_embeddings.words.weight"

_PARTS = {
    "layer": r"\d+",
    "kind": "weight|bias",
    "number": "[12]",
    "side": "image|text",
    "part": "[qkv]",
    "expert": r"\w+",
}
_BLOCK_NUMBER = re.compile(r"(blocks|layers|layer)\.(\d+)\.")
_MAX_LISTED, _MAX_CHARACTERS = 20, 200


@dataclass(frozen=True)
class Conversion:
    """Published checkpoint under our names; nothing is resized or built yet.

    Attributes:
        kind: For people, for example `"VLMo, fine-tuned on VQA"`.
        weights: Under our names, at the shapes that `config` gives.
        unused: Published keys that are known and of no use to our model, such as index buffers.
        unknown: Published keys that no layout knows.
        created: Patterns (`re.match` on our names) of parameters that a file of this kind never holds. They are
            initialised from a fixed seed.
        max_text_length: Longest text that the file was trained for, in tokens; None without a text side.
        text: Tokenizer of the word table; None without a text side.
        imagenet_pixels: True if the file takes pixels normalised by ImageNet's mean and deviation, not by 0.5.
        notes: One sentence each, for the person who imports.
    """

    kind: str
    model_class: type[VLMoPreTrainedModel]
    config: VLMoConfig
    weights: dict[str, Tensor]
    unused: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    max_text_length: int | None = None
    text: Literal["wordpiece", "sentencepiece"] | None = None
    imagenet_pixels: bool = False
    notes: list[str] = field(default_factory=list)


_SIZES_OF_HEADS = {
    "answer_head": ("num_labels", "answer_head.classifier.weight"),
    "reasoning_head": ("num_labels", "reasoning_head.classifier.weight"),
    "classifier": ("num_labels", "classifier.weight"),
    "contrast_head": ("projection_size", "contrast_head.image_projection.weight"),
    "mim_head.decoder": ("num_visual_tokens", "mim_head.decoder.weight"),
}
"""Setting of `VLMoConfig` that the first axis of a head's tensor tells."""


@dataclass(frozen=True)
class HeadTask:
    """A task of a layout, known by heads of the file; the rows of a table stand in the order of precedence.

    Attributes:
        title: Words for people; `{}` is the number of classes.
        heads: Modules, by our names, that a file of this task has, all of them.
        settings: Of the configuration.
    """

    title: str
    heads: tuple[str, ...]
    model_class: type[VLMoPreTrainedModel]
    settings: Mapping[str, Any] = field(default_factory=dict)


def find_task(
    tasks: Sequence[HeadTask], named: Mapping[str, Tensor], names: NameTable
) -> tuple[HeadTask, str, dict[str, Any]]:
    """Return the first task whose heads are all there, its title, and the settings that the heads tell."""
    there = {name.rpartition(".")[0] for name in named} | {name.partition(".")[0] for name in named}
    task = next(task for task in tasks if there.issuperset(task.heads))
    settings = dict(task.settings)
    for size, name in (_SIZES_OF_HEADS[head] for head in task.heads if head in _SIZES_OF_HEADS):
        if name in named or size == "num_labels":
            settings[size] = shape_of(named, name, axes=2, names=names)[0]
    title = task.title.format(settings.get("num_labels"))
    if "reasoning_head" in task.heads and settings["num_labels"] == 2:  # NLVR2
        del settings["num_labels"]
        settings |= {"id2label": {0: "False", 1: "True"}, "label2id": {"False": 0, "True": 1}}
    return task, title, settings


class NameTable:
    """Translation of tensor names by pairs of templates such as `blocks.{layer}.norm1.{kind}`.

    Args:
        names: Published template and ours.
        experts: Published names of the experts and ours, for `{expert}`.
        prefix: Pattern of a start of published keys that may be left out.
    """

    def __init__(
        self, names: Sequence[tuple[str, str]], *, experts: Mapping[str, str] | None = None, prefix: str = ""
    ) -> None:
        self._experts = dict(experts or {})
        self._to_ours = [(_compile(published, prefix=prefix), ours) for published, ours in names]
        self._to_published = [(_compile(ours), published) for published, ours in names]

    def ours(self, key: str) -> str | None:
        """Return our name of a published key, or None."""
        return _translate(key, self._to_ours, self._experts)

    def published(self, name: str) -> str | None:
        """Return the published key of one of our names, or None where the layout has no such tensor."""
        return _translate(name, self._to_published, {ours: published for published, ours in self._experts.items()})


def _compile(template: str, *, prefix: str = "") -> re.Pattern[str]:
    parts = re.sub(r"\\{(\w+)\\}", lambda part: f"(?P<{part[1]}>{_PARTS[part[1]]})", re.escape(template))
    return re.compile(f"({prefix})?{parts}")


def _translate(name: str, rules: Iterable[tuple[re.Pattern[str], str]], experts: Mapping[str, str]) -> str | None:
    for pattern, template in rules:
        if match := pattern.fullmatch(name):
            parts = match.groupdict()
            if "expert" in parts and (expert := experts.get(parts["expert"])) is None:
                return None
            return template.format(**parts | ({"expert": expert} if "expert" in parts else {}))
    return None


def translate(state_dict: Mapping[str, Tensor], names: NameTable) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors under our names and with our axes, and the key of each; ValueError if two keys have one name."""
    named: dict[str, Tensor] = {}
    keys: dict[str, str] = {}
    for key, tensor in state_dict.items():
        if (name := names.ours(key)) is None:
            continue
        if name in named:
            raise ValueError(
                f"{key} is a second tensor for {name}, beside {keys[name]}. With use_mean_pooling False,"
                " BeitForMaskedImageModeling norms twice at the end, which VLMo does not: import the BeitModel inside"
                " it (model.beit.save_pretrained)."
            )
        if (name.endswith("logit_scale") and tensor.numel() == 1) or name.endswith("mask_token"):
            tensor = tensor.reshape(-1)
        elif name == OUR_IMAGE_POSITIONS and tensor.ndim == 3 and len(tensor) == 1:
            tensor = tensor[0]
        named[name], keys[name] = tensor, key
    # Query, key and value matrices of each block become one.
    for name in [name for name in named if re.fullmatch(r"vlmo\.blocks\.\d+\.attention\.q\.\w+\.weight", name)]:
        parts = [name.replace(".attention.q.", f".attention.{part}.") for part in "qkv"]
        if all(part in named and named[part].is_floating_point() for part in parts):
            named[name.replace(".attention.q.", ".attention.qkv.")] = torch.cat([named.pop(part) for part in parts])
    return named, keys


def shape_of(named: Mapping[str, Tensor], name: str, *, axes: int, names: NameTable) -> tuple[int, ...]:
    """Return the shape of a tensor; ValueError if it is missing, or has not `axes` axes, or an empty one."""
    shown = names.published(name) or name
    if name not in named:
        raise ValueError(f"{shown} is not there; the sizes of the model cannot be read without it. Is the file whole?")
    shape = tuple(named[name].shape)
    if len(shape) != axes or 0 in shape:
        raise ValueError(f"{shown} has shape {shape}; expected {axes} axes, none of them empty")
    return shape


def common_sizes(
    named: Mapping[str, Tensor], names: NameTable, *, columns: int | None, num_attention_heads: int | None
) -> dict[str, Any]:
    """Return the settings of `VLMoConfig` that the tensors of every layout tell.

    Args:
        columns: Of the position table, for all layers; None without one.
        num_attention_heads: As asked for, or as another file tells it.

    Raises:
        ValueError: A tensor is missing, blocks are, or the number of heads is unknown or does not fit.
    """
    width, channels, patch_size, _ = shape_of(named, "vlmo.image_embeddings.projection.weight", axes=4, names=names)
    blocks = {int(match[2]) for name in named if (match := _BLOCK_NUMBER.search(name))}
    if not blocks or max(blocks) != len(blocks) - 1:
        raise ValueError(f"blocks are numbered {spans(blocks)}; expected 0 and on without gaps. The file is incomplete")
    depth, (usual, _) = len(blocks), USUAL_SIZES.get(width, (None, None))
    heads = num_attention_heads or usual if columns is None else columns // depth
    if heads is None:
        raise ValueError(f"no tensor tells the attention heads of a model of width {width}; --num-attention-heads")
    if columns is not None and (columns % depth or num_attention_heads not in {None, heads}):
        wanted = "" if num_attention_heads is None else f" of {num_attention_heads} heads"
        raise ValueError(f"the position table has {columns} columns, which do not fit {depth} layers{wanted}")
    if num_attention_heads is None and usual not in {None, heads}:
        raise ValueError(
            f"the position table has {columns} columns for {depth} layers, so {heads} heads; published models of width"
            f" {width} have {usual}. Is the file whole? Give --num-attention-heads {heads} if it is"
        )
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": shape_of(named, "vlmo.blocks.0.experts.vision.fc1.weight", axes=2, names=names)[0],
        "patch_size": patch_size,
        "num_channels": channels,
    }


def grid_of_table(name: str, rows: int, *, num_fixed: int) -> int:
    """Return the patches along a side of a square image by the rows of its relative position table, or ValueError."""
    side = isqrt(max(rows - num_fixed, 0))
    if side % 2 == 0 or side * side != rows - num_fixed:
        raise ValueError(f"{name} has {rows} rows; expected (2w-1)^2 + {num_fixed} for an image of w x w patches")
    return (side + 1) // 2


def grid_of_positions(name: str, count: int) -> int:
    """Return the patches along a side of a square image by its number of absolute positions, or ValueError."""
    side = isqrt(max(count - 1, 0))
    if side == 0 or side * side != count - 1:
        raise ValueError(f"{name} has {count} positions; expected w^2 + 1 for an image of w x w patches")
    return side


def note_on_depth(model: str, config: VLMoConfig) -> list[str]:
    """Return a note where a model of a published width has another number of blocks."""
    _, usual = USUAL_SIZES.get(config.hidden_size, (0, config.num_hidden_layers))
    if usual == config.num_hidden_layers:
        return []
    return [f"The {model} of this width has {usual} blocks, this file {config.num_hidden_layers}: is it whole?"]


def grouped(names: Iterable[str]) -> list[str]:
    """Return the names sorted; those that differ in the block's number alone as one, such as `blocks.{0-11}.norm`."""
    groups: dict[str, list[int]] = {}
    for name in map(printable, names):
        match = _BLOCK_NUMBER.search(name)
        template = name if match is None else f"{name[: match.start(2)]}\0{name[match.end(2) :]}"
        groups.setdefault(template, []).extend([] if match is None else [int(match[2])])
    return sorted(
        template.replace("\0", f"{{{spans(numbers)}}}" if len(numbers) > 1 else "".join(map(str, numbers)))
        for template, numbers in groups.items()
    )


def listed(names: Iterable[str]) -> str:
    """Return the names in one line, grouped and cut to twenty."""
    groups = grouped(names)
    more = f" and {len(groups) - _MAX_LISTED} more" if len(groups) > _MAX_LISTED else ""
    return ", ".join(groups[:_MAX_LISTED]) + more


def printable(name: str) -> str:
    """Return a name with control characters escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in name)


def one_line(problem: BaseException) -> str:
    """Return the message of an exception without line breaks, cut to 200 characters."""
    return printable(" ".join(str(problem).split())[:_MAX_CHARACTERS])


def spans(numbers: Iterable[int]) -> str:
    """Return numbers as spans, such as `0-2,5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
