"""What a table of ablations shows: means, spread over seeds, and whether the paper's direction holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, get_args

from vlmo.evaluation.intervals import Interval, interval_chart
from vlmo.folder import write_file
from vlmo.recipes.ablation import HIDDEN_RUN, PLAIN, QUESTIONS, QUESTIONS_RUN, SENTENCES_RUN, Question
from vlmo.recipes.ablation_jobs import CONSISTENCY, MATCHING, Job, read_result

METRICS = {
    "ir@1": "IR@1",
    "ir@10": "IR@10",
    "tr@1": "TR@1",
    "tr@10": "TR@10",
    MATCHING: "IR@1 by matching alone",
    QUESTIONS_RUN: "easy-VQA",
    SENTENCES_RUN: "two pictures",
    CONSISTENCY: "two pictures, consistency",
}
"""Figures of the tables by the names in a job's result."""
DRAWN = ("ir@10", "tr@10", QUESTIONS_RUN, SENTENCES_RUN)
"""Of these, what the charts show."""
Verdict = Literal["holds", "hidden by the spread", "the other way"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Cell:
    """A figure of a variant over seeds; all values are fractions."""

    values: tuple[float, ...]
    chance: float

    def __str__(self) -> str:
        spread = f" ± {100 * stdev(self.values):.1f}" if len(self.values) > 1 else ""
        return f"{100 * mean(self.values):.1f}{spread}"


@dataclass(frozen=True)
class Findings:
    """Results of jobs by variant, in the order of their seeds."""

    results: Mapping[str, Sequence[Mapping[str, Any]]]

    def cell(self, variant: str, metric: str) -> Cell | None:
        """A figure, or None where the variant has none."""
        found = [result for result in self.results.get(variant, ()) if metric in result["metrics"]]
        if not found:
            return None
        # Chance of what matching reorders depends on the shortlist; all others have the same with each seed.
        chance = mean(result["chance"][metric] for result in found)
        return Cell(tuple(result["metrics"][metric] for result in found), chance)

    def verdict(self, better: str, worse: str, metric: str) -> Verdict | None:
        """Whether `better` is better with every seed, or worse with every seed. None where no seed has both figures."""
        pairs = [
            (first["metrics"].get(metric), second["metrics"].get(metric))
            for first in self.results.get(better, ())
            for second in self.results.get(worse, ())
            if first["seed"] == second["seed"]
        ]
        differences = [first - second for first, second in pairs if first is not None and second is not None]
        if not differences:
            return None
        if len(differences) > 1 and min(differences) > 0:
            return "holds"
        return "the other way" if len(differences) > 1 and max(differences) < 0 else "hidden by the spread"

    def seconds(self, variant: str) -> float | None:
        """Wall time of a job, mean over seeds."""
        found = self.results.get(variant, ())
        return mean(sum(result["seconds"].values()) for result in found) if found else None

    def questions(self) -> Iterator[tuple[str, Question]]:
        """Those of which at least two variants have results."""
        for name, question in QUESTIONS.items():
            if sum(variant in self.results for variant in question.rows) > 1:
                yield name, question


def read_findings(variants: Sequence[str], *, seeds: int, run: Path, scale: float = 1.0) -> Findings:
    """What finished jobs have found.

    Raises:
        ValueError: A job was made with other settings.
    """
    jobs = {name: [read_result(Job(name, seed), run=run, scale=scale) for seed in range(seeds)] for name in variants}
    found = {name: [result for result in results if result is not None] for name, results in jobs.items()}
    return Findings({name: results for name, results in found.items() if results})


def to_markdown(findings: Findings) -> str:
    """A section for each question: a row for each variant, the paper's figures beside it, and verdicts."""
    parts = [_baselines(findings)]
    parts += [_section(findings, name, question) for name, question in findings.questions()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(findings: Findings, name: str, question: Question) -> str:
    names = [metric for metric in METRICS if any(findings.cell(row, metric) for row in question.rows)]
    heads = ["", *(METRICS[metric] for metric in names), "minutes", "paper: NLVR2 dev / test-P"]
    lines = [f"## {question.title}", "", _row(heads), _row(["---"] * len(heads))]
    for row, label in question.rows.items():
        if row not in findings.results:
            continue
        cells = [findings.cell(row, metric) for metric in names]
        seconds = findings.seconds(row) or 0.0
        paper = question.paper.get(row)
        reported = "" if paper is None else " / ".join("-" if value is None else f"{value:.2f}" for value in paper)
        shown = ["-" if cell is None else str(cell) for cell in cells]
        lines.append(_row([label, *shown, f"{seconds / 60:.1f}", reported]))
    chances = [next(cell.chance for row in question.rows if (cell := findings.cell(row, metric))) for metric in names]
    lines.append(_row(["chance", *(f"{100 * value:.1f}" for value in chances), "", ""]))
    lines += ["", f"![{question.title}](images/findings-{name}.svg)", ""]
    lines += _claims(findings, question, names)
    return "\n".join(lines).rstrip()


def _claims(findings: Findings, question: Question, metrics: Sequence[str]) -> Iterator[str]:
    for better, worse in question.claims:
        verdicts = {metric: findings.verdict(better, worse, metric) for metric in metrics}
        parts = []
        for verdict in VERDICTS:
            found = [METRICS[metric] for metric, given in verdicts.items() if given == verdict]
            parts += [f"{verdict} for {', '.join(found)}"] if found else []
        if parts:
            yield f"- *{question.rows[better]}* better than *{question.rows[worse]}*: {'; '.join(parts)}."


def _baselines(findings: Findings) -> str:
    hidden, asked = findings.cell(PLAIN, HIDDEN_RUN), findings.cell(PLAIN, QUESTIONS_RUN)
    if hidden is None or asked is None:
        return ""
    return (
        f"Easy-VQA with every picture hidden, from the plain variant: {hidden} (the most frequent answer "
        f"{100 * hidden.chance:.1f}); with pictures {asked}."
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def charts(findings: Findings) -> dict[str, str]:
    """An SVG for each question, by the name of its file."""
    drawn = {}
    for name, question in findings.questions():
        panels = {}
        for metric in DRAWN:
            cells = [(label, findings.cell(row, metric)) for row, label in question.rows.items()]
            rows = [Interval(label, cell.values) for label, cell in cells if cell is not None]
            chance = next((cell.chance for _, cell in cells if cell is not None), None)
            if rows and chance is not None:
                panels[METRICS[metric]] = (rows, chance)
        drawn[f"findings-{name}.svg"] = interval_chart(panels, title=question.title)
    return drawn


def write_findings(findings: Findings, folder: Path) -> None:
    """`findings.md` with its pictures in `images/`, and `findings.json` with every result."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_file(folder / "findings.json", json.dumps(findings.results, indent=1) + "\n")
    write_file(folder / "findings.md", to_markdown(findings))
    for name, svg in charts(findings).items():
        write_file(folder / "images" / name, svg)
