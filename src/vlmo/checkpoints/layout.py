"""Shared parts of the published layouts: tables of names and tasks, sizes from tensor shapes, names in messages."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
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
USUAL_SIZES = {768: (12, 12), 544: (16, 24), 1024: (16, 24)}
"""Heads and blocks by width: base, base_plus and large of VLMo, BEiT and BEiT-3."""
OUR_IMAGE_POSITIONS = "vlmo.image_embeddings.positions"
OUR_TEXT_POSITIONS = "vlmo.text_embeddings.positions"
OUR_TABLE = "vlmo.position_bias.table"
OUR_WORDS = "vlmo.text_embeddings.words.weight"
ATTENTION_NAMES = (
    ("norm1.{kind}", "norm1.shared.{kind}"),
    ("attn.qkv.weight", "attention.qkv.shared.weight"),
    ("attn.q_bias", "attention.qkv.shared.query_bias"),
    ("attn.v_bias", "attention.qkv.shared.value_bias"),
    ("attn.proj.{kind}", "attention.projection.shared.{kind}"),
    ("gamma_{number}", "gamma_{number}"),
)
"""Published names of BEiT and VLMo, and ours, of what a block shares."""
TRUE_FALSE = {"id2label": {0: "False", 1: "True"}, "label2id": {"False": 0, "True": 1}}
"""Settings of a model for NLVR2."""

_PARTS = {
    "layer": r"\d+",
    "kind": "weight|bias",
    "number": "[12]",
    "side": "image|text",
    "part": "[qkv]",
    "expert": r"\w+",
}
_BLOCK_NUMBER = re.compile(r"(blocks|layers|layer)\.(\d+)\.")
_MAX_LISTED = 20
_MAX_CHARACTERS = 200


class NameTable:
    """Translation of tensor names by pairs of templates, published and ours, such as `blocks.{layer}.norm1.{kind}`.

    Args:
        experts: Published names of the experts and ours, for `{expert}`.
        prefix: Pattern of a start of published keys that may be left out.
        leftovers: Pattern of published keys that are known and of no use to our models, such as index buffers.
    """

    def __init__(
        self,
        names: Sequence[tuple[str, str]],
        *,
        experts: Mapping[str, str] | None = None,
        prefix: str = "",
        leftovers: str = "",
    ) -> None:
        self._experts = dict(experts or {})
        self._to_ours = [(_compile(published, prefix=prefix), ours) for published, ours in names]
        self._to_published = [(_compile(ours), published) for published, ours in names]
        self.leftovers = re.compile(leftovers)

    def ours(self, key: str) -> str | None:
        """Return our name of a published key, or None."""
        return _translate(key, self._to_ours, self._experts)

    def published(self, name: str) -> str | None:
        """Return the published key of one of our names, or None where the layout has no such tensor."""
        return _translate(
            name, self._to_published, {ours: published for published, ours in self._experts.items()}
        )


def _compile(template: str, *, prefix: str = "") -> re.Pattern[str]:
    parts = re.sub(
        r"\\{(\w+)\\}", lambda part: f"(?P<{part[1]}>{_PARTS[part[1]]})", re.escape(template)
    )
    return re.compile(f"({prefix})?{parts}")


def _translate(
    name: str, rules: Iterable[tuple[re.Pattern[str], str]], experts: Mapping[str, str]
) -> str | None:
    for pattern, template in rules:
        if match := pattern.fullmatch(name):
            parts = match.groupdict()
            if "expert" in parts and (expert := experts.get(parts["expert"])) is None:
                return None
            return template.format(**parts | ({"expert": expert} if "expert" in parts else {}))
    return None


class Tensors:
    """Tensors of a file under our names.

    Query, key and value matrices of a block are joined, and axes of length one removed where our models have none.

    Attributes:
        unused: Published keys that are known and of no use to our model, such as index buffers.
        unknown: Published keys that the layout does not have.

    Raises:
        ValueError: Two keys have one name, or a tensor holds no floating-point numbers.
    """

    def __init__(self, state_dict: Mapping[str, Tensor], names: NameTable) -> None:
        self.names = names
        self.weights: dict[str, Tensor] = {}
        self.unused: list[str] = []
        self.unknown: list[str] = []
        self._keys: dict[str, str] = {}
        for key, tensor in state_dict.items():
            if (name := names.ours(key)) is None:
                (self.unused if names.leftovers.fullmatch(key) else self.unknown).append(key)
                continue
            if name in self.weights:
                raise ValueError(
                    f"{key} and {self._keys[name]} are two tensors for {name}; VLMo has one"
                )
            if not tensor.is_floating_point():
                raise ValueError(f"{key} holds {tensor.dtype}; expected floating-point numbers")
            if (name.endswith("logit_scale") and tensor.numel() == 1) or name.endswith(
                "mask_token"
            ):
                tensor = tensor.reshape(-1)
            elif name == OUR_IMAGE_POSITIONS and tensor.ndim == 3 and len(tensor) == 1:
                tensor = tensor[0]
            self.weights[name] = tensor
            self._keys[name] = key
        for name in [name for name in self.weights if ".attention.q." in name]:
            parts = [name.replace(".attention.q.", f".attention.{part}.") for part in "qkv"]
            if all(part in self.weights for part in parts):
                joined = torch.cat([self.weights.pop(part) for part in parts])
                self.weights[name.replace(".attention.q.", ".attention.qkv.")] = joined

    def leave_out(self, names: Collection[str]) -> None:
        """Move tensors, by our names, from the weights to the unused keys."""
        for name in [name for name in self.weights if name in names]:
            del self.weights[name]
            self.unused.append(self._keys[name])

    def shape(self, name: str, *, axes: int) -> tuple[int, ...]:
        """Return a shape, by our name; ValueError if the tensor is missing, or has not `axes` axes, or an empty one."""
        shown = self._keys.get(name) or self.names.published(name) or name
        if name not in self.weights:
            raise ValueError(
                f"{shown} is not there, and tells sizes of the model. Is the file whole?"
            )
        shape = tuple(self.weights[name].shape)
        if len(shape) != axes or 0 in shape:
            raise ValueError(f"{shown} has shape {shape}; expected {axes} axes, none of them empty")
        return shape


@dataclass
class Conversion:
    """Published checkpoint under our names, on its way into a model folder.

    Attributes:
        kind: For people, for example `"VLMo, fine-tuned on VQA"`.
        tensors: At the shapes that `config` gives.
        created: Pattern of our names of parameters that a file of this kind never holds.
        missing: Our names of parameters that this file does not hold; initialised from a fixed seed.
        max_text_length: Longest text in tokens; None without a text side.
        text: Tokenizer of the word table; None without a text side.
        imagenet_pixels: True if the file takes pixels normalised by ImageNet's mean and deviation, not by 0.5.
        notes: One sentence each, for the person who imports.
    """

    kind: str
    tensors: Tensors
    model_class: type[VLMoPreTrainedModel]
    config: VLMoConfig
    created: str = ""
    missing: list[str] = field(default_factory=list)
    max_text_length: int | None = None
    text: Literal["wordpiece", "sentencepiece"] | None = None
    imagenet_pixels: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Weights by our names."""
        return self.tensors.weights

    def lines(self) -> list[str]:
        """Return kind and sizes, every key that was not simply loaded, and the notes."""
        config = self.config
        numbers = sum(tensor.numel() for tensor in self.weights.values())
        groups = {
            "in the file, without a use": self.tensors.unused,
            "not in the file, started anew": self.missing,
        }
        texts = (
            "no texts"
            if self.max_text_length is None
            else f"texts of up to {self.max_text_length} tokens"
        )
        return [
            f"found: {self.kind}, {numbers / 1e6:.1f} M parameters",
            f"model: {self.model_class.__name__} for images of {config.image_size} px and {texts}",
            *(f"{words}: {name}" for words, names in groups.items() for name in grouped(names)),
            *(f"note: {note}" for note in self.notes),
        ]


