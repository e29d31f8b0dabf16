"""Shared parts of the published layouts: tables of names and tasks, sizes from tensor shapes, names in messages."""

from __future__ import annotations

import functools
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
USUAL_SIZES = {768: (12, 12), 544: (16, 24), 1024: (16, 24)}
"""Heads and blocks by width: base, base_plus and large of VLMo, BEiT and BEiT-3."""
OUR_CLASS_TOKEN = "vlmo.image_embeddings.cls_token"
OUR_IMAGE_POSITIONS = "vlmo.image_embeddings.positions"
OUR_TEXT_POSITIONS = "vlmo.text_embeddings.positions"
OUR_TABLE = "vlmo.position_bias.table"
OUR_WORDS = "vlmo.text_embeddings.words.weight"
ATTENTION_NAMES = {
    "norm1.{kind}": "norm1.shared.{kind}",
    "attn.qkv.weight": "attention.qkv.shared.weight",
    "attn.q_bias": "attention.qkv.shared.query_bias",
    "attn.v_bias": "attention.qkv.shared.value_bias",
    "attn.proj.{kind}": "attention.projection.shared.{kind}",
    "gamma_{number}": "gamma_{number}",
}
"""Published names of BEiT and VLMo, and ours, of what a block shares."""
TRUE_FALSE = {"id2label": {0: "False", 1: "True"}, "label2id": {"False": 0, "True": 1}}
"""Settings of a model for NLVR2."""

# Values that a field of a template may have, so that no template takes the keys of another.
_FIELDS = {
    "layer": r"\d+",
    "kind": "weight|bias",
    "number": "[12]",
    "side": "image|text",
    "part": "[qkv]",
}
_BLOCK_NUMBER = re.compile(r"(blocks|layers|layer)\.(\d+)\.")
_MAX_LISTED = 20
_MAX_CHARACTERS = 200


