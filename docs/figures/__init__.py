"""Figures of the explanations, drawn from the code that they explain whenever the site is built."""

from __future__ import annotations

from collections.abc import Callable

from figures.attention import maps
from figures.negatives import matrix
from figures.routing import blocks, layers
from figures.stages import stacks

FIGURES: dict[str, Callable[[], str]] = {
    "blocks": blocks,
    "layers": layers,
    "stages": stacks,
    "negatives": matrix,
    "attention": maps,
}
"""Figures by the name in a page's line "Figure: NAME"."""


def html(name: str) -> str:
    """The figure as HTML without an empty line, which would end it for Markdown.

    Raises:
        ValueError: There is no such figure.
    """
    if name not in FIGURES:
        raise ValueError(f"there is no figure {name!r}; docs/figures has {', '.join(FIGURES)}")
    return f'<figure class="vlmo" data-search-exclude>{FIGURES[name]()}</figure>'
