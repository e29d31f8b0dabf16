"""The report of a quickstart: one HTML file that needs nothing else."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from jinja2 import Environment, PackageLoader
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL.Image import Image

from vlmo.demo.examples import Decision, ImageQuery, TextQuery
from vlmo.folder.atomic import write_file
from vlmo.visualization import data_uri, heat_map

_MAX_POINTS = 60
_COLOURS = ("#4c86c6", "#d2703a", "#2f9484", "#8f6fc3")  # these and the grey are legible on white and on black
_GREY = "#80868f"
_STYLE = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _GREY),
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top", "text.parse_math"), False),
    "svg.fonttype": "none",  # text stays text
}

Points = Float[np.ndarray, "point 2"]


class AttentionMap(NamedTuple):
    """Attention of each word of a text over the patches of an image."""

    image: Image
    words: Sequence[str]
    weights: Float[np.ndarray, "word grid_h grid_w"]


@dataclass(frozen=True, eq=False)
class Report:
    """Contents of the page; parts that are empty are left out.

    Attributes:
        title: Heading of the page.
        summary: First paragraph.
        metrics: Shares by the title of their row, for each column; a cell may be missing. The last column is chance.
        headline: Rows that are shown large, with the value of the second column.
        metrics_note: Line above the table of metrics.
        decisions: Texts whose image the fusion encoder alone finds.
        decisions_note: Line above them.
        seconds: Wall time of each step, in order.
        charts: Curves by name, by the title of their chart.
        text_to_image: Examples of one direction.
        image_to_text: Examples of the other direction.
        attention: Maps of words.
        details: Facts about the run.
    """

    title: str
    summary: str = ""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    headline: Sequence[str] = ()
    metrics_note: str = ""
    decisions: Sequence[Decision] = ()
    decisions_note: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    charts: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]] = field(default_factory=dict)
    text_to_image: Sequence[ImageQuery] = ()
    image_to_text: Sequence[TextQuery] = ()
    attention: Sequence[AttentionMap] = ()
    details: Mapping[str, str] = field(default_factory=dict)


def write_report(path: str | os.PathLike[str], report: Report) -> Path:
    """Write the page with images and curves inside it, and return its path.

    The page loads nothing, runs no script and follows the reader's light or dark preference. All text of the report is
    escaped. An older file is replaced only when the new one is complete.
    """
    environment = Environment(
        loader=PackageLoader("vlmo.demo", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"data_uri": data_uri, "duration": _duration}
    page = environment.get_template("report.html").render(
        report=report,
        heat_map=heat_map,
        charts=[(title, chart) for title, curves in report.charts.items() if (chart := line_chart(title, curves))],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page)
    return path


def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))


def line_chart(title: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Return an image, as HTML, of each curve, averaged over neighbouring steps.

    Args:
        title: Read out before the first and last values.
        curves: Pairs of step and value by the name of the curve. Values that are not finite are left out; without any
            finite value the result is empty.
    """
    shown = {name: _thin(points) for name, points in curves.items() if any(math.isfinite(y) for _, y in points)}
    if not shown:
        return ""
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.subplots()
        for (name, points), colour in zip(shown.items(), _COLOURS * len(shown), strict=False):
            axes.plot(*points.T, colour, clip_on=False, label=f"{name} {points[-1, 1]:.3g}")
        axes.set(xlabel="step")
        axes.grid(visible=True, axis="y", clip_on=False, alpha=0.25)
        axes.legend(frameon=False, labelcolor="linecolor")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue()
    told = "; ".join(f"{name} from {points[0, 1]:.3g} to {points[-1, 1]:.3g}" for name, points in shown.items())
    return f'<div role="img" aria-label="{escape(f"{title}: {told}")}">{svg[svg.index("<svg") :]}</div>'


def _thin(points: Sequence[tuple[int, float]]) -> Points:
    """Return finite points in order of their steps, neighbours averaged so that at most 60 are left."""
    finite = np.array(sorted((step, value) for step, value in points if math.isfinite(value)), dtype=float)
    groups = np.array_split(finite, min(len(finite), _MAX_POINTS))
    return np.array([group.mean(axis=0) for group in groups])