@dataclass(frozen=True, eq=False)
class HeadTask:
    """A task of a layout, known by `heads`, modules by our names, that its files have; first come, first served."""

    title: str
    heads: tuple[str, ...]
    model_class: type[VLMoPreTrainedModel]
    settings: Mapping[str, Any] = field(default_factory=dict)


_SIZES_OF_HEADS = {
    "answer_head": ("num_labels", "answer_head.classifier.weight"),
    "classifier": ("num_labels", "classifier.weight"),
    "contrast_head": ("projection_size", "contrast_head.image_projection.weight"),
    "mim_head.decoder": ("num_visual_tokens", "mim_head.decoder.weight"),
}
"""Setting of `VLMoConfig` that the first axis of a head's tensor tells."""


def find_head(tasks: Sequence[HeadTask], tensors: Tensors) -> tuple[HeadTask, dict[str, Any]]:
    """Return the first task whose heads are all there, and the settings that the heads tell."""
    there = {
        part
        for name in tensors.weights
        for part in (name.rpartition(".")[0], name.partition(".")[0])
    }
    task = next(task for task in tasks if there.issuperset(task.heads))
    sizes = (_SIZES_OF_HEADS[head] for head in task.heads if head in _SIZES_OF_HEADS)
    return task, {**task.settings, **{size: tensors.shape(name, axes=2)[0] for size, name in sizes}}


