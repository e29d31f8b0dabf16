"""Tables and charts of finished ablations: means, spread over seeds, and whether each claim of the paper holds.

    python experiments/findings.py --run-dir runs/ablation --out benchmarks/results/ablations.json

publishes them: all results as JSON, and tables and charts below the marked line of docs/findings.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tyro

from ablations import (
    PAIRS,
    PLAIN,
    QUESTIONS,
    RERANK,
    RESULT,
    SHARPNESS,
    STAGES,
    STEPS,
    VARIANTS,
    Job,
    Question,
    read_result,
    start_of,
)

METRICS = {
    "ir@1": "IR@1",
    "ir@10": "IR@10",
    "tr@1": "TR@1",
    "tr@10": "TR@10",
    "matching": "matching",
    "easy-vqa": "easy-VQA",
    "easy-vqa-pairs-colors": "two images",
    "easy-vqa-pairs-colors consistency": "consistency",
}
"""Columns of the tables by the names in a result."""
CHARTED = ("ir@10", "matching", "easy-vqa", "easy-vqa-pairs-colors")
VERDICTS = ("holds", "unclear", "reversed")
_STAGE_RUNS = {None: (), "stage1": ("tokenizer", "stage1"), "stage2": ("tokenizer", "stage1", "stage2")}
MARK = "<!-- all below is written by experiments/findings.py -->"
ROOT = Path(__file__).resolve().parents[1]
_LEGEND = f"""\
- `{PLAIN}`: random weights, Multiway, shared attention, three losses, hard negatives from the whole batch.
- Metrics are percent, mean ± standard deviation over seeds. Minutes are of training; those of stages 1 and 2 follow +.
- IR and TR: the dual encoder on 500 drawings in an unseen style, after stage 3 on `{PAIRS}`. *Matching*: share of the
  shortlists of {RERANK} with the right image in which the matching head alone ranks it first.
- *easy-VQA*: questions about a shape. *Two images*: sentences about the colours of two shapes, fine-tuned from the
  model of easy-VQA. *Consistency*: sentences judged correctly for all four pairs of images.
- Hard negatives have a sharpness of {SHARPNESS:g} (paper: 1). Sizes, data and starts differ from the paper's, so only
  directions can be compared; *paper*: the paper has both numbers.
- ITC alone has no vision-language experts in stage 3, as none of its losses trains them."""


@dataclass(frozen=True)
class Findings:
    """Results of jobs by variant, in the order of their seeds; those of stages 1 and 2 under `stages`."""

    results: Mapping[str, Sequence[Mapping[str, Any]]]

    def values(self, variant: str, metric: str) -> list[float]:
        """Return a metric in percent, one value a seed; empty where the variant has none."""
        results = self.results.get(variant, ())
        return [100 * result["metrics"][metric] for result in results if metric in result["metrics"]]

    def chance(self, metric: str, variants: Sequence[str]) -> float:
        """Return the chance level of a metric in percent."""
        results = (result for name in variants for result in self.results.get(name, ()))
        return next(100 * result["chance"][metric] for result in results if metric in result["chance"])

    def differences(self, better: str, worse: str, metric: str) -> list[float]:
        """Return a metric of `better` minus that of `worse`, for each seed that both have."""
        first, second = (
            {result["seed"]: result["metrics"].get(metric) for result in self.results.get(name, ())}
            for name in (better, worse)
        )
        pairs = [(first[seed], second[seed]) for seed in first if seed in second]
        return [a - b for a, b in pairs if a is not None and b is not None]

    def verdict(self, better: str, worse: str, metric: str) -> str | None:
        """Return one of `VERDICTS`; None with fewer than two seeds."""
        differences = self.differences(better, worse, metric)
        if len(differences) < 2:
            return None
        return "holds" if min(differences) > 0 else "reversed" if max(differences) < 0 else "unclear"

    def minutes(self, variant: str) -> str:
        """Return mean minutes of training of a variant, and those of the stages before it."""
        own = self._minutes(variant, [name for name in STEPS if name != "easy-vqa-hidden"])
        before = self._minutes(STAGES, _STAGE_RUNS[start_of(variant)])
        return f"{own:.1f}" + (f" + {before:.1f}" if before else "")

    def _minutes(self, name: str, runs: Sequence[str]) -> float:
        found = self.results.get(name, ())
        return mean(sum(result["seconds"].get(run, 0.0) for run in runs) for result in found) / 60 if found else 0.0

    def questions(self) -> Iterator[tuple[str, Question]]:
        """Yield the questions with results of at least two variants."""
        for name, question in QUESTIONS.items():
            if sum(variant in self.results for variant in question.rows) > 1:
                yield name, question


def read_findings(run: Path, *, scale: float = 1.0) -> Findings:
    """Return the results of all finished jobs below `run`.

    Raises:
        ValueError: A job was made with other settings, or none has finished.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name in (STAGES, *VARIANTS):
        for seed in sorted(int(file.parent.name.removeprefix("seed-")) for file in run.glob(f"{name}/seed-*/{RESULT}")):
            result = read_result(Job(name, seed), run=run, scale=scale)
            if result is not None:
                found.setdefault(name, []).append(result)
    if not found:
        raise ValueError(
            f"no job below {run} has finished, so there is nothing to report; run experiments/ablations.py"
        )
    return Findings(found)


