"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from PIL.Image import Image

from vlmo.drawing.pictures import data_uri, heat_map
from vlmo.evaluation.charts import format_value, last_value, line_chart
from vlmo.evaluation.contents import AttentionMap, Attribution, Chart, Figure, PictureQuery, Report, Step, TextQuery

_DIRECTIONS = {"ir": "Text to image", "tr": "Image to text"}
_COLUMNS = {"dual": "Dual encoder", "reranked": "Reranked", "stageless": "Without stages", "chance": "Chance"}


def write_report(path: str | os.PathLike[str], report: Report) -> Path:
    """Write the page, pictures and curves inside it, and return its path.

    The page loads nothing from anywhere, runs no script and follows the reader's light or dark preference. All text of
    the report is shown as it is, markup included. An older file is replaced only when the new one is complete.
    """
    path = Path(path)
    sections = [
        _section("Retrieval", report.figures_note, _figures_table(report.figures)),
        _section(
            "Text to image",
            "Each text with the five pictures it found, best first. The right one is framed; "
            "where it is not among the five, it stands apart.",
            _picture_queries(report.text_to_image),
        ),
        _section(
            "Image to text",
            "Each picture with the texts it found, best first.",
            _text_queries(report.image_to_text),
        ),
        _section(
            "Where words look",
            "Attention of each word over the patches of the picture in the fusion encoder. Every map has its own "
            "scale: full colour is the patch that the word looks at most.",
            _join(_attention_map(attention) for attention in report.attention),
        ),
        _section("Losses", "Faint: as measured. Strong: running mean.", _charts(report.charts)),
        _section("Time", _total_time(report.steps), _timeline(report.steps)),
        _section("Run", "", _details(report)),
    ]
    template = Template(files("vlmo.evaluation").joinpath("report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(report.title),
        summary=f'<p class="lead">{escape(report.summary)}</p>' if report.summary else "",
        tiles=_tiles(report.figures),
        sections=_join(sections),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def _join(parts: Iterable[str]) -> str:
    return "\n".join(part for part in parts if part)


def _section(title: str, note: str, body: str) -> str:
    """A headed part of the page, or nothing where there is nothing to show."""
    if not body:
        return ""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{note}\n{body}\n</section>"


def _picture(picture: Image, *, alt: str, size: int = 144) -> str:
    return f'<img src="{data_uri(picture, size=size)}" alt="{escape(alt)}">'


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


# ---------------------------------------------------------------------------------------------- figures


def _name_parts(metric: str) -> tuple[str, str]:
    """Direction and short name of a metric: `ir@5` -> ("Text to image", "R@5")."""
    direction, _, k = metric.partition("@")
    return (_DIRECTIONS[direction], f"R@{k}") if direction in _DIRECTIONS else ("", metric)


def _best(figure: Figure) -> float:
    return figure.dual if figure.reranked is None else figure.reranked


def _tiles(figures: Sequence[Figure]) -> str:
    """The figures to remember: the first and the last of each direction, reranked where that was done."""
    by_direction: dict[str, list[Figure]] = {}
    for figure in figures:
        by_direction.setdefault(_name_parts(figure.metric)[0], []).append(figure)
    shown = [
        figure
        for group in by_direction.values()
        for figure in ([group[0], group[-1]] if len(group) > 1 and len(by_direction) <= 2 else group[:1])
    ]
    tiles = []
    for figure in shown:
        name = " ".join(filter(None, _name_parts(figure.metric)))
        tiles.append(
            f'<div class="stat card"><div class="name">{escape(name)}</div>'
            f'<div class="value">{_percent(_best(figure))}<small>%</small></div>'
            f'<div class="name">chance {_percent(figure.chance)}%</div></div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _figures_table(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    columns = [name for name in _COLUMNS if any(_value(figure, name) is not None for figure in figures)]
    heads = "".join(f'<th scope="col">{_COLUMNS[name]}</th>' for name in columns)
    groups: dict[str, list[str]] = {}
    for figure in figures:
        direction, short = _name_parts(figure.metric)
        label = escape(f"{direction}, {short}" if direction else short)
        cells = "".join(_figure_cell(figure, name, columns=columns) for name in columns)
        groups.setdefault(direction, []).append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    bodies = "".join(f"<tbody>{''.join(rows)}</tbody>" for rows in groups.values())
    head = f'<thead><tr><th scope="col">Recall, percent</th>{heads}</tr></thead>'
    return f'<div class="card scroll"><table>{head}{bodies}</table></div>'


def _value(figure: Figure, column: str) -> float | None:
    return {
        "dual": figure.dual,
        "reranked": figure.reranked,
        "stageless": figure.stageless,
        "chance": figure.chance,
    }[column]


def _figure_cell(figure: Figure, column: str, *, columns: Sequence[str]) -> str:
    value = _value(figure, column)
    if value is None:
        return "<td>&ndash;</td>"
    values = [_value(figure, name) for name in columns]
    kind = "chance" if column == "chance" else "best" if value == max(v for v in values if v is not None) else ""
    bar = f'<span class="bar"><i style="width:{100 * min(max(value, 0), 1):.1f}%"></i></span>'
    return f'<td class="{kind}">{_percent(value)}{bar}</td>'


# ---------------------------------------------------------------------------------------------- time and losses


def format_seconds(seconds: float) -> str:
    """A duration as people say it: `8 s`, `3 min 20 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _total_time(steps: Sequence[Step]) -> str:
    return f"{format_seconds(sum(step.seconds for step in steps))} of wall time in all."


def _timeline(steps: Sequence[Step]) -> str:
    total = sum(step.seconds for step in steps) or 1
    start, rows = 0.0, []
    for step in steps:
        note = f"<small>{escape(step.note)}</small>" if step.note else ""
        place = f"margin-left:{100 * start / total:.2f}%;width:{100 * step.seconds / total:.2f}%"
        rows.append(
            f'<div>{escape(step.name)}{note}</div><div class="track"><i style="{place}"></i></div>'
            f'<div class="time">{format_seconds(step.seconds)}</div>'
        )
        start += step.seconds
    return f'<div class="steps card">{"".join(rows)}</div>' if rows else ""


def _charts(charts: Sequence[Chart]) -> str:
    drawn = [_chart(chart) for chart in charts]
    return f'<div class="charts">{_join(drawn)}</div>' if any(drawn) else ""


def _chart(chart: Chart) -> str:
    drawing = line_chart(chart)
    if not drawing:
        return ""
    ends = [(curve.name, last_value(curve)) for curve in chart.curves]
    keys = "".join(
        f'<span class="series-{number % 4 + 1}">{escape(name)} <b>{format_value(value)}</b></span>'
        for number, (name, value) in enumerate((name, value) for name, value in ends if value is not None)
    )
    note = f'<div class="note">{escape(chart.note)}</div>' if chart.note else ""
    caption = f'<figcaption><h3>{escape(chart.title)}</h3>{note}<div class="key">{keys}</div></figcaption>'
    return f'<figure class="card">{caption}{drawing}</figure>'


# ---------------------------------------------------------------------------------------------- examples


def _rank(rank: int, *, found: bool) -> str:
    return f'<div class="rank{" found" if found else ""}">rank {rank}</div>'


def _picture_queries(queries: Sequence[PictureQuery]) -> str:
    return f'<div class="queries card">{_join(map(_picture_query, queries))}</div>' if queries else ""


def _picture_query(query: PictureQuery) -> str:
    tiles = []
    for place, picture in enumerate(query.pictures[:5]):
        right = place == query.correct
        alt = f"Picture {place + 1}{', the right one' if right else ''} for: {query.text}"
        tiles.append(f'<li class="picture{" right" if right else ""}">{_picture(picture, alt=alt)}</li>')
    found = query.correct is not None
    if not found and query.answer is not None:
        image = _picture(query.answer, alt=f"The right picture, not among the five, for: {query.text}")
        tiles.append(f'<li class="answer"><div class="picture">{image}</div></li>')
    return (
        f'<div class="query"><div><div class="text">{escape(query.text)}</div>'
        f'{_rank(query.rank, found=found)}</div><ol class="row">{"".join(tiles)}</ol></div>'
    )


def _text_queries(queries: Sequence[TextQuery]) -> str:
    return f'<div class="grid">{_join(map(_text_query, queries))}</div>' if queries else ""


def _text_query(query: TextQuery) -> str:
    items = "".join(
        f"<li{' class=right' if place in query.correct else ''}>{escape(text)}</li>"
        for place, text in enumerate(query.texts)
    )
    image = _picture(query.picture, alt="Picture whose texts are looked for")
    return (
        f'<div class="match card"><div><div class="picture">{image}</div>'
        f'{_rank(query.rank, found=bool(query.correct))}</div><ol class="texts">{items}</ol></div>'
    )


def _attention_map(attention: AttentionMap) -> str:
    text = " ".join(attention.words)
    tiles = [f'<figure class="whole">{_picture(attention.picture, alt=text)}<figcaption>picture</figcaption></figure>']
    for word, weights in zip(attention.words, attention.weights, strict=True):
        image = _picture(heat_map(attention.picture, weights), alt=f"Where the word {word} looks")
        tiles.append(f"<figure>{image}<figcaption>{escape(word)}</figcaption></figure>")
    return f'<div class="attention card"><div class="words">{"".join(tiles)}</div></div>'


# ---------------------------------------------------------------------------------------------- the run


def _details(report: Report) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in report.details.items()
    )
    credits_ = "".join(f"<li>{_attribution(attribution)}</li>" for attribution in report.attributions)
    return _join(
        [
            f'<dl class="details">{facts}</dl>' if facts else "",
            f'<ul class="credits">{credits_}</ul>' if credits_ else "",
        ]
    )


def _attribution(attribution: Attribution) -> str:
    name, licence = f"<b>{escape(attribution.name)}</b>", escape(attribution.licence)
    # Only web addresses become links: a `javascript:` address would be a script.
    if attribution.url.startswith(("https://", "http://")):
        licence = f'<a href="{escape(attribution.url)}">{licence}</a>'
    return f"{name}, {licence}{f'. {escape(attribution.note)}' if attribution.note else ''}"
