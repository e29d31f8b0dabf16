"""Shared parts of the published layouts: name tables, sizes from tensor shapes, and names in messages."""

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
OUR_TABLE = "vlmo.position_bias.table"

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
        unused: Published keys that are known and have no place in our model, such as index buffers.
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
            if "expert" in parts:
                if parts["expert"] not in experts:
                    return None
                parts["expert"] = experts[parts["expert"]]
            return template.format(**parts)
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
    _join_projections(named)
    return named, keys


def _join_projections(weights: dict[str, Tensor]) -> None:
    """Join query, key and value matrices of each block into one, in place; ValueError if the three are not alike."""
    for name in [name for name in weights if re.fullmatch(r"vlmo\.blocks\.\d+\.attention\.q\.\w+\.weight", name)]:
        parts = [name.replace(".attention.q.", f".attention.{part}.") for part in "qkv"]
        if all(part in weights for part in parts):
            matrices = {part: weights.pop(part) for part in parts}
            check_alike(matrices)
            weights[name.replace(".attention.q.", ".attention.qkv.")] = torch.cat(list(matrices.values()))


def check_alike(parts: Mapping[str, Tensor]) -> None:
    """Raise ValueError if tensors cannot be joined: no matrices, of several shapes, or not floating point."""
    shapes = {tuple(tensor.shape) for tensor in parts.values()}
    for key, tensor in parts.items():
        if tensor.ndim != 2 or len(shapes) > 1:
            raise ValueError(f"{key} and its likes have shapes {sorted(shapes)}; expected two axes, the same for all")
        if not tensor.is_floating_point():
            raise ValueError(f"weights are no floating-point numbers: {key}")


def shape_of(
    state_dict: Mapping[str, Tensor], key: str, *, axes: int, names: NameTable | None = None
) -> tuple[int, ...]:
    """Return the shape of a tensor.

    Args:
        axes: Number of axes that it must have.
        names: Names of a layout, whose one for `key` messages show; by default they show the key.

    Raises:
        ValueError: The tensor is missing, or has another number of axes or an empty one.
    """
    shown = (names and names.published(key)) or key
    if key not in state_dict:
        raise ValueError(f"{shown} is not there; the sizes of the model cannot be read without it. Is the file whole?")
    shape = tuple(state_dict[key].shape)
    if len(shape) != axes or 0 in shape:
        raise ValueError(f"{shown} has shape {shape}; expected {axes} axes, none of them empty")
    return shape


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


def count_blocks(names: Iterable[str]) -> int:
    """Return the number of blocks by the names of their tensors; ValueError if it is not 0 and on without gaps."""
    found = {int(match[2]) for name in names if (match := _BLOCK_NUMBER.search(name))}
    if not found or max(found) != len(found) - 1:
        raise ValueError(f"blocks are numbered {spans(found)}; expected 0 and on without gaps. The file is incomplete")
    return len(found)


def count_heads(columns: int | None, *, width: int, depth: int, asked: int | None) -> int:
    """Return the attention heads by the columns of the position table, or by the width; ValueError if unknown."""
    usual, _ = USUAL_SIZES.get(width, (None, None))
    if columns is None:
        if (known := asked or usual) is None:
            raise ValueError(f"no tensor tells the attention heads of a model of width {width}; --num-attention-heads")
        return known
    heads = columns // depth
    if columns % depth or asked not in {None, heads}:
        wanted = "" if asked is None else f" of {asked} heads"
        raise ValueError(f"the position table has {columns} columns, which do not fit {depth} layers{wanted}")
    if asked is None and usual not in {None, heads}:
        raise ValueError(
            f"the position table has {columns} columns for {depth} layers, so {heads} heads; published models of width"
            f" {width} have {usual}. Is the file whole? Give --num-attention-heads {heads} if it is"
        )
    return heads


def reasoning_labels(number: int) -> dict[str, Any]:
    """Return the names of the classes of NLVR2 as `VLMoConfig` takes them; their number if it is not two."""
    if number != 2:
        return {"num_labels": number}
    return {"id2label": {0: "False", 1: "True"}, "label2id": {"False": 0, "True": 1}}


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
