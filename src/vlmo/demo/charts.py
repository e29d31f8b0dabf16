"""Charts of losses as SVG, for a page on light or dark paper."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure

_MAX_POINTS = 200
_COLOURS = ("#4c86c6", "#d2703a", "#2f9484", "#8f6fc3")  # these and the grey are legible on white and on black
_GREY = "#80868f"
_STYLE = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _GREY),
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top", "text.parse_math"), False),
    "svg.fonttype": "none",  # text stays text
}

Points = Float[np.ndarray, "point 2"]


def line_chart(title: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Return an image, as HTML, of each curve as measured (faint) and as running mean (strong).

    Args:
        title: Read out before the first and last values.
        curves: Pairs of step and value by the name of the curve. Values that are not finite are left out; without any
            finite value the result is empty.
    """
    measured = {name: _thin(points) for name, points in curves.items() if any(math.isfinite(y) for _, y in points)}
    if not measured:
        return ""
    means = {name: _smooth(points) for name, points in measured.items()}
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.subplots()
        for (name, points), colour in zip(means.items(), _COLOURS * len(means), strict=False):
            axes.plot(*points.T, colour, clip_on=False, label=f"{name} {points[-1, 1]:.3g}")
        # The axis follows the running means, so that one outlier does not flatten every curve.
        low, high = axes.get_ylim()
        for points, colour in zip(measured.values(), _COLOURS * len(means), strict=False):
            axes.plot(points[:, 0], points[:, 1].clip(low, high), colour, clip_on=False, alpha=0.3, linewidth=1)
        axes.set(xlabel="step", ylim=(low, high))
        axes.grid(visible=True, axis="y", clip_on=False, alpha=0.25)
        axes.legend(frameon=False, labelcolor="linecolor")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue()
    told = "; ".join(f"{name} from {mean[0, 1]:.3g} to {mean[-1, 1]:.3g}" for name, mean in means.items())
    return f'<div role="img" aria-label="{escape(f"{title}: {told}")}">{svg[svg.index("<svg") :]}</div>'


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
