"""Effects of the findings with their intervals, and the table of the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from findings_design import CLAIMS, VARIANTS, Claim

MARK = "<!-- all below is written by experiments/findings.py -->"
_LEVEL, _DRAWS = 0.95, 10_000

Values = Float[np.ndarray, "seeds items"]


@dataclass(frozen=True)
class Effect:
    """Differences of two variants by seed, in points, with 95 % intervals over seeds and over resampled items."""

    seeds: tuple[float, ...]
    t: tuple[float, float]
    bootstrap: tuple[float, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.seeds))

    @property
    def interval(self) -> tuple[float, float]:
        """The lower of both lower limits, and the higher of both upper ones."""
        return min(self.t[0], self.bootstrap[0]), max(self.t[1], self.bootstrap[1])

    @property
    def verdict(self) -> str:
        """`holds` or `reversed` where both intervals lie on one side of zero, else `unclear`."""
        low, high = self.interval
        return "holds" if low > 0 else "reversed" if high < 0 else "unclear"


def effect(better: Values, worse: Values) -> Effect:
    """Return the effect of paired values between 0 and 1 of two or more seeds."""
    differences = 100 * (better - worse)
    seeds = differences.mean(axis=1)
    half = float(
        stats.t.ppf((1 + _LEVEL) / 2, len(seeds) - 1) * seeds.std(ddof=1) / len(seeds) ** 0.5
    )
    items = differences.mean(axis=0)
    draws = np.random.default_rng(0).integers(len(items), size=(_DRAWS, len(items)))
    low, high = np.quantile(items[draws].mean(axis=1), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    mean = float(seeds.mean())
    return Effect(tuple(seeds.tolist()), (mean - half, mean + half), (float(low), float(high)))


def effect_of(claim: Claim, results: Mapping[tuple[str, int], Mapping[str, Any]]) -> Effect | None:
    """Return the effect of a claim over those of its seeds that both variants have; None with fewer than two."""
    seeds = [
        seed for seed in claim.seeds if {(claim.better, seed), (claim.worse, seed)} <= set(results)
    ]
    if len(seeds) < 2:
        return None
    first, second = (
        np.array([results[name, seed]["items"][claim.metric] for seed in seeds])
        for name in (claim.better, claim.worse)
    )
    return effect(first, second)


def report(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    """Return a table of the claims, one a row for each metric; a verdict needs all seeds of a claim."""
    head = ["claim", "world", "metric", "effect", "interval", "verdict"]
    rows = [head, ["---"] * len(head)]
    for claim in CLAIMS:
        if (found := effect_of(claim, results)) is not None:
            title, number = f"{claim.title} (`{claim.better}`, `{claim.worse}`)", len(found.seeds)
            row = "same" if any(title == row[0] for row in rows) else title
            verdict = found.verdict if number == len(claim.seeds) else f"none: {number} seeds"
            span = "{:+.1f} to {:+.1f}".format(*found.interval)
            rows.append(
                [
                    row,
                    VARIANTS[claim.better].world,
                    claim.metric,
                    f"**{found.mean:+.1f}**",
                    span,
                    verdict,
                ]
            )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{len(results)} jobs, {len({seed for _, seed in results})} seeds. {_circumstances(results)}\n\n{table}\n"


def _circumstances(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    around = [each["circumstances"] for each in results.values()]
    cpus = dict.fromkeys(f"one core of {each['hardware'].get('cpu', 'a CPU')}" for each in around)
    versions = dict.fromkeys(f"torch {each['versions']['torch']}" for each in around)
    hours = sum(each["cpu_seconds"] for each in results.values()) / 3600
    return f"{hours:.1f} hours of {', '.join([*cpus, *versions])}."


def publish(results: Mapping[tuple[str, int], Mapping[str, Any]], *, page: Path, out: Path) -> None:
    """Write the table below the mark of the page, which has it once (else ValueError), and all results as JSON."""
    before, *rest = page.read_text(encoding="utf-8").split(MARK)
    if len(rest) != 1:
        raise ValueError(f"{page} has the line {MARK!r} {len(rest)} times; it needs it once")
    page.write_text(f"{before}{MARK}\n\n{report(results)}", encoding="utf-8")
    kept = [dict(each) | {"items": _digits(each["items"])} for each in results.values()]
    out.write_text("[\n" + ",\n".join(map(json.dumps, kept)) + "\n]\n")


def _digits(items: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Return items of 0, 0.5 and 1 as digits 0 to 2."""
    return {
        name: "".join(str(round(2 * value)) for value in values) for name, values in items.items()
    }
