"""Line charts as inline SVG. Colours come from the style sheet of the page, so that they follow dark mode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Float

_WIDTH, _HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 10, 26
_MAX_POINTS = 200
_NUM_COLOURS = 4

Points = Float[np.ndarray, "point 2"]


def line_chart(title: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Return a `<figure>` with a key of last values, each curve as measured (faint) and as running mean (strong).

    Args:
        title: Heading of the figure.
        curves: Pairs of step and value by the name of the curve. Values that are not finite are left out; without any
            finite value the result is empty.
    """
    measured = {name: _thin(points) for name, points in curves.items() if any(math.isfinite(y) for _, y in points)}
    if not measured:
        return ""
    means = {name: _smooth(points) for name, points in measured.items()}
    # The axis follows the running means, so that one outlier does not flatten every curve.
    y_ticks = nice_ticks([float(y) for points in means.values() for y in points[:, 1]])
    x_max = max(float(points[-1, 0]) for points in means.values())
    x_ticks = [tick for tick in nice_ticks([0, x_max]) if tick <= x_max]

    def place(points: Points) -> str:
        x = _LEFT + points[:, 0] / (x_max or 1) * (_WIDTH - _LEFT - _RIGHT)
        share = np.clip((points[:, 1] - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 0, 1)
        y = _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)
        return "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))

    parts, key = [], []
    for tick in y_ticks:
        y = place(np.array([[0, tick]])).split()[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{format_value(tick)}</text>')
    for tick in x_ticks:
        x = float(place(np.array([[tick, y_ticks[0]]])).split()[0])
        anchor = "start" if tick == 0 else "end" if x > _WIDTH - _RIGHT - 16 else "middle"
        label = "step 0" if tick == 0 else format_value(tick)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{label}</text>')
    for number, (name, mean) in enumerate(means.items()):
        colour, (x, y) = f"series-{number % _NUM_COLOURS + 1}", place(mean[-1:]).split()
        parts.append(f'<path class="raw {colour}" d="M{place(measured[name])}"/>')
        parts.append(f'<path class="mean {colour}" d="M{place(mean)}"/>')
        parts.append(f'<circle class="end {colour}" cx="{x}" cy="{y}" r="3.5"/>')
        key.append(f'<span class="{colour}">{escape(name)} <b>{format_value(mean[-1, 1])}</b></span>')
    said = "; ".join(f"{name} from {format_value(m[0, 1])} to {format_value(m[-1, 1])}" for name, m in means.items())
    return (
        f'<figure class="card"><figcaption><h3>{escape(title)}</h3><div class="key">{"".join(key)}</div></figcaption>'
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{title}: {said}")}">'
        f"{''.join(parts)}</svg></figure>"
    )


def nice_ticks(values: Sequence[float], *, count: int = 4) -> list[float]:
    """Return round numbers at equal distances that enclose the values; from 0 where the values come near it."""
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
    """Return three significant digits, without an exponent where possible."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _thin(points: Sequence[tuple[int, float]]) -> Points:
    """Return finite points in order of their steps, neighbours averaged so that at most 200 are left."""
    finite = np.array(sorted((step, value) for step, value in points if math.isfinite(value)), dtype=float)
    groups = np.array_split(finite, min(len(finite), _MAX_POINTS))
    return np.array([(group[-1, 0], group[:, 1].mean()) for group in groups])


def _smooth(points: Points) -> Points:
    """Return running means, weighted by a triangle around each point so that they do not lag behind a falling loss."""
    reach = len(points) // 25
    triangle = reach + 1 - np.abs(np.arange(-reach, reach + 1))
    total = np.convolve(points[:, 1], triangle, mode="same")
    return np.column_stack([points[:, 0], total / np.convolve(np.ones(len(points)), triangle, mode="same")])
