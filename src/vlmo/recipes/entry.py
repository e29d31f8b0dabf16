"""A recipe with its description."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from vlmo.recipes.schema import Recipe

_INDENT = 9


@dataclass(frozen=True)
class Entry:
    """A row of the tables of recipes.

    Attributes:
        about: One sentence.
        expect: Numbers to expect with their conditions, or those that the paper reports.
        data: Note about the data; `{source}` stands for their name.
        command: The command that trains it; `{name}` stands for the recipe's.
        notes: Further sentences.
    """

    recipe: Recipe
    about: str
    expect: str
    data: str = "{source}."
    command: str = "vlmo train {name}"
    notes: str = ""

    def describe(self, name: str) -> str:
        """Return the description under the recipe's name: what it trains, data, start, command, numbers."""
        recipe, targets = self.recipe, getattr(self.recipe.stage, "visual_tokenizer", None)
        source = recipe.data.source or recipe.data.streams.patterns[0]
        fields = {
            "Data:": self.data.format(source=source),
            "Targets:": None if targets is None else f"tokens of the visual tokenizer in {targets}.",
            "Start:": None if recipe.init is None else f"the model folder {recipe.init}.",
            "Run:": self.command.format(name=name),
            "Expect:": self.expect,
        }
        lines = [line for line in (self.about, self.notes) if line]
        for field, value in fields.items():
            if value is not None:
                wrapped = textwrap.wrap(value, 110, break_long_words=False, break_on_hyphens=False)
                lines.append(
                    textwrap.indent("\n".join(wrapped), " " * _INDENT).replace(" " * _INDENT, f"{field:<{_INDENT}}", 1)
                )
        return "\n".join(lines)
