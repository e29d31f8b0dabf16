"""Puts a table of `vlmo ablate` into the documents: its results here, its tables and charts into docs/findings.md.

    python benchmarks/findings.py --run-dir runs/ablation --out benchmarks/results/ablations.json

What stands above the line with `MARK` in docs/findings.md is written by hand and stays; all below it is replaced.
Without `--run-dir` the results in `--out` are read instead.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from vlmo.folder import write_file
from vlmo.recipes.findings import Findings, read_findings, to_markdown, write_results

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- all below is written by benchmarks/findings.py -->"


@dataclass(frozen=True)
class Options:
    """Publishes a table of ablations."""

    out: Path
    """JSON file with the result of each job."""
    run_dir: Path | None = None
    """Folder of `vlmo ablate`; by default what is in `out` is shown."""
    docs: Path = ROOT / "docs"
    """Folder that has findings.md, and images/ for the charts."""


def page_of(findings: Findings, page: str) -> str:
    """The page with the tables of `findings` below its mark.

    Raises:
        ValueError: The page has no mark, or more than one.
    """
    if page.count(MARK) != 1:
        raise ValueError(f"the page of findings needs the line {MARK!r} once, it has it {page.count(MARK)} times")
    _, tables = to_markdown(findings).split("\n", 1)  # the page has a title of its own
    return f"{page[: page.index(MARK)]}{MARK}\n{tables}"


def main(arguments: list[str] | None = None) -> None:
    """Writes the results, the page and its charts."""
    options = tyro.cli(Options, args=sys.argv[1:] if arguments is None else arguments, description=__doc__)
    page = options.docs / "findings.md"
    if options.run_dir is not None:
        findings = read_findings(options.run_dir.absolute())
    elif options.out.is_file():
        findings = Findings(json.loads(options.out.read_text(encoding="utf-8")))
    else:
        raise SystemExit(
            f"{options.out} is not there; give a file of results, or --run-dir with a folder of vlmo ablate"
        )
    if not findings.results:
        raise SystemExit(f"no job has finished in {options.run_dir or options.out}; docs/findings.md stays as it is")
    text = page_of(findings, page.read_text(encoding="utf-8"))
    write_results(findings, options.out, images=options.docs / "images")
    write_file(page, text)


if __name__ == "__main__":
    main()
