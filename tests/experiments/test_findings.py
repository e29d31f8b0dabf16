"""Findings: means and spread by hand, verdicts seed by seed, and the published page shows the committed results."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import ablations
import findings
from ablations import RESULT, STAGES, Job
from findings import Findings, to_markdown

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "findings.md"
CIRCUMSTANCES = {
    "commit": "0123456789-dirty",
    "versions": {"torch": "2.13.0"},
    "hardware": {"cpu": "AMD EPYC", "cores": 2, "threads": 1, "gpu": None},
}


def job(variant, seed, *, seconds=60.0, chance=0.02, scale=1.0, **metrics):
    metrics = {name.replace("_at_", "@"): value for name, value in metrics.items()}
    return {
        "variant": variant,
        "seed": seed,
        "scale": scale,
        "parameters": 2_345_678,
        "metrics": metrics,
        "chance": dict.fromkeys(metrics, chance),
        # The baseline with hidden images is no part of a variant's training.
        "seconds": {"stage3": seconds / 2, "easy-vqa": seconds / 2, "easy-vqa-hidden": 99.0},
        "device": "cpu",
        "circumstances": CIRCUMSTANCES,
    }


TWO = Findings(
    {
        "plain": [
            job("plain", 0, ir_at_10=0.4, tr_at_10=0.3),
            job("plain", 1, ir_at_10=0.5, tr_at_10=0.3, seconds=120),
        ],
        "separate-attention": [
            job("separate-attention", 0, ir_at_10=0.3, tr_at_10=0.4),
            job("separate-attention", 1, ir_at_10=0.35, tr_at_10=0.2),
        ],
    }
)


def test_verdicts_go_seed_by_seed():
    assert TWO.verdict("plain", "separate-attention", "ir@10") == "holds"
    assert TWO.verdict("separate-attention", "plain", "ir@10") == "reversed"
    assert TWO.verdict("plain", "separate-attention", "tr@10") == "unclear"
    assert TWO.verdict("plain", "separate-attention", "ir@1") is None
    one = Findings({name: results[:1] for name, results in TWO.results.items()})
    assert one.verdict("plain", "separate-attention", "ir@10") is None  # one seed shows no spread
    apart = Findings({"plain": TWO.results["plain"][:1], "separate-attention": TWO.results["separate-attention"][1:]})
    assert apart.verdict("plain", "separate-attention", "ir@10") is None


def test_table_has_means_spread_chance_minutes_and_verdicts():
    text = to_markdown(TWO)
    lines = text.splitlines()
    assert "4 jobs, 2 seeds; 1 of 2 cores of AMD EPYC a job; torch 2.13.0; commit 0123456." in lines
    assert "Steps: 500 of stage 3, then 400 on easy-VQA, then 250 on two images." in lines
    assert "| `plain` | 2.35M | 45.0 ± 7.1 | 30.0 ± 0.0 | 1.5 |" in lines
    assert "| `separate-attention`: separate | 2.35M | 32.5 ± 3.5 | 30.0 ± 14.1 | 1.0 |" in lines
    assert "| chance |  | 2.0 | 2.0 |  |" in lines
    assert "- *shared* better than *separate*: holds for IR@10; otherwise unclear." in lines
    assert sum(line.startswith("## ") for line in lines) == 1  # questions with one variant are left out
    told = "Of 2 comparisons: 1 holds, 1 unclear, 0 reversed. Chance alone would give 0.5 holds and as many reversed."
    assert told in lines
    assert "Only a trial" not in text


def test_paper_stands_beside_what_it_reports():
    names = ("plain", "local-negatives", "random-negatives")
    results = {name: [job(name, seed, ir_at_10=0.4 + seed) for seed in (0, 1)] for name in names}
    text = to_markdown(Findings(results))
    assert "| `local-negatives`: hard, from an eighth of the batch | 2.35M | 90.0 ± 70.7 | 1.0 |" in text
    told = "*hard, from an eighth of the batch* 77.70 / -, *hard, from the whole batch* 79.54 / -"
    assert f"\n- NLVR2 dev / test-P in the paper: {told}.\n" in text
    assert "*hard, from an eighth of the batch* (paper): unclear." in text
    assert "*uniform from the batch*: unclear." in text


def test_what_a_variant_lacks_is_a_dash_and_stages_have_minutes_of_their_own():
    results = {
        "plain": [
            job("plain", 0, ir_at_10=0.4, scale=0.01, **{"matching": 0.1, "easy-vqa": 0.8, "easy-vqa-hidden": 0.6})
        ],
        "itc": [job("itc", 0, ir_at_10=0.4, **{"easy-vqa": 0.7})],
        "stage2": [job("stage2", 0, ir_at_10=0.4)],
        "stages": [{"seconds": {"tokenizer": 60.0, "stage1": 120.0 * seed, "stage2": 30.0}} for seed in (1, 2)],
    }
    text = to_markdown(Findings(results))
    assert "| `itc`: ITC | 2.35M | 40.0 | - | 70.0 | 1.0 |" in text
    assert "\neasy-VQA of `plain` with every image hidden: 60.0." in text
    assert "| `stage2`: from stages 1 and 2 (images, text) | 2.35M | 40.0 | - | - | 1.0 + 4.5 |" in text
    assert "\n- NLVR2 dev / test-P in the paper: *from stages 1 and 2 (images, text)* 82.09 / 82.49.\n" in text
    assert "**Only a trial, with 0.01 of the steps.**" in text
    assert "Steps: 5 of stage 3, then 4 on easy-VQA, then 2 on two images." in text


def test_chart_is_xml_with_every_seed():
    root = ElementTree.fromstring(findings.chart(TWO, ablations.QUESTIONS["attention"]))
    circles = [node for node in root.iter() if node.tag.endswith("circle")]
    assert sum(node.get("class") == "seed" for node in circles) == 2 * 2  # variants, seeds; TR@10 has no panel
    assert sum(node.get("class") == "mean" for node in circles) == 2
    width = float(root.get("viewBox").split()[2])
    assert all(0 < float(node.get("cx")) < width for node in circles)
    assert [node.text for node in root.iter() if node.tag.endswith("title")] == [
        "shared: 45.0 (40.0, 50.0)",
        "separate: 32.5 (30.0, 35.0)",
    ]


def test_report_is_of_all_finished_jobs_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match="has finished, so there is nothing to report"):
        ablations.main(["--report", "--run-dir", str(tmp_path)])
    jobs = [Job("itc", 0), Job("itc", 11), Job("plain", 11), Job(STAGES, 2)]
    for each in jobs:
        each.folder(tmp_path).mkdir(parents=True)
        settings = ablations._settings(ablations.recipes_of(each, run=tmp_path), run=tmp_path)
        facts = job(each.name, each.seed, ir_at_10=0.4) | {"settings": settings}
        (each.folder(tmp_path) / RESULT).write_text(json.dumps(facts))
    Job("plain", 0).folder(tmp_path).mkdir(parents=True)  # begun, not finished
    found = findings.read_findings(tmp_path).results
    seeds = {name: [each["seed"] for each in results] for name, results in found.items()}
    assert seeds == {STAGES: [2], "plain": [11], "itc": [0, 11]}
    ablations.main(["--report", "--run-dir", str(tmp_path)])
    assert (tmp_path / "findings.md").read_text() == to_markdown(Findings(found))
    assert (tmp_path / "images" / "findings-losses.svg").is_file()


def test_page_shows_the_committed_results():
    (name,) = re.findall(r"\]\(\.\./benchmarks/results/(ablations_[^)]*\.json)\)", PAGE.read_text())
    found = Findings(json.loads((ROOT / "benchmarks" / "results" / name).read_text()))
    assert findings.page_of(found, PAGE.read_text()) == PAGE.read_text()
    charts = {f"findings-{name}.svg": findings.chart(found, question) for name, question in found.questions()}
    assert charts == {file.name: file.read_text() for file in (PAGE.parent / "images").glob("findings-*.svg")}


def test_publishing_keeps_what_is_written_by_hand(tmp_path):
    page, out = tmp_path / "findings.md", tmp_path / "ablations.json"
    page.write_text("# By hand\n")
    out.write_text(json.dumps(TWO.results))
    with pytest.raises(ValueError, match=r"needs the line .* once, it has it 0 times"):
        findings.publish(out, docs=tmp_path)
    with pytest.raises(ValueError, match="no job below"):
        findings.publish(out, docs=tmp_path, run_dir=tmp_path)
    assert page.read_text() == "# By hand\n"
    page.write_text(f"# By hand\n\nWords.\n\n{findings.MARK}\n\nold tables\n")
    for _ in range(2):  # a second time changes nothing
        findings.publish(out, docs=tmp_path)
        assert page.read_text().startswith(f"# By hand\n\nWords.\n\n{findings.MARK}\n\n4 jobs, 2 seeds")
        assert "old tables" not in page.read_text()
        assert (tmp_path / "images" / "findings-attention.svg").is_file()
