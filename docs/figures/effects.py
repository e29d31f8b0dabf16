"""Effects of the findings with their intervals, from the table that experiments/findings.py writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from figures.svg import Canvas

TABLE = Path(__file__).resolve().parents[2] / "experiments" / "findings.md"
KINDS = {"holds": "trained", "reversed": "vision_language", "unclear": "shared"}
"""Verdicts and the color of each."""
_LEFT, _SCALE, _LOW, _HIGH, _TOP, _ROW, _RIGHT = 500, 7.2, -15, 35, 62, 22, 200


@dataclass(frozen=True)
class Row:
    """A row of the table; numbers are points."""

    claim: str
    world: str
    metric: str
    mean: float
    low: float
    high: float
    verdict: str


def rows() -> list[Row]:
    """Return the rows of the table, each with its claim written out."""
    line = r"^\| (.+?)(?: \(`.+`\))? \| (scenes|icons) \| (.+?) \| \*\*(\S+)\*\* \| (\S+) to (\S+) \| (\w+) \|$"
    shown: list[Row] = []
    for claim, world, metric, *numbers, verdict in re.findall(
        line, TABLE.read_text(encoding="utf-8"), flags=re.M
    ):
        mean, low, high = map(float, numbers)
        title = shown[-1].claim if claim == "same" else claim
        shown.append(Row(title, world, metric, mean, low, high, verdict))
    return shown


def forest() -> str:
    """Return a row for each claim and metric: interval as a bar, mean as a dot, no effect dashed."""
    effects = rows()
    bottom = _TOP + len(effects) * _ROW
    canvas = Canvas(
        _LEFT + (_HIGH - _LOW) * _SCALE + _RIGHT,
        bottom + 34,
        name="findings",
        title="Effects of the paper's claims at small size",
    )
    _legend(canvas)
    for points in range(_LOW, _HIGH + 1, 5):
        x = _across(points)
        canvas.path(f"M{x:g} {_TOP - 8}V{bottom}", kind="chance" if points == 0 else "grid")
        canvas.text(f"{points:+d}" if points else "0", x=x, y=bottom + 18, kind="small faint")
    for number, effect in enumerate(effects):
        again = (
            number > 0
            and effects[number - 1].claim == effect.claim
            and effects[number - 1].world == effect.world
        )
        _draw(canvas, effect, y=_TOP + number * _ROW, again=again)
    return canvas.finished(about=" ".join(map(_said, effects)))


def _across(points: float) -> float:
    return _LEFT + (points - _LOW) * _SCALE


def _legend(canvas: Canvas) -> None:
    x = _LEFT
    for verdict, kind in KINDS.items():
        canvas.circle(x + 6, 20, 6, kind=f"dot {kind}")
        canvas.text(verdict, x=x + 18, y=24.5, anchor="start")
        x += 96
    canvas.text("points, with intervals of 95 %", x=x, y=24.5, kind="faint", anchor="start")


def _draw(canvas: Canvas, effect: Row, *, y: float, again: bool) -> None:
    kind, middle = KINDS[effect.verdict], y + _ROW / 2 - 4
    if not again:
        canvas.text(effect.claim, x=_LEFT - 126, y=middle + 4.5, kind="small", anchor="end")
    canvas.text(
        f"{effect.world}, {effect.metric}",
        x=_LEFT - 12,
        y=middle + 4.5,
        kind="small faint",
        anchor="end",
    )
    canvas.path(
        f"M{_across(effect.low):g} {middle:g}H{_across(effect.high):g}", kind=f"range {kind}-line"
    )
    facts = {"mean": effect.mean, "low": effect.low, "high": effect.high, "verdict": effect.verdict}
    canvas.circle(_across(effect.mean), middle, 5, kind=f"dot {kind}", **facts)
    numbers = f"{effect.mean:+.1f} ({effect.low:+.1f} to {effect.high:+.1f}) {effect.verdict}"
    canvas.text(numbers, x=_across(_HIGH) + 14, y=middle + 4.5, kind="small", anchor="start")


def _said(effect: Row) -> str:
    where = f"{effect.claim}, {effect.world}, {effect.metric}"
    return (
        f"{where}: {effect.mean:+.1f} ({effect.low:+.1f} to {effect.high:+.1f}), {effect.verdict}."
    )
