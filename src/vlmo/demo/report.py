"""The report of a quickstart: one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from jinja2 import Environment, PackageLoader
from numpy import ndarray
from PIL.Image import Image

from vlmo.demo.charts import line_chart
from vlmo.demo.examples import ImageQuery, TextQuery
from vlmo.folder import write_file
from vlmo.visualization import data_uri, heat_map


class AttentionMap(NamedTuple):
    """Attention of each word of a text over the patches of an image."""

    image: Image
    words: Sequence[str]
    weights: Float[ndarray, "word grid_h grid_w"]


class Attribution(NamedTuple):
    """Source of the data and the licence that it is shown under."""

    name: str
    licence: str
    url: str
    note: str = ""


@dataclass(frozen=True, eq=False)
class Report:
    """Contents of the page; parts that are empty are left out.

    Attributes:
        title: Heading of the page.
        summary: First paragraph.
        metrics: Recalls by name (`ir@1`), a column for each kind of measurement; the last column is chance, and the
            headline metrics are those of the second.
        metrics_note: Line above the table of metrics.
        seconds: Wall time of each step, in order.
        charts: Curves by name, by the title of their chart.
        text_to_image: Examples of one direction.
        image_to_text: Examples of the other direction.
        attention: Maps of words.
        details: Facts about the run.
        attributions: Of the data.
    """

    title: str
    summary: str = ""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metrics_note: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    charts: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]] = field(default_factory=dict)
    text_to_image: Sequence[ImageQuery] = ()
    image_to_text: Sequence[TextQuery] = ()
    attention: Sequence[AttentionMap] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    attributions: Sequence[Attribution] = ()


def write_report(path: str | os.PathLike[str], report: Report) -> Path:
    """Write the page with images and curves inside it, and return its path.

    The page loads nothing, runs no script and follows the reader's light or dark preference. All text of the report is
    escaped. An older file is replaced only when the new one is complete.
    """
    environment = Environment(
        loader=PackageLoader("vlmo.demo", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"data_uri": data_uri, "duration": format_seconds}
    shown = list(report.metrics.values())[1] if report.metrics else {}
    by_direction = [[name for name in shown if name.startswith(direction)] for direction in ("ir", "tr")]
    page = environment.get_template("report.html").render(
        report=report,
        heat_map=heat_map,
        # The smallest and the largest k of each direction.
        headline=[name for group in by_direction if group for name in dict.fromkeys((group[0], group[-1]))],
        charts=[(title, chart) for title, curves in report.charts.items() if (chart := line_chart(title, curves))],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page)
    return path


def format_seconds(seconds: float) -> str:
    """Return a duration as people say it: `8.0 s`, `3 min 20 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
