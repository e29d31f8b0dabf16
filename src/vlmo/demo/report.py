"""The report of a quickstart: one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import NamedTuple

import torch
from jaxtyping import Float
from numpy import ndarray
from PIL.Image import Image

from vlmo.demo.charts import line_chart
from vlmo.demo.examples import ImageQuery, TextQuery
from vlmo.folder import write_file
from vlmo.visualization import data_uri, heat_map

_DIRECTIONS = {"ir": "Text to image", "tr": "Image to text"}


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
    total = format_seconds(sum(report.seconds.values()))
    sections = [
        _section("Retrieval", _metrics_table(report.metrics), note=report.metrics_note),
        _section(
            "Text to image",
            _wrap("queries card", map(_image_query, report.text_to_image)),
            note="Each text with the five images it found, best first. The right one is framed; where it is not among "
            "the five, it stands apart.",
        ),
        _section(
            "Image to text",
            _wrap("grid", map(_text_query, report.image_to_text)),
            note="Each image with the texts it found, best first.",
        ),
        _section(
            "Attention of words",
            _join(map(_attention_map, report.attention)),
            note="Attention of each word over the patches of the image in the fusion encoder. Every map has its own "
            "scale: full colour is the patch with the largest weight.",
        ),
        _section(
            "Losses",
            _wrap("charts", (line_chart(title, curves) for title, curves in report.charts.items())),
            note="Faint: as measured. Strong: running mean.",
        ),
        _section("Time", _timeline(report.seconds), note=f"{total} of wall time in all."),
        _section("Run", _details(report)),
    ]
    template = Template(files("vlmo.demo").joinpath("report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(report.title),
        summary=f'<p class="lead">{escape(report.summary)}</p>' if report.summary else "",
        tiles=_tiles(report.metrics),
        sections=_join(sections),
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


def _join(parts: Iterable[str]) -> str:
    return "\n".join(part for part in parts if part)


def _wrap(kind: str, parts: Iterable[str]) -> str:
    body = _join(parts)
    return f'<div class="{kind}">{body}</div>' if body else ""


def _section(title: str, body: str, *, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{note}\n{body}\n</section>" if body else ""


def _image(image: Image, *, alt: str) -> str:
    return f'<img src="{data_uri(image)}" alt="{escape(alt)}">'


def _full_name(metric: str) -> str:
    """Return `ir@5` as "Text to image R@5"."""
    direction, _, k = metric.partition("@")
    return f"{_DIRECTIONS[direction]} R@{k}"


def _tiles(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Return the headline metrics: the smallest and the largest k of each direction."""
    if not metrics:
        return ""
    (_, shown, *_), chance = metrics.values(), list(metrics.values())[-1]
    by_direction = [[name for name in shown if name.startswith(direction)] for direction in _DIRECTIONS]
    names = [name for group in by_direction if group for name in dict.fromkeys((group[0], group[-1]))]
    return _wrap(
        "tiles",
        (
            f'<div class="stat card"><div class="name">{_full_name(name)}</div>'
            f'<div class="value">{100 * shown[name]:.1f}<small>%</small></div>'
            f'<div class="name">chance {100 * chance[name]:.1f}%</div></div>'
            for name in names
        ),
    )


def _metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    if not metrics:
        return ""
    *measured, chance = metrics
    rows: dict[str, list[str]] = {direction: [] for direction in _DIRECTIONS}
    for metric in metrics[chance]:
        best = max(metrics[name][metric] for name in measured)
        cells = []
        for name, column in metrics.items():
            value = column[metric]
            kind = "chance" if name == chance else "best" if value == best else ""
            bar = f'<span class="bar"><i style="width:{100 * value:.1f}%"></i></span>'
            cells.append(f'<td class="{kind}">{100 * value:.1f}{bar}</td>')
        row = f'<tr><th scope="row">{_full_name(metric)}</th>{"".join(cells)}</tr>'
        rows[metric.partition("@")[0]].append(row)
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in metrics)
    bodies = "".join(f"<tbody>{''.join(group)}</tbody>" for group in rows.values() if group)
    head = f'<thead><tr><th scope="col">Recall, percent</th>{heads}</tr></thead>'
    return f'<div class="card scroll"><table>{head}{bodies}</table></div>'


def _timeline(seconds: Mapping[str, float]) -> str:
    total, start, rows = sum(seconds.values()) or 1, 0.0, []
    for name, value in seconds.items():
        place = f"margin-left:{100 * start / total:.2f}%;width:{100 * value / total:.2f}%"
        rows.append(
            f'<div>{escape(name)}</div><div class="track"><i style="{place}"></i></div>'
            f'<div class="time">{format_seconds(value)}</div>'
        )
        start += value
    return _wrap("steps card", rows)


def _rank(rank: int, *, found: bool) -> str:
    return f'<div class="rank{" found" if found else ""}">rank {rank}</div>'


def _image_query(query: ImageQuery) -> str:
    tiles = []
    for place, image in enumerate(query.images):
        right = place == query.correct
        alt = f"Image {place + 1}{', the right one' if right else ''} for: {query.text}"
        tiles.append(f'<li class="image{" right" if right else ""}">{_image(image, alt=alt)}</li>')
    if query.correct is None and query.answer is not None:
        answer = _image(query.answer, alt=f"The right image, not among the five, for: {query.text}")
        tiles.append(f'<li class="answer"><div class="image">{answer}</div></li>')
    return (
        f'<div class="query"><div><div class="text">{escape(query.text)}</div>'
        f'{_rank(query.rank, found=query.correct is not None)}</div><ol class="row">{"".join(tiles)}</ol></div>'
    )


def _text_query(query: TextQuery) -> str:
    items = "".join(
        f"<li{' class=right' if place in query.correct else ''}>{escape(text)}</li>"
        for place, text in enumerate(query.texts)
    )
    return (
        f'<div class="match card"><div><div class="image">{_image(query.image, alt="Query image")}</div>'
        f'{_rank(query.rank, found=bool(query.correct))}</div><ol class="texts">{items}</ol></div>'
    )


def _attention_map(attention: AttentionMap) -> str:
    whole = _image(attention.image, alt=" ".join(attention.words))
    tiles = [f'<figure class="whole">{whole}<figcaption>image</figcaption></figure>']
    for word, weights in zip(attention.words, attention.weights, strict=True):
        image = _image(heat_map(attention.image, torch.from_numpy(weights)), alt=f"Attention of the word {word}")
        tiles.append(f"<figure>{image}<figcaption>{escape(word)}</figcaption></figure>")
    return f'<div class="attention card"><div class="words">{"".join(tiles)}</div></div>'


def _details(report: Report) -> str:
    facts = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in report.details.items())
    credits_ = (
        f'<li><b>{escape(each.name)}</b>, <a href="{escape(each.url)}">{escape(each.licence)}</a>'
        f"{f'. {escape(each.note)}' if each.note else ''}</li>"
        for each in report.attributions
    )
    return _join(
        [
            f'<dl class="details">{"".join(facts)}</dl>' if report.details else "",
            f'<ul class="credits">{"".join(credits_)}</ul>' if report.attributions else "",
        ]
    )
