"""Figures as files of their own, for README and pages: `python docs/figures/images.py` writes them into docs/images."""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(DOCS))

from figures import flow  # noqa: E402
from figures.chart import comparison  # noqa: E402
from figures.effects import forest  # noqa: E402
from figures.routing import blocks  # noqa: E402
from figures.svg import DARK, LIGHT, RULES, with_colors  # noqa: E402

# Converters take names of fonts alone, not "system-ui".
_FONTS = "system-ui, Arial, Helvetica, Liberation Sans, DejaVu Sans, sans-serif"
_GAP = 20


def alone(*figures: str, title: str) -> str:
    """Return figures side by side as one SVG, with a background and a style for dark pages."""
    dark = "\n".join(
        f"{selector} {{{with_colors(declarations, DARK)}}}" for selector, declarations in RULES
    )
    sizes = [
        tuple(map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', each).groups()))
        for each in figures
    ]
    width = sum(size[0] for size in sizes) + _GAP * (len(sizes) + 1)
    height = max(size[1] for size in sizes) + 2 * _GAP
    x, parts = _GAP, []
    for (wide, high), figure in zip(sizes, figures, strict=True):
        parts.append(figure.replace("<svg ", f'<svg x="{x:g}" y="{_GAP}" height="{high:g}" ', 1))
        x += wide + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="vlmo" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'font-family="{_FONTS}" role="img"><title>{title}</title>\n'
        f"<style>\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n</style>\n"
        f'<rect class="page" width="100%" height="100%" rx="10" fill="{LIGHT["--fig-page"]}"/>\n'
        f"{''.join(parts)}\n</svg>\n"
    )


def images() -> dict[str, str]:
    """Return the files by their names: a Multiway block, charts of results, and what follows what."""
    halves = re.findall(r"<svg.*?</svg>", blocks())
    return {
        "block.svg": alone(*halves, title="Multiway blocks of VLMo-Base with an image-text pair"),
        "comparison.svg": alone(comparison(), title="Dual and fusion encoder after the quickstart"),
        "findings.svg": alone(forest(), title="Effects of the paper's claims at small size"),
        "search-steps.svg": alone(flow.search(), title="How a query is answered"),
        "tutorial.svg": alone(flow.tutorial(), title="From images with captions to search"),
    }


if __name__ == "__main__":
    for name, svg in images().items():
        (DOCS / "images" / name).write_text(svg, encoding="utf-8")