def common_sizes(
    tensors: Tensors, *, columns: int | None, num_attention_heads: int | None
) -> dict[str, Any]:
    """Return the settings of `VLMoConfig` that the tensors of every layout tell.

    Args:
        columns: Of the position table, for all layers; None without one.
        num_attention_heads: As asked for; by default those of the published models of this width, or of the table.

    Raises:
        ValueError: A tensor is missing, blocks are, or the number of heads is unknown or does not fit.
    """
    width, channels, patch_size, _ = tensors.shape(
        "vlmo.image_embeddings.projection.weight", axes=4
    )
    blocks = {int(match[2]) for name in tensors.weights if (match := _BLOCK_NUMBER.search(name))}
    if not blocks or max(blocks) != len(blocks) - 1:
        raise ValueError(
            f"blocks are numbered {sorted(blocks)}; expected 0 and on without gaps. Is the file whole?"
        )
    depth = len(blocks)
    heads = (
        num_attention_heads or USUAL_SIZES.get(width, (None,))[0] or (columns and columns // depth)
    )
    if heads is None:
        raise ValueError(
            f"no tensor tells the attention heads of a model of width {width}; --num-attention-heads"
        )
    if columns not in {None, heads * depth}:
        raise ValueError(
            f"the position table has {columns} columns, which do not fit {depth} layers of {heads} heads. Is the file"
            " whole? Else give --num-attention-heads"
        )
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": tensors.shape("vlmo.blocks.0.experts.vision.fc1.weight", axes=2)[0],
        "patch_size": patch_size,
        "num_channels": channels,
        # Of BEiT's base and large; only a newly initialised model reads it.
        "layer_scale_init": (0.1 if depth <= 12 else 1e-5)
        if "vlmo.blocks.0.gamma_1" in tensors.weights
        else None,
    }


def grid_side(name: str, rows: int, *, num_fixed: int, relative: bool = False) -> int:
    """Return the patches along a side of a square image, by the rows of its positions beside `num_fixed` others.

    ValueError unless the rows are w^2, or, of a relative table, (2w-1)^2 for an image of w x w patches.
    """
    side = isqrt(max(rows - num_fixed, 0))
    if side == 0 or side * side != rows - num_fixed or (relative and side % 2 == 0):
        square = "(2w-1)^2" if relative else "w^2"
        raise ValueError(
            f"{name} has {rows} rows; expected {square} + {num_fixed} for an image of w x w patches"
        )
    return (side + 1) // 2 if relative else side


def note_on_depth(model: str, config: VLMoConfig) -> list[str]:
    """Return a note where a model of a published width has another number of blocks."""
    _, usual = USUAL_SIZES.get(config.hidden_size, (0, config.num_hidden_layers))
    if usual == config.num_hidden_layers:
        return []
    return [
        f"The {model} of this width has {usual} blocks, this file {config.num_hidden_layers}: is it whole?"
    ]


def grouped(names: Iterable[str]) -> list[str]:
    """Return the names sorted; those that differ in the block's number alone as one, such as `blocks.*.norm (12)`."""
    groups: dict[str, list[str]] = {}
    for name in map(printable, names):
        groups.setdefault(_BLOCK_NUMBER.sub(r"\1.*.", name), []).append(name)
    return sorted(
        found[0] if len(found) == 1 else f"{group} ({len(found)})"
        for group, found in groups.items()
    )


def listed(names: Iterable[str]) -> str:
    """Return the names in one line, grouped and cut to twenty."""
    groups = grouped(names)
    more = f" and {len(groups) - _MAX_LISTED} more" if len(groups) > _MAX_LISTED else ""
    return ", ".join(groups[:_MAX_LISTED]) + more


def printable(name: str) -> str:
    """Return a name with control characters escaped."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in name
    )


def one_line(problem: BaseException) -> str:
    """Return the message of an exception without line breaks, cut to 200 characters."""
    return printable(" ".join(str(problem).split())[:_MAX_CHARACTERS])
