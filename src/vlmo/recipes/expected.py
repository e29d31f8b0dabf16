"""Results of the quickstart over several seeds, as `experiments/quickstart_seeds.py` wrote them."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any

FILE = "quickstart.json"
DUAL, FUSION = "Dual encoder", "Fusion encoder"
IMAGE_RECALL, TEXT_RECALL, SIDES = "Text to image R@1", "Image to text R@1", "Caption or one with the opposite side"
QUESTIONS, STATEMENTS = "Questions", "Two scenes, true or false"
"""Columns and rows of the quickstart's table."""


@functools.cache
def quickstart_runs() -> dict[str, Any]:
    """Return the file: `summary` by column and row of the quickstart's table, the tables of all seeds, the machine."""
    return json.loads((files("vlmo.recipes") / FILE).read_text(encoding="utf-8"))


def over_seeds(column: str, row: str) -> str:
    """Return a cell of the quickstart's table in percent as "MEDIAN (LOWEST to HIGHEST)"."""
    cell = quickstart_runs()["summary"][column][row]
    median, lowest, highest = (f"{100 * cell[name]:.1f}" for name in ("median", "lowest", "highest"))
    return f"{median} ({lowest} to {highest})"


def which_runs() -> str:
    """Return what the numbers are of, such as "median (lowest to highest) of 5 seeds, Intel Xeon"."""
    runs = quickstart_runs()
    return f"median (lowest to highest) of {len(runs['seeds'])} seeds, {runs['hardware']['cpu']}"
