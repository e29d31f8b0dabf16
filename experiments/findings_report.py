"""Effects of the findings with their intervals, and the tables of the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from findings_design import CLAIMS, CONFIRMATIONS, MATCHING, PROBE, RECALL, SECONDARY, VARIANTS, Claim

MARK = "<!-- all below is written by experiments/findings.py -->"
_LEVEL, _DRAWS = 0.95, 10_000

Values = Float[np.ndarray, "seeds items"]


@dataclass(frozen=True)
class Effect:
    """Mean difference of two variants with its intervals, in percentage points.

    Attributes:
        seeds: Difference of each seed.
        t: 95 % t-interval over the paired seeds.
        bootstrap: 95 % interval of resampled items, the trained models being given.
    """

    seeds: tuple[float, ...]
    t: tuple[float, float]
    bootstrap: tuple[float, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.seeds))

    @property
    def verdict(self) -> str:
        """`holds` or `reversed` where both intervals lie on one side of zero, else `unclear`."""
        low, high = min(self.t[0], self.bootstrap[0]), max(self.t[1], self.bootstrap[1])
        return "holds" if low > 0 else "reversed" if high < 0 else "unclear"


def effect(better: Values, worse: Values) -> Effect:
    """Return the effect of paired values between 0 and 1.

    Raises:
        ValueError: There are fewer than two seeds.
    """
    if len(better) < 2:
        raise ValueError(f"{len(better)} seeds; an interval needs two or more")
    differences = 100 * (better - worse)
    seeds = differences.mean(axis=1)
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(seeds) - 1) * seeds.std(ddof=1) / len(seeds) ** 0.5)
    items = differences.mean(axis=0)
    draws = np.random.default_rng(0).integers(len(items), size=(_DRAWS, len(items)))
    low, high = np.quantile(items[draws].mean(axis=1), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    mean = float(seeds.mean())
    return Effect(tuple(seeds.tolist()), (mean - half, mean + half), (float(low), float(high)))


def effect_of(claim: Claim, results: Mapping[tuple[str, int], Mapping[str, Any]]) -> Effect | None:
    """Return the effect of a claim over those of its seeds that both variants have; None with fewer than two."""
    seeds = [seed for seed in claim.seeds if {(claim.better, seed), (claim.worse, seed)} <= set(results)]
    if len(seeds) < 2:
        return None
    first, second = (
        np.array([results[name, seed]["items"][claim.metric] for seed in seeds]) for name in (claim.better, claim.worse)
    )
    return effect(first, second)


def report(results: Mapping[tuple[str, int], Mapping[str, Any]], *, short: bool = False) -> str:
    """Return tables of the claims; unless it is `short` with each seed, further comparisons, and the variants."""
    parts = [f"{len(results)} jobs, {len({seed for _, seed in results})} seeds. {_circumstances(results)}"]
    for title, claims in (
        ("Claims", CLAIMS),
        ("Confirmations with other seeds", CONFIRMATIONS),
        *(() if short else (("Further comparisons", SECONDARY),)),
    ):
        rows = [["", "metric", "difference", "t-interval", "bootstrap", "seeds", "verdict"]]
        for claim in claims:
            if (found := effect_of(claim, results)) is not None:
                seeds = str(len(found.seeds)) if short else ", ".join(f"{each:+.1f}" for each in found.seeds)
                row = f"{claim.title} (`{claim.better}`, `{claim.worse}`)"
                spans = [f"{low:+.1f} to {high:+.1f}" for low, high in (found.t, found.bootstrap)]
                rows.append([row, claim.metric, f"**{found.mean:+.1f}**", *spans, seeds, found.verdict])
        parts += [f"## {title}", _table(rows)] if len(rows) > 1 else []
    return "\n\n".join([*parts, *(() if short else ("## Variants", _variants(results)))]) + "\n"


def _variants(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    names = (RECALL, MATCHING, PROBE)
    rows = [["", "parameters", "GFLOPs a pair", *names]]
    for variant, known in VARIANTS.items():
        found = [each for (name, _), each in results.items() if name == variant]
        if found:
            cells = [
                f"{100 * np.mean(values):.1f}±{100 * np.std(values, ddof=len(values) > 1):.1f}" if values else "-"
                for metric in names
                if (values := [each["metrics"][metric] for each in found if metric in each["metrics"]]) is not None
            ]
            size, work = f"{found[0]['parameters'] / 1e6:.2f}M", f"{found[0]['gflops_per_sample']:.2f}"
            rows.append([f"`{variant}`: {known.about}", size, work, *cells])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _circumstances(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    around = [each["circumstances"] for each in results.values()]
    cpus = dict.fromkeys(f"one core of {each['hardware'].get('cpu', 'a CPU')}" for each in around)
    versions = dict.fromkeys(f"torch {each['versions']['torch']}" for each in around)
    hours = sum(each["cpu_seconds"] for each in results.values()) / 3600
    return f"{hours:.1f} hours of {', '.join([*cpus, *versions])}."


def publish(results: Mapping[tuple[str, int], Mapping[str, Any]], *, page: Path, out: Path) -> None:
    """Write the report below the mark of the page, and all results as JSON.

    Raises:
        ValueError: The page does not have the mark once.
    """
    before, *rest = page.read_text(encoding="utf-8").split(MARK)
    if len(rest) != 1:
        raise ValueError(f"{page} has the line {MARK!r} {len(rest)} times; it needs it once")
    page.write_text(f"{before}{MARK}\n\n{report(results, short=True)}", encoding="utf-8")
    kept = [dict(each) | {"items": _digits(each["items"])} for each in results.values()]
    out.write_text("[\n" + ",\n".join(map(json.dumps, kept)) + "\n]\n")


def _digits(items: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Return items of 0, 0.5 and 1 as digits 0 to 2."""
    return {name: "".join(str(round(2 * value)) for value in values) for name, values in items.items()}