# --------------------------------------------------------------------------------------------------------- tables


def to_markdown(findings: Findings) -> str:
    """Return circumstances, legend and a table of all variants, then a chart and the verdicts of each question."""
    jobs = [result for name in VARIANTS for result in findings.results.get(name, ())]
    scale = jobs[0]["scale"]
    steps = [max(1, round(STEPS[name] * scale)) for name in ("stage3", "easy-vqa", "easy-vqa-pairs-colors")]
    facts = {"device": [], "versions": [], "commit": []}
    for job in jobs:
        around, hardware = job["circumstances"], job["circumstances"]["hardware"]
        cpu = "{threads} of {cores} cores of {cpu} a job".format_map({"threads": 0, "cores": 0, "cpu": ""} | hardware)
        facts["device"].append(cpu if job["device"] == "cpu" else f"one {hardware['gpu']}")
        facts["versions"].append(", ".join(f"{name} {version}" for name, version in around["versions"].items()))
        facts["commit"].append(f"commit {(around['commit'] or 'unknown')[:7]}")
    told = "; ".join(" or ".join(dict.fromkeys(each)) for each in facts.values())
    seeds = len({job["seed"] for job in jobs})
    parts = [
        "# Ablations",
        f"**Only a trial, with {scale:g} of the steps.**" if scale != 1 else "",
        f"{len(jobs)} jobs, {seeds} seeds; {told}.",
        f"Steps: {steps[0]:,} of stage 3, then {steps[1]:,} on easy-VQA, then {steps[2]:,} on two images.",
        _LEGEND,
        _tally(findings),
    ]
    if hidden := findings.values(PLAIN, "easy-vqa-hidden"):
        parts.append(f"easy-VQA of `{PLAIN}` with every image hidden: {_spread(hidden)}.")
    parts.append(_table(findings))
    parts += [_section(findings, name, question) for name, question in findings.questions()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(findings: Findings) -> str:
    rows = [variant for variant in VARIANTS if variant in findings.results]
    labels = {row: label for question in QUESTIONS.values() for row, label in question.rows.items() if row != PLAIN}
    metrics = [metric for metric in METRICS if any(findings.values(row, metric) for row in rows)]
    lines = [["", "parameters", *(METRICS[metric] for metric in metrics), "minutes"], ["---"] * (len(metrics) + 3)]
    for row in rows:
        name = f"`{row}`: {labels[row]}" if row in labels else f"`{row}`"
        shown = [_spread(findings.values(row, metric)) for metric in metrics]
        parameters = f"{findings.results[row][0]['parameters'] / 1e6:.2f}M"
        lines.append([name, parameters, *shown, findings.minutes(row)])
    lines.append(["chance", "", *(f"{findings.chance(metric, rows):.1f}" for metric in metrics), ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _section(findings: Findings, name: str, question: Question) -> str:
    claims = []
    for better, worse in question.claims:
        verdicts = {metric: findings.verdict(better, worse, metric) for metric in METRICS}
        groups = {each: [METRICS[metric] for metric in METRICS if verdicts[metric] == each] for each in VERDICTS}
        if any(groups.values()):
            paper = " (paper)" if {better, worse} <= set(question.paper) else ""
            clear = [f"{each} for {', '.join(groups[each])}" for each in ("holds", "reversed") if groups[each]]
            rest = [] if not groups["unclear"] else ["otherwise unclear"] if clear else ["unclear"]
            told = "; ".join(clear + rest)
            claims.append(f"- *{question.rows[better]}* better than *{question.rows[worse]}*{paper}: {told}.")
    reported = [
        f"*{question.rows[row]}* {' / '.join('-' if value is None else f'{value:.2f}' for value in values)}"
        for row, values in question.paper.items()
        if row in findings.results
    ]
    if reported:
        claims.append(f"- NLVR2 dev / test-P in the paper: {', '.join(reported)}.")
    chart = f"![{question.title}](images/findings-{name}.svg)"
    return "\n\n".join(filter(None, [f"## {question.title}", chart, "\n".join(claims)]))


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _tally(findings: Findings) -> str:
    """Return the number of verdicts of each kind, and how many of them chance alone would give."""
    asked = [
        (better, worse, metric)
        for _, question in findings.questions()
        for better, worse in question.claims
        for metric in METRICS
        if METRICS[metric] != "consistency" and findings.verdict(better, worse, metric)  # the same sentences again
    ]
    counts = Counter(findings.verdict(*each) for each in asked)
    by_chance = sum(0.5 ** len(findings.differences(*each)) for each in asked)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    return (
        asked
        and f"Of {len(asked)} comparisons: {told}. Chance alone would give {by_chance:.1f} holds and as many reversed."
    )


# --------------------------------------------------------------------------------------------------------- charts

_LABELS, _PANEL, _GAP, _ROW, _TOP, _BOTTOM = 270, 140, 36, 26, 62, 30
_STYLE = (
    "svg{font:13px system-ui,sans-serif;--ink:#24292f;--soft:#6b7380;--line:#d9dee4;--mark:#1f8474}"
    "@media(prefers-color-scheme:dark){svg{--ink:#e6e9ed;--soft:#9aa4b0;--line:#3a424c;--mark:#58c3ae}}"
    "text{fill:var(--ink)}.soft{fill:var(--soft);font-size:11px}.grid{stroke:var(--line)}"
    ".chance{stroke:var(--soft);stroke-dasharray:3 3}.spread{stroke:var(--mark);stroke-width:2}"
    ".seed{fill:var(--mark);opacity:.45}.mean{fill:var(--mark)}.title{font-size:15px;font-weight:600}"
)


def chart(findings: Findings, question: Question) -> str:
    """Return an SVG with a panel for each metric: a row a variant with its mean, seeds and range; chance is dashed."""
    rows = {row: label for row, label in question.rows.items() if row in findings.results}
    y_of = {row: _TOP + (number + 0.5) * _ROW for number, row in enumerate(rows)}
    parts = [f'<text class="title" x="8" y="20">{escape(question.title)}</text>']
    parts += [f'<text x="8" y="{y_of[row] + 4:.1f}">{escape(label)}</text>' for row, label in rows.items()]
    bottom, left = _TOP + _ROW * len(rows), _LABELS
    for metric in CHARTED:
        values = {row: findings.values(row, metric) for row in rows if findings.values(row, metric)}
        if not values:
            continue
        chance = findings.chance(metric, list(rows))
        highest = max(chance, *(value for each in values.values() for value in each))
        limit = next(each for each in (2, 5, 10, 20, 40, 60, 100) if each >= highest)
        scale = _PANEL / limit
        parts.append(f'<text x="{left}" y="{_TOP - 12}">{escape(METRICS[metric])}, %</text>')
        for tick in (0, limit / 2, limit):
            x = left + tick * scale
            parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>')
            parts.append(f'<text class="soft" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<path class="chance" d="M{left + chance * scale:.1f} {_TOP}V{bottom}"/>')
        for row, seeds in values.items():
            y, xs = y_of[row], [left + value * scale for value in seeds]
            title = f"{rows[row]}: {mean(seeds):.1f} ({', '.join(f'{value:.1f}' for value in seeds)})"
            parts.append(
                f'<g><title>{escape(title)}</title><path class="spread" d="M{min(xs):.1f} {y}H{max(xs):.1f}"/>'
            )
            parts += [f'<circle class="seed" cx="{x:.1f}" cy="{y}" r="3"/>' for x in xs]
            parts.append(f'<circle class="mean" cx="{mean(xs):.1f}" cy="{y}" r="5"/></g>')
        left += _PANEL + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + 8} {bottom + _BOTTOM}" role="img" '
        f'aria-label="{escape(question.title)}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )


# ---------------------------------------------------------------------------------------------------------- files


def write_charts(findings: Findings, folder: Path) -> None:
    """Write the chart of each question into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, question in findings.questions():
        (folder / f"findings-{name}.svg").write_text(chart(findings, question))


def write_report(run: Path, *, scale: float = 1.0) -> str:
    """Write `findings.md` with its charts below `run`, and return its text."""
    findings = read_findings(run, scale=scale)
    write_charts(findings, run / "images")
    text = to_markdown(findings)
    (run / "findings.md").write_text(text)
    return text


def page_of(findings: Findings, page: str) -> str:
    """Return the page with the tables of `findings` below its mark.

    Raises:
        ValueError: The page does not have the mark once.
    """
    if page.count(MARK) != 1:
        raise ValueError(f"the page of findings needs the line {MARK!r} once, it has it {page.count(MARK)} times")
    return page[: page.index(MARK)] + MARK + to_markdown(findings).removeprefix("# Ablations")


def publish(out: Path, *, run_dir: Path | None = None, docs: Path = ROOT / "docs") -> None:
    """Publish results of ablations.

    Args:
        out: JSON file with the result of each job.
        run_dir: Folder of experiments/ablations.py; without it the results in `out` are shown.
        docs: Folder of findings.md; charts go to its images/.
    """
    findings = Findings(json.loads(out.read_text())) if run_dir is None else read_findings(run_dir.absolute())
    page = docs / "findings.md"
    text = page_of(findings, page.read_text())
    out.write_text(json.dumps(findings.results, indent=1) + "\n")
    write_charts(findings, docs / "images")
    page.write_text(text)


if __name__ == "__main__":
    tyro.cli(publish, description=__doc__)
