"""What a table of ablations shows: means, spread over seeds, and whether the paper's direction holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, get_args

from vlmo.evaluation.intervals import Interval, interval_chart
from vlmo.folder import write_file
from vlmo.recipes import emoji
from vlmo.recipes.ablation import (
    HIDDEN_RUN,
    PAIRS,
    PLAIN,
    QUESTIONS,
    QUESTIONS_RUN,
    SENTENCES_RUN,
    SHARPNESS,
    STAGE3,
    STEPS,
    VARIANTS,
    Question,
    Start,
)
from vlmo.recipes.ablation_jobs import CONSISTENCY, MATCHING, RESULT, STAGES, Job, read_result
from vlmo.recipes.retrieval import RERANK

METRICS = {
    "ir@1": "IR@1",
    "ir@10": "IR@10",
    "tr@1": "TR@1",
    "tr@10": "TR@10",
    MATCHING: "matching",
    QUESTIONS_RUN: "easy-VQA",
    SENTENCES_RUN: "two pictures",
    CONSISTENCY: "two pictures, consistency",
}
"""Figures of the tables by the names in a job's result."""
DRAWN = ("ir@10", MATCHING, QUESTIONS_RUN, SENTENCES_RUN)
"""Of these, what the charts show."""
Verdict = Literal["holds", "hidden by the spread", "the other way"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_STAGE_RUNS: dict[Start, tuple[str, ...]] = {
    "nothing": (),
    "stage1": (emoji.TOKENIZER, emoji.STAGE1),
    "stage2": (emoji.TOKENIZER, emoji.STAGE1, emoji.STAGE2),
}
_LEGEND = f"""\
- Figures are percent, mean ± standard deviation over seeds; charts show every seed. Minutes are of training, those of
  stages 1 and 2 behind a +.
- Stage 3 trains on `{PAIRS}`. IR and TR: the dual encoder on 500 drawings whose concepts were seen as another artist
  drew them. *Matching*: of the shortlists of {RERANK} that hold the right picture, the share in which the matching head
  alone puts it first. A better dual encoder makes other shortlists, and harder ones.
- *easy-VQA*: questions about a drawn shape. *Two pictures*: sentences about the colours of two shapes, from the model
  of the questions, so these columns are not independent; *consistency*: sentences judged rightly of all four pairs.
- Hard negatives are drawn with a sharpness of {SHARPNESS:g}; the paper's is 1.
- A claim *holds* where every seed says so, and goes *the other way* where every seed says that. With three seeds, a
  coin does each of the two one time in eight, and there are many verdicts here: a few are luck. With one seed there is
  none. With the same seed variants share the order of data, and those with the same modules also their initial weights.
- Parameters are those of stage 3. No loss of ITC alone reaches vision-language experts, so it has none there, and
  fine-tuning starts them from the language experts.
- The paper's figures are of other sizes, data and starts, so only directions can be compared. Where it has both
  figures of a claim, *paper* stands behind it; the others are what its design leads one to expect."""


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
    """Results of jobs by variant, in the order of their seeds; those of stages 1 and 2 under `stages`."""

    results: Mapping[str, Sequence[Mapping[str, Any]]]

    def cell(self, variant: str, metric: str) -> Cell | None:
        """A figure, or None where the variant has none."""
        found = [result for result in self.results.get(variant, ()) if metric in result["metrics"]]
        if not found:
            return None
        return Cell(tuple(result["metrics"][metric] for result in found), found[0]["chance"][metric])

    def differences(self, better: str, worse: str, metric: str) -> list[float]:
        """A figure of `better` less that of `worse`, of each seed that both have."""
        pairs = [
            (first["metrics"].get(metric), second["metrics"].get(metric))
            for first in self.results.get(better, ())
            for second in self.results.get(worse, ())
            if first["seed"] == second["seed"]
        ]
        return [first - second for first, second in pairs if first is not None and second is not None]

    def verdict(self, better: str, worse: str, metric: str) -> Verdict | None:
        """Whether `better` is better with every seed, or worse with every seed; None with fewer than two seeds."""
        differences = self.differences(better, worse, metric)
        if len(differences) < 2:
            return None
        if min(differences) > 0:
            return "holds"
        return "the other way" if max(differences) < 0 else "hidden by the spread"

    def minutes(self, variant: str) -> str:
        """Minutes of training that a variant's figures took, mean over seeds, and those of the stages before it.

        The baseline with hidden pictures is no part of it, nor are evaluations.
        """
        own = self._mean_seconds(variant, list(STEPS))
        before = self._mean_seconds(STAGES, _STAGE_RUNS[VARIANTS[variant].start])
        return f"{own / 60:.1f}" + (f" + {before / 60:.1f}" if before else "")

    def _mean_seconds(self, name: str, runs: Sequence[str]) -> float:
        found = self.results.get(name, ())
        return mean(sum(result["seconds"].get(run, 0.0) for run in runs) for result in found) if found else 0.0

    def questions(self) -> Iterator[tuple[str, Question]]:
        """Those of which at least two variants have results."""
        for name, question in QUESTIONS.items():
            if sum(variant in self.results for variant in question.rows) > 1:
                yield name, question


def read_findings(run: Path, *, scale: float = 1.0) -> Findings:
    """What all finished jobs below `run` have found.

    Raises:
        ValueError: A job was made with other settings.
    """
    found = {}
    for name in (STAGES, *VARIANTS):
        seeds = sorted(int(file.parent.name.removeprefix("seed-")) for file in (run / name).glob(f"seed-*/{RESULT}"))
        results = [read_result(Job(name, seed), run=run, scale=scale) for seed in seeds]
        if results:
            found[name] = [result for result in results if result is not None]
    return Findings(found)


def to_markdown(findings: Findings) -> str:
    """How it was measured, then for each question a row for each variant, the paper's figures and verdicts."""
    parts = ["# Ablations", _how(findings), _tally(findings), _baselines(findings)]
    parts += [_section(findings, name, question) for name, question in findings.questions()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _how(findings: Findings) -> str:
    jobs = [result for name in VARIANTS for result in findings.results.get(name, ())]
    if not jobs:
        return "No job has finished."
    seeds, scale = len({job["seed"] for job in jobs}), jobs[0]["scale"]
    steps = {name: max(1, round(count * scale)) for name, count in STEPS.items()}
    facts = [_told(_device(job) for job in jobs)]
    facts.append(_told(", ".join(f"{k} {v}" for k, v in job["circumstances"]["versions"].items()) for job in jobs))
    facts.append(_told(f"commit {each}" for job in jobs if (each := _short(job["circumstances"]["commit"]))))
    found = (
        f"{len(jobs)} jobs, {seeds} {'seed' if seeds == 1 else 'seeds'}; {'; '.join(filter(None, facts))}. Each "
        f"variant: {steps[STAGE3]:,} steps of stage 3, then {steps[QUESTIONS_RUN]:,} on questions, then "
        f"{steps[SENTENCES_RUN]:,} on sentences about two pictures."
    )
    parts = [found, _LEGEND]
    if scale != 1:
        parts.insert(0, f"**Only a trial, with {scale:g} of the steps.**")
    return "\n\n".join(parts)


def _told(values: Iterable[str]) -> str:
    """Each once."""
    return " or ".join(dict.fromkeys(values))


def _device(job: Mapping[str, Any]) -> str:
    hardware = job["circumstances"]["hardware"]
    if job["device"] != "cpu":
        return f"one {hardware['gpu']}"
    return f"{hardware['threads']} of {hardware['cores']} cores of {hardware['cpu']} a job"


def _short(commit: str | None) -> str:
    name, _, state = (commit or "").partition("-")
    return f"{name[:7]}-{state}" if state else name[:7]


def _section(findings: Findings, name: str, question: Question) -> str:
    names = [metric for metric in METRICS if any(findings.cell(row, metric) for row in question.rows)]
    heads = ["", "parameters", *(METRICS[metric] for metric in names), "minutes", "paper: NLVR2 dev / test-P"]
    lines = [f"## {question.title}", "", _row(heads), _row(["---"] * len(heads))]
    for row, label in question.rows.items():
        if row not in findings.results:
            continue
        cells = [findings.cell(row, metric) for metric in names]
        parameters = findings.results[row][0]["parameters"] / 1e6
        paper = question.paper.get(row)
        reported = "" if paper is None else " / ".join("-" if value is None else f"{value:.2f}" for value in paper)
        shown = ["-" if cell is None else str(cell) for cell in cells]
        lines.append(_row([label, f"{parameters:.2f}M", *shown, findings.minutes(row), reported]))
    chances = [next(cell.chance for row in question.rows if (cell := findings.cell(row, metric))) for metric in names]
    lines.append(_row(["chance", "", *(f"{100 * value:.1f}" for value in chances), "", ""]))
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
            reported = " (paper)" if {better, worse} <= set(question.paper) else ""
            yield f"- *{question.rows[better]}* better than *{question.rows[worse]}*{reported}: {'; '.join(parts)}."


def _tally(findings: Findings) -> str:
    """How many verdicts there are of each kind, beside those of coins; consistency counts the same sentences again."""
    asked = [
        (better, worse, metric)
        for _, question in findings.questions()
        for better, worse in question.claims
        for metric in METRICS
        if metric != CONSISTENCY and findings.verdict(better, worse, metric)
    ]
    if not asked:
        return ""
    given = Counter(findings.verdict(*each) for each in asked)
    by_coins = sum(0.5 ** len(findings.differences(*each)) for each in asked)
    counts = "; ".join(f"{verdict}: {given[verdict]}" for verdict in VERDICTS)
    return (
        f"Of {len(asked)} verdicts (without consistency), {counts}. Coins would give {by_coins:.1f} of the first and "
        "of the last kind."
    )


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
    write_results(findings, folder / "findings.json", images=folder / "images")
    write_file(folder / "findings.md", to_markdown(findings))


def write_results(findings: Findings, file: Path, *, images: Path) -> None:
    """Every result as JSON, and the charts into a folder; both are made where they are missing."""
    for folder in (file.parent, images):
        folder.mkdir(parents=True, exist_ok=True)
    write_file(file, json.dumps(findings.results, indent=1) + "\n")
    for name, svg in charts(findings).items():
        write_file(images / name, svg)
