"""The page of a quickstart: one HTML file that needs nothing else."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib import rc_context
from matplotlib.figure import Figure

from vlmo.folder.atomic import write_file
from vlmo.visualization import data_uri, heat_map

_MAX_POINTS = 60
_COLORS = ("#4c86c6", "#d2703a", "#2f9484", "#8f6fc3")  # these and the gray are legible on white and on black
_GRAY = "#80868f"
_STYLE = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _GRAY),
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top", "text.parse_math"), False),
    "svg.fonttype": "none",  # text stays text
}

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Pairs of step and value by the name of the curve."""


def write_report(path: str | Path, *, title: str, charts: Mapping[str, Curves] | None = None, **parts: Any) -> Path:
    """Write the page with images and curves inside it, and return its path.

    The page loads nothing, runs no script and follows the reader's light or dark preference. All text is escaped. An
    older file is replaced only when the new one is complete.

    Args:
        charts: Curves by the title of their chart.
        parts: Further contents by the names in `report.html`; sections whose contents are missing are left out.
    """
    environment = Environment(
        loader=PackageLoader("vlmo.demo", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = data_uri
    drawn = [(name, chart) for name, curves in (charts or {}).items() if (chart := line_chart(name, curves))]
    page = environment.get_template("report.html").render(title=title, charts=drawn, heat_map=heat_map, **parts)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page)
    return path


def line_chart(title: str, curves: Curves) -> str:
    """Return an image, as HTML, of each curve, neighbors averaged so that at most 60 points are left.

    Args:
        title: Read out before the first and last values.
        curves: Values that are not finite are left out; without any finite value the result is empty.
    """
    shown = {}
    for name, points in curves.items():
        finite = np.array(sorted((step, value) for step, value in points if math.isfinite(value)), dtype=float)
        if len(finite):
            shown[name] = np.array(
                [each.mean(axis=0) for each in np.array_split(finite, min(len(finite), _MAX_POINTS))]
            )
    if not shown:
        return ""
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.subplots()
        for (name, points), color in zip(shown.items(), _COLORS * len(shown), strict=False):
            axes.plot(*points.T, color, clip_on=False, label=f"{name} {points[-1, 1]:.3g}")
        axes.set(xlabel="step")
        axes.grid(visible=True, axis="y", clip_on=False, alpha=0.25)
        axes.legend(frameon=False, labelcolor="linecolor")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue()
    read = "; ".join(f"{name} from {points[0, 1]:.3g} to {points[-1, 1]:.3g}" for name, points in shown.items())
    return f'<div role="img" aria-label="{escape(f"{title}: {read}")}">{svg[svg.index("<svg") :]}</div>'
