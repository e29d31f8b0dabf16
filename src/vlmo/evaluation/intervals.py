"""Figures of variants with their spread over seeds, as an SVG that stands alone: no script, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import mean

from vlmo.evaluation.charts import Scale, format_value, nice_ticks

_LABELS, _PANEL, _GAP, _ROW = 270, 140, 36, 26
_TOP, _BOTTOM = 62, 30
_STYLE = (
    "svg{font:13px system-ui,sans-serif;--ink:#24292f;--soft:#6b7380;--line:#d9dee4;--mark:#1f8474}"
    "@media(prefers-color-scheme:dark){svg{--ink:#e6e9ed;--soft:#9aa4b0;--line:#3a424c;--mark:#58c3ae}}"
    "text{fill:var(--ink)}.soft{fill:var(--soft);font-size:11px}.grid{stroke:var(--line)}"
    ".chance{stroke:var(--soft);stroke-dasharray:3 3}.spread{stroke:var(--mark);stroke-width:2}"
    ".seed{fill:var(--mark);opacity:.45}.mean{fill:var(--mark)}.title{font-size:15px;font-weight:600}"
)


@dataclass(frozen=True)
class Interval:
    """A row: values of each seed, fractions."""

    label: str
    values: Sequence[float]


def interval_chart(panels: Mapping[str, tuple[Sequence[Interval], float]], *, title: str) -> str:
    """An SVG with a panel for each figure: rows with their mean, seeds and span; a dashed line where chance is.

    Args:
        panels: Rows and chance level by the name of the figure. Rows are matched over panels by their labels.
    """
    labels = list(dict.fromkeys(row.label for rows, _ in panels.values() for row in rows))
    width, height = _LABELS + len(panels) * (_PANEL + _GAP) + 8, _TOP + _ROW * len(labels) + _BOTTOM
    y_of = {label: _TOP + (number + 0.5) * _ROW for number, label in enumerate(labels)}
    parts = [f'<text class="title" x="8" y="20">{escape(title)}</text>']
    parts += [f'<text x="8" y="{y + 4:.1f}">{escape(label)}</text>' for label, y in y_of.items()]
    for number, (name, (rows, chance)) in enumerate(panels.items()):
        left = _LABELS + number * (_PANEL + _GAP)
        parts += _panel(name, rows, chance, left=left, y_of=y_of, bottom=height - _BOTTOM)
    said = "; ".join(
        f"{name}: " + ", ".join(f"{row.label} {100 * mean(row.values):.1f}" for row in rows)
        for name, (rows, _) in panels.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(f"{title} {said}")}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _panel(
    name: str, rows: Sequence[Interval], chance: float, *, left: float, y_of: Mapping[str, float], bottom: float
) -> list[str]:
    ticks = nice_ticks([100 * value for row in rows for value in row.values] + [100 * chance], count=3)
    x_of = Scale(ticks[0], ticks[-1], left, left + _PANEL)
    parts = [f'<text x="{left}" y="{_TOP - 12}">{escape(name)}, %</text>']
    for tick in ticks:
        x, shown = x_of(tick), format_value(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{shown}</text>')
    x = x_of(100 * chance)
    parts.append(f'<path class="chance" d="M{x:.1f} {_TOP}V{bottom}"><title>chance {100 * chance:.1f}</title></path>')
    for row in rows:
        y, values = y_of[row.label], [100 * value for value in row.values]
        seeds = ", ".join(f"{value:.1f}" for value in values)
        parts.append(f"<g><title>{escape(row.label)}: {mean(values):.1f} ({seeds})</title>")
        parts.append(f'<path class="spread" d="M{x_of(min(values)):.1f} {y}H{x_of(max(values)):.1f}"/>')
        parts += [f'<circle class="seed" cx="{x_of(value):.1f}" cy="{y}" r="3"/>' for value in values]
        parts.append(f'<circle class="mean" cx="{x_of(mean(values)):.1f}" cy="{y}" r="5"/></g>')
    return parts
