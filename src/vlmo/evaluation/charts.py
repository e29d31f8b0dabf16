"""Line charts as inline SVG: no script, no library, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from vlmo.evaluation.contents import Chart, Curve

_WIDTH, _HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 10, 26
_MAX_POINTS = 200  # more cannot be told apart on a chart this wide, and would only make the file heavier
_NUM_TOOLTIPS = 25

Points = list[tuple[float, float]]


def line_chart(chart: Chart) -> str:
    """An SVG of all curves: faint as measured, strong as a running mean. Empty if no curve has a finite value."""
    curves = [(curve, _thinned(_finite(curve))) for curve in chart.curves]
    curves = [(curve, points) for curve, points in curves if points]
    if not curves:
        return ""
    # The axis follows the running means, so that one bad step does not flatten every curve.
    smooth = [_smoothed(points) for _, points in curves]
    y_ticks = nice_ticks([y for points in smooth for _, y in points])
    x_max = max(points[-1][0] for points in smooth)
    x_ticks = [tick for tick in nice_ticks([0, x_max]) if tick <= x_max]
    x_of, y_of = Scale(0, x_max, _LEFT, _WIDTH - _RIGHT), Scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)

    parts = _axes(x_ticks, y_ticks, x_of=x_of, y_of=y_of)
    for number, ((_, points), means) in enumerate(zip(curves, smooth, strict=True)):
        colour = f"series-{number % 4 + 1}"
        if len(points) > 1:
            parts.append(f'<path class="raw {colour}" d="{_path(points, x_of=x_of, y_of=y_of)}"/>')
        parts.append(f'<path class="mean {colour}" d="{_path(means, x_of=x_of, y_of=y_of)}"/>')
        x, y = means[-1]
        parts.append(f'<circle class="end {colour}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5"/>')
    parts += _tooltips([(curve.name, means) for (curve, _), means in zip(curves, smooth, strict=True)], x_of=x_of)
    label = f"{chart.title}: " + "; ".join(
        f"{curve.name} from {format_value(means[0][1])} to {format_value(means[-1][1])}"
        for (curve, _), means in zip(curves, smooth, strict=True)
    )
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def nice_ticks(values: Sequence[float], *, count: int = 4) -> list[float]:
    """Round numbers at equal distances that enclose the values; from 0 where the values come near it."""
    low, high = min(values), max(values)
    if 0 < low < high / 2:
        low = 0
    if high - low < 1e-12 * max(abs(high), 1):
        high = low + max(abs(low), 1) / 10
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def format_value(value: float) -> str:
    """Three significant digits, without an exponent where possible."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def last_value(curve: Curve) -> float | None:
    """The end of the running mean, which is the number that the chart's key shows."""
    points = _finite(curve)
    return _smoothed(_thinned(points))[-1][1] if points else None


class Scale:
    """A linear map from values in `low` to `high` to positions from `start` to `stop`, cut off at both ends."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.span = low, (high - low) or 1
        self.start, self.length = start, stop - start

    def __call__(self, value: float) -> float:
        """The position of a value, in the drawing's units."""
        share = min(max((value - self.low) / self.span, 0), 1)
        return self.start + share * self.length


def _finite(curve: Curve) -> Points:
    return sorted((step, value) for step, value in curve.points if math.isfinite(value))


def _thinned(points: Points) -> Points:
    size = -(-len(points) // _MAX_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _smoothed(points: Points) -> Points:
    # Centred, so that it does not lag behind a falling loss; at both ends over the half that is there.
    reach = len(points) // 25
    smooth = []
    for place, (step, _) in enumerate(points):
        window = range(max(0, place - reach), min(len(points), place + reach + 1))
        weights = [reach + 1 - abs(place - other) for other in window]
        total = sum(weight * points[other][1] for weight, other in zip(weights, window, strict=True))
        smooth.append((step, total / sum(weights)))
    return smooth


def _path(points: Points, *, x_of: Scale, y_of: Scale) -> str:
    return "M" + "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in points)


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], *, x_of: Scale, y_of: Scale) -> list[str]:
    parts = []
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{format_value(tick)}</text>')
    for tick in x_ticks:
        label = "step 0" if tick == 0 else format_value(tick)
        anchor = "start" if tick == 0 else "end" if x_of(tick) > _WIDTH - _RIGHT - 16 else "middle"
        parts.append(f'<text x="{x_of(tick):.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{label}</text>')
    return parts


def _tooltips(curves: Sequence[tuple[str, Points]], *, x_of: Scale) -> list[str]:
    """Invisible strips that show the values at their place on hovering."""
    width = (_WIDTH - _LEFT - _RIGHT) / _NUM_TOOLTIPS
    parts = []
    for strip in range(_NUM_TOOLTIPS):
        middle = _LEFT + (strip + 0.5) * width
        nearest = [(name, _nearest(points, x=middle, x_of=x_of)) for name, points in curves]
        lines = [f"step {nearest[0][1][0]:,.0f}", *(f"{name} {format_value(value)}" for name, (_, value) in nearest)]
        parts.append(
            f'<rect class="strip" x="{middle - width / 2:.1f}" y="{_TOP}" width="{width:.1f}" '
            f'height="{_HEIGHT - _TOP - _BOTTOM}"><title>{escape(chr(10).join(lines))}</title></rect>'
        )
    return parts


def _nearest(points: Points, *, x: float, x_of: Scale) -> tuple[float, float]:
    return min(points, key=lambda point: abs(x_of(point[0]) - x))
