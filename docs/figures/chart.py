"""Dual beside fusion encoder after the quickstart: median and range over seeds, from `vlmo/recipes/quickstart.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from figures.svg import Canvas

RUNS = Path(__file__).resolve().parents[2] / "src" / "vlmo" / "recipes" / "quickstart.json"
ENCODERS = {"Dual encoder": "vision", "Fusion encoder": "vision_language"}
ROWS = {
    "Text to image R@1": "find the image of a text among 1,000",
    "Image to text R@1": "find the text of an image among 1,000",
    "Crowded scenes, text to image R@1": "the image, among 1,000 crowded scenes",
    "Crowded scenes, image to text R@1": "the text, among 1,000 crowded scenes",
    "Caption or one with another shape": "which caption is true: another shape",
    "Caption or one with another color": "another color",
    "Caption or one with the opposite side": "left or right, above or below",
    "Caption or one with two swapped": "two things exchanged",
    "Caption or a longer half-truth": "a longer one with a wrong detail",
}
"""Rows of the quickstart's table that both encoders have, and their words here."""
_LEFT, _SCALE, _TOP, _ROW, _RIGHT = 270, 4.1, 58, 46, 30


def ranges() -> dict[str, Any]:
    """Return the table of the quickstart's runs: encoder, row, and "median", "lowest" and "highest" as fractions."""
    found = json.loads(RUNS.read_text(encoding="utf-8"))
    return found | {"summary": {name: found["summary"][name] for name in (*ENCODERS, "Chance")}}


def comparison() -> str:
    """Return a row for each measure: a bar from the lowest to the highest seed, a dot at the median, chance dashed."""
    runs = ranges()
    bottom = _TOP + len(ROWS) * _ROW
    width, height = _LEFT + 100 * _SCALE + _RIGHT, bottom + 48
    canvas = Canvas(
        width, height, name="comparison", title="Dual and fusion encoder after the quickstart"
    )
    x = _LEFT
    for name, kind in ENCODERS.items():
        canvas.circle(x + 6, 20, 6, kind=f"dot {kind}")
        canvas.text(name.lower(), x=x + 18, y=24.5, anchor="start")
        x += 120
    canvas.path(f"M{x + 6:g} 13V27", kind="chance")
    canvas.text("chance", x=x + 14, y=24.5, anchor="start")
    for percent in range(0, 101, 20):
        canvas.path(f"M{_LEFT + percent * _SCALE:g} {_TOP - 10}V{bottom}", kind="grid")
        canvas.text(f"{percent} %", x=_LEFT + percent * _SCALE, y=bottom + 18, kind="small faint")
    sentences = []
    for line, (row, words) in enumerate(ROWS.items()):
        y = _TOP + line * _ROW
        canvas.text(words, x=_LEFT - 14, y=y + 17, anchor="end")
        chance = 100 * runs["summary"]["Chance"][row]["median"]
        canvas.path(f"M{_LEFT + chance * _SCALE:g} {y - 3}v32", kind="chance")
        for number, (name, kind) in enumerate(ENCODERS.items()):
            low, middle, high = (
                100 * runs["summary"][name][row][key] for key in ("lowest", "median", "highest")
            )
            level = y + 5 + 15 * number
            facts = {"encoder": name, "row": row, "low": f"{low:.1f}", "high": f"{high:.1f}"}
            canvas.path(
                f"M{_LEFT + low * _SCALE:g} {level}H{_LEFT + high * _SCALE:g}",
                kind=f"range {kind}-line",
            )
            canvas.circle(
                _LEFT + middle * _SCALE,
                level,
                6,
                kind=f"dot {kind}",
                median=f"{middle:.1f}",
                **facts,
            )
            sentences.append(f"{words}, {name.lower()}: {middle:.1f} % ({low:.1f} to {high:.1f}).")
    seeds = len(runs["seeds"])
    canvas.text(
        f"dot: median; bar: lowest to highest; seeds: {seeds}",
        x=_LEFT,
        y=bottom + 38,
        kind="small",
        anchor="start",
    )
    return canvas.finished(about=" ".join(sentences))