def in_blocks(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return templates of a block's tensors, published and ours, with the block in front."""
    return {prefix + key: f"vlmo.blocks.{{layer}}.{name}" for key, name in names.items()}


def for_experts(names: Mapping[str, str], experts: Mapping[str, str]) -> dict[str, str]:
    """Return the templates with `{expert}` written out, by published names of the experts and ours."""
    return {
        key.replace("{expert}", published): name.replace("{expert}", ours)
        for key, name in names.items()
        for published, ours in experts.items()
    }


@dataclass(frozen=True)
class NameTable:
    """Translation of tensor names by pairs of templates, such as `blocks.{layer}.norm1.{kind}`.

    Attributes:
        names: Published templates and ours.
        prefix: Pattern of a start of published keys that may be left out.
        leftovers: Pattern of published keys without a use in our models, such as index buffers.
    """

    names: Mapping[str, str]
    prefix: str = ""
    leftovers: str = ""

    def ours(self, key: str) -> str | None:
        """Return our name of a published key, or None."""
        return _translate(re.sub(f"^{self.prefix}", "", key), self.names.items())

    def published(self, name: str) -> str | None:
        """Return the published key of one of our names, or None where the layout has no such tensor."""
        return _translate(name, zip(self.names.values(), self.names.keys(), strict=True))


def _translate(name: str, templates: Iterable[tuple[str, str]]) -> str | None:
    for template, target in templates:
        match = _pattern(template).fullmatch(name)
        if match:
            return target.format_map(match.groupdict())
    return None


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(
        re.sub(
            r"\\{(\w+)\\}", lambda part: f"(?P<{part[1]}>{_FIELDS[part[1]]})", re.escape(template)
        )
    )


class Tensors:
    """Tensors of a file under our names.

    Query, key and value matrices of a block are joined, and axes of length one removed where our
    models have none.

    Attributes:
        unused: Published keys of the layout without a use in our model, such as index buffers.
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
            name = names.ours(key)
            if name is not None:
                self._add(name, tensor, key=key)
            elif re.fullmatch(names.leftovers, key):
                self.unused.append(key)
            else:
                self.unknown.append(key)
        self._join_attention()

    def _add(self, name: str, tensor: Tensor, *, key: str) -> None:
        # A prefix may be left out, so a file could hold a tensor under two keys.
        if name in self.weights:
            raise ValueError(
                f"{key} and {self._keys[name]} are two tensors for {name}; VLMo has one"
            )
        # Quantized weights have scales beside them, which nothing here reads.
        if not tensor.is_floating_point():
            raise ValueError(f"{key} holds {tensor.dtype}; expected floating-point numbers")
        # `logit_scale` has one axis here, as FSDP2 takes no scalars.
        if name.endswith("mask_token") or (name.endswith("logit_scale") and tensor.numel() == 1):
            tensor = tensor.reshape(-1)
        elif name == OUR_IMAGE_POSITIONS and tensor.ndim == 3:
            tensor = tensor.squeeze(0)
        self.weights[name] = tensor
        self._keys[name] = key

    def _join_attention(self) -> None:
        for name in list(self.weights):
            if ".attention.q." not in name:
                continue
            parts = [name.replace(".attention.q.", f".attention.{part}.") for part in "qkv"]
            if self.weights.keys() >= set(parts):
                # Three (dim, dim) matrices -> (3 * dim, dim), query, key, value.
                joined = torch.cat(list(map(self.weights.pop, parts)))
                self.weights[name.replace(".attention.q.", ".attention.qkv.")] = joined

    def leave_out(self, prefix: str) -> None:
        """Move the tensors whose names, ours, begin so from the weights to the unused keys."""
        for name in list(self.weights):
            if name.startswith(prefix):
                del self.weights[name]
                self.unused.append(self._keys[name])

    def shape(self, name: str, *, axes: int) -> tuple[int, ...]:
        """Return a shape, by our name; ValueError for a missing tensor, an empty one, or other than `axes` axes."""
        key = self._keys.get(name) or self.names.published(name)
        if name not in self.weights:
            raise ValueError(
                f"{key} is not there, and tells sizes of the model. Is the file whole?"
            )
        shape = tuple(self.weights[name].shape)
        if len(shape) != axes or 0 in shape:
            raise ValueError(f"{key} has shape {shape}; expected {axes} axes, none of them empty")
        return shape

    def rows(self, name: str) -> int:
        """Return the number of rows of a matrix, by our name; ValueError as `shape`."""
        return self.shape(name, axes=2)[0]


@dataclass
class Conversion:
    """Published checkpoint under our names, on its way into a model folder.

    Attributes:
        kind: For people, for example `"VLMo, fine-tuned on VQA"`.
        tensors: At the shapes that `config` gives.
        created: Pattern of our names of parameters that a file of this kind never holds.
        missing: Our names of parameters that this file does not hold; initialized from a fixed
            seed.
        max_text_length: Longest text in tokens; None without a text side.
        text: Tokenizer of the word table; None without a text side.
        imagenet_pixels: True if the file takes pixels normalized by ImageNet's mean and deviation,
            not by 0.5.
        notes: Sentences for the person who imports.
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
        numbers = sum(tensor.numel() for tensor in self.weights.values())
        texts = (
            "no texts"
            if self.max_text_length is None
            else f"texts of up to {self.max_text_length} tokens"
        )
        return [
            f"found: {self.kind}, {numbers / 1e6:.1f} M parameters",
            f"model: {self.model_class.__name__} for images of {self.config.image_size} px and {texts}",
            *(f"in the file, without a use: {name}" for name in grouped(self.tensors.unused)),
            *(f"not in the file, started anew: {name}" for name in grouped(self.missing)),
            *(f"note: {note}" for note in self.notes),
        ]


@dataclass(frozen=True, eq=False)
class HeadTask:
    """A task of a layout, told by the modules, under our names, that its files have: its `heads`."""

    title: str
    heads: tuple[str, ...]
    model_class: type[VLMoPreTrainedModel]
    settings: Mapping[str, Any] = field(default_factory=dict)


# Setting of `VLMoConfig` that the first axis of a head's tensor tells.
_SIZES_OF_HEADS = {
    "answer_head": ("num_labels", "answer_head.classifier.weight"),
    "classifier": ("num_labels", "classifier.weight"),
    "contrast_head": ("projection_size", "contrast_head.image_projection.weight"),
    "mim_head.decoder": ("num_visual_tokens", "mim_head.decoder.weight"),
}


def find_head(tasks: Sequence[HeadTask], tensors: Tensors) -> tuple[HeadTask, dict[str, Any]]:
    """Return the first task whose heads are all there, and the settings that the heads tell."""
    # Heads are named by their module, `answer_head`, or by a part of it, `mim_head.decoder`.
    modules = set()
    for name in tensors.weights:
        modules |= {name.partition(".")[0], name.rpartition(".")[0]}
    task = next(task for task in tasks if modules.issuperset(task.heads))
    settings = dict(task.settings)
    for head in task.heads:
        if head in _SIZES_OF_HEADS:
            setting, name = _SIZES_OF_HEADS[head]
            settings[setting] = tensors.rows(name)
    return task, settings


def common_sizes(
    tensors: Tensors, *, columns: int | None = None, num_attention_heads: int | None
) -> dict[str, Any]:
    """Return the settings of `VLMoConfig` that the tensors of every layout tell.

    Args:
        columns: Of the position table, for all layers; None without one.
        num_attention_heads: By default those of the published models of this width, or of the table.

    Raises:
        ValueError: A tensor or a block is missing, or the number of heads is unknown or does not fit.
    """
    projection = "vlmo.image_embeddings.projection.weight"
    width, channels, patch_size, _ = tensors.shape(projection, axes=4)
    matches = filter(None, map(_BLOCK_NUMBER.search, tensors.weights))
    blocks = {int(match[2]) for match in matches}
    depth = len(blocks)
    # A file that was cut off lacks the last blocks, or some in between.
    if not blocks or max(blocks) != depth - 1:
        raise ValueError(
            f"blocks are numbered {sorted(blocks)}; expected 0 and on without gaps. Is the file whole?"
        )
    heads = num_attention_heads or _usual_heads(width, depth=depth, columns=columns)
    if columns not in {None, heads * depth}:
        raise ValueError(
            f"the position table has {columns} columns, which do not fit {depth} layers of {heads} heads. Is the file"
            " whole? Else give --num-attention-heads"
        )
    # BEiT's base and large start so; only a newly initialized model reads it.
    layer_scale = 0.1 if depth <= 12 else 1e-5
    has_scale = "vlmo.blocks.0.gamma_1" in tensors.weights
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": tensors.rows("vlmo.blocks.0.experts.vision.fc1.weight"),
        "patch_size": patch_size,
        "num_channels": channels,
        "layer_scale_init": layer_scale if has_scale else None,
    }


