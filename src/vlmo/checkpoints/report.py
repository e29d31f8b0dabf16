"""What an import found, in words for people."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vlmo.model import VLMoConfig, VLMoForVisualQuestionAnswering

_BLOCK_NUMBER = re.compile(r"(blocks|layers|layer)\.(\d+)\.")
_MAX_LISTED, _MAX_CHARACTERS = 20, 200


@dataclass(frozen=True)
class ImportReport:
    """What was found and what became of it.

    Attributes:
        dtype: Of the weights, as in the file.
        text_length: Longest text that the processor makes; None without a text side.
        num_loaded: Tensors of the model that came from the file.
        unused: Published keys that are known and have no place in the model.
        left_out: Published keys that nobody knows (only with `allow_partial`).
        created: Our names of what the file does not hold; started anew from a fixed seed.
        resized: Our names of position tables that were brought to another size.
        file_image_size: Picture size of the file, in pixels.
    """

    folder: Path
    kind: str
    model_class: str
    config: VLMoConfig
    dtype: str
    num_parameters: int
    text_length: int | None
    num_loaded: int
    unused: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    file_image_size: int | None = None
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """What was found, as pairs of a word and a value."""
        config = self.config
        fused = f"vision_language in the top {config.num_fusion_layers}"
        if not config.num_fusion_layers:
            fused = "no vision_language"
        resized = f" ({self.file_image_size} in the file)" if self.resized else ""
        rows = [
            ("found", self.kind),
            ("model", f"{self.model_class}, {self.num_parameters / 1e6:.1f} M parameters, {self.dtype}"),
            ("width, layers, heads", f"{config.hidden_size}, {config.num_hidden_layers}, {config.num_attention_heads}"),
            ("experts", f"{config.intermediate_size} wide; {fused}"),
            ("picture", f"{config.image_size} px{resized}, patches of {config.patch_size} px"),
            ("positions", config.position_embedding),
        ]
        if self.text_length is not None:
            rows.append(("text", f"{self.text_length} tokens, vocabulary of {config.vocab_size}"))
        if self.model_class == VLMoForVisualQuestionAnswering.__name__:
            rows.append(("answers", f"{config.num_labels}"))
        return [*rows, ("tensors used", f"{self.num_loaded}")]

    def lines(self) -> list[str]:
        """Every key that was not simply loaded, and notes."""
        lines = [f"resized: {name}" for name in grouped(self.resized)]
        lines += [f"in the file, without a use: {key}" for key in grouped(self.unused)]
        lines += [f"in the file, not known, left out: {key}" for key in grouped(self.left_out)]
        lines += [f"not in the file, started anew: {name}" for name in grouped(self.created)]
        return lines + [f"note: {note}" for note in self.notes]


def grouped(names: Iterable[str]) -> list[str]:
    """The same names, sorted; those that differ in the block's number alone are one, such as `blocks.{0-11}.norm`."""
    groups: dict[str, list[int]] = {}
    plain: list[str] = []
    for name in map(printable, names):
        if match := _BLOCK_NUMBER.search(name):
            groups.setdefault(f"{name[: match.start(2)]}{{}}{name[match.end(2) :]}", []).append(int(match[2]))
        else:
            plain.append(name)
    return sorted(plain + [_with_numbers(template, sorted(numbers)) for template, numbers in groups.items()])


def listed(names: Iterable[str]) -> str:
    """The same names in one line: grouped, and no more than a person reads."""
    groups = grouped(names)
    more = f" and {len(groups) - _MAX_LISTED} more" if len(groups) > _MAX_LISTED else ""
    return ", ".join(groups[:_MAX_LISTED]) + more


def printable(name: str) -> str:
    """A name out of a file as it is, but for what would steer a terminal or break the line."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in name)


def one_line(problem: BaseException) -> str:
    """What an exception of a library says, without its line breaks and not too long."""
    return printable(" ".join(str(problem).split())[:_MAX_CHARACTERS])


def spans(numbers: Iterable[int]) -> str:
    """Numbers in words, such as `0-2,5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _with_numbers(template: str, numbers: list[int]) -> str:
    if len(numbers) == 1:
        return template.replace("{}", str(numbers[0]), 1)
    return template.replace("{}", f"{{{spans(numbers)}}}", 1)