def _usual_heads(width: int, *, depth: int, columns: int | None) -> int:
    """Return the heads of published models of this width, else those that a position table has."""
    if width in USUAL_SIZES:
        return USUAL_SIZES[width][0]
    if columns is None or columns < depth:
        raise ValueError(
            f"no tensor tells the attention heads of a model of width {width}; --num-attention-heads"
        )
    return columns // depth


def grid_side(name: str, rows: int, *, num_fixed: int, relative: bool = False) -> int:
    """Return the patches along a side of a square image, by the rows of its positions beside `num_fixed` others.

    ValueError unless the rows are w^2, or, of a relative table, (2w-1)^2 for an image of w x w
    patches.
    """
    # Positions of a square image form a square, and relative positions one of odd side.
    side = isqrt(max(rows - num_fixed, 0))
    if side == 0 or side * side != rows - num_fixed or (relative and side % 2 == 0):
        square = "(2w-1)^2" if relative else "w^2"
        raise ValueError(
            f"{name} has {rows} rows; expected {square} + {num_fixed} for an image of w x w patches"
        )
    return (side + 1) // 2 if relative else side


def note_on_depth(model: str, config: VLMoConfig) -> list[str]:
    """Return a note where a model of a published width has another number of blocks."""
    depth = config.num_hidden_layers
    _, usual = USUAL_SIZES.get(config.hidden_size, (0, depth))
    if usual == depth:
        return []
    return [f"The {model} of this width has {usual} blocks, this file {depth}: is it whole?"]


def grouped(names: Iterable[str]) -> list[str]:
    """Return the names sorted; those that differ in the block's number alone as one, such as `blocks.*.norm (12)`."""
    groups: dict[str, list[str]] = {}
    for name in map(printable, names):
        groups.setdefault(_BLOCK_NUMBER.sub(r"\1.*.", name), []).append(name)
    return sorted(
        members[0] if len(members) == 1 else f"{group} ({len(members)})"
        for group, members in groups.items()
    )


def listed(names: Iterable[str]) -> str:
    """Return the names in one line, grouped and cut to twenty."""
    groups = grouped(names)
    more = len(groups) - _MAX_LISTED
    text = ", ".join(groups[:_MAX_LISTED])
    return f"{text} and {more} more" if more > 0 else text


def printable(name: str) -> str:
    """Return a name with control characters escaped."""
    return repr(name)[1:-1]


def one_line(problem: BaseException) -> str:
    """Return the message of an exception without line breaks, cut to 200 characters."""
    return printable(" ".join(str(problem).split())[:_MAX_CHARACTERS])
