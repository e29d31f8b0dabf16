"""Findings: means and spread by hand, verdicts seed by seed, and what is missing is said to be."""

import json
from xml.etree import ElementTree

from vlmo.recipes import ablation_jobs
from vlmo.recipes.ablation_jobs import RESULT, STAGES, Job, recipes_of
from vlmo.recipes.findings import Findings, charts, read_findings, to_markdown, write_findings

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
        # Neither evaluations nor the baseline with hidden pictures are part of a variant's training.
        "seconds": {
            "stage3": seconds / 2,
            "easy-vqa": seconds / 2,
            "stage3, evaluation": 999.0,
            "easy-vqa-hidden": 99.0,
        },
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
    assert TWO.verdict("separate-attention", "plain", "ir@10") == "the other way"
    assert TWO.verdict("plain", "separate-attention", "tr@10") == "hidden by the spread"
    assert TWO.verdict("plain", "separate-attention", "ir@1") is None
    one = Findings({name: results[:1] for name, results in TWO.results.items()})
    assert one.verdict("plain", "separate-attention", "ir@10") is None  # one seed shows no spread
    apart = Findings({"plain": TWO.results["plain"][:1], "separate-attention": TWO.results["separate-attention"][1:]})
    assert apart.verdict("plain", "separate-attention", "ir@10") is None


def test_table_has_means_spread_chance_minutes_and_verdicts():
    lines = to_markdown(TWO).splitlines()
    assert "| shared | 2.35M | 45.0 ± 7.1 | 30.0 ± 0.0 | 1.5 |  |" in lines
    assert "| separate | 2.35M | 32.5 ± 3.5 | 30.0 ± 14.1 | 1.0 |  |" in lines
    assert "| chance |  | 2.0 | 2.0 |  |  |" in lines
    assert "- *shared* better than *separate*: holds for IR@10; hidden by the spread for TR@10." in lines
    assert sum(line.startswith("## ") for line in lines) == 1  # questions with one variant are left out
    counted = "Of 2 verdicts (without consistency), holds: 1; hidden by the spread: 1; the other way: 0."
    assert f"{counted} Coins would give 0.5 of the first and of the last kind." in lines


def test_paper_stands_beside_what_it_reports():
    results = {name: [job(name, 0, ir_at_10=0.4)] for name in ("plain", "local-negatives", "random-negatives")}
    text = to_markdown(Findings(results))
    assert "| hard, from an eighth of the batch | 2.35M | 40.0 | 1.0 | 77.70 / - |" in text
    assert "| drawn evenly from the batch | 2.35M | 40.0 | 1.0 |  |" in text


def test_figure_that_a_variant_lacks_is_a_dash():
    results = {
        "plain": [job("plain", 0, ir_at_10=0.4, **{"matching": 0.1, "easy-vqa": 0.8, "easy-vqa-hidden": 0.6})],
        "itc": [job("itc", 0, ir_at_10=0.4, **{"easy-vqa": 0.7})],
    }
    text = to_markdown(Findings(results))
    assert "| ITC | 2.35M | 40.0 | - | 70.0 | 1.0 | 73.91 / 73.75 |" in text
    assert "\nEasy-VQA with every picture hidden, from the plain variant: 60.0 (" in text


def test_minutes_of_the_stages_before_stand_apart():
    results = {name: [job(name, seed, ir_at_10=0.4) for seed in (0, 1)] for name in ("plain", "stage1", "stage2")}
    stages = [{"seconds": {"tokenizer": 60.0, "stage1": 120.0 * (1 + seed), "stage2": 30.0}} for seed in (0, 1)]
    text = to_markdown(Findings(results | {"stages": stages}))
    assert "| from nothing | 2.35M | 40.0 ± 0.0 | 1.0 |" in text
    assert "| from stage 1 (images) | 2.35M | 40.0 ± 0.0 | 1.0 + 4.0 |" in text
    assert "| from stages 1 and 2 (images, text) | 2.35M | 40.0 ± 0.0 | 1.0 + 4.5 |" in text


def test_report_says_how_it_was_measured_and_what_the_paper_reports():
    text = to_markdown(TWO)
    assert text.startswith(
        "# Ablations\n\n4 jobs, 2 seeds; 1 of 2 cores of AMD EPYC a job; torch 2.13.0; commit 0123456-dirty. "
    )
    other = job("plain", 2, ir_at_10=0.4) | {"device": "cuda:0"}
    other["circumstances"] = {"commit": None, "versions": {"torch": "2.12.0"}, "hardware": {"gpu": "NVIDIA H100"}}
    mixed = to_markdown(Findings({"plain": [*TWO.results["plain"], other], "itc": [other]}))
    assert "; 1 of 2 cores of AMD EPYC a job or one NVIDIA H100; torch 2.13.0 or torch 2.12.0; commit 0123456" in mixed
    assert "500 steps of stage 3, then 400 on questions, then 250 on sentences" in text
    assert "(paper)" not in text  # which has no figures of separate attention
    both = {name: [job(name, seed, ir_at_10=0.4 + seed) for seed in (0, 1)] for name in ("plain", "itc", "itc-mlm")}
    lines = to_markdown(Findings(both)).splitlines()
    assert "- *ITC + MLM + ITM* better than *ITC* (paper): hidden by the spread for IR@10." in lines
    assert "- *ITC + MLM + ITM* better than *ITC + MLM*: hidden by the spread for IR@10." in lines


def test_trial_with_few_steps_is_named_so():
    few = {name: [job(name, 0, ir_at_10=0.4, scale=0.01)] for name in ("plain", "itc")}
    assert "**Only a trial, with 0.01 of the steps.**\n\n2 jobs, 1 seed; " in to_markdown(Findings(few))
    assert "5 steps of stage 3, then 4 on questions, then 2 on" in to_markdown(Findings(few))


def test_charts_are_xml_with_every_seed():
    drawn = charts(TWO)
    assert list(drawn) == ["findings-attention.svg"]
    root = ElementTree.fromstring(drawn["findings-attention.svg"])
    circles = [node for node in root.iter() if node.tag.endswith("circle")]
    assert sum(node.get("class") == "seed" for node in circles) == 2 * 2  # variants, seeds; TR@10 is not drawn
    assert sum(node.get("class") == "mean" for node in circles) == 2
    width = float(root.get("viewBox").split()[2])
    assert all(0 < float(node.get("cx")) < width for node in circles)
    assert "IR@10: shared 45.0, separate 32.5" in root.get("aria-label")


def test_written_findings_hold_every_result(tmp_path):
    write_findings(TWO, tmp_path)
    assert (tmp_path / "findings.md").read_text() == to_markdown(TWO)
    assert (tmp_path / "images" / "findings-attention.svg").is_file()
    assert '"seed": 1' in (tmp_path / "findings.json").read_text()
    assert read_findings(tmp_path).results == {}  # no job has finished
    assert "No job has finished." in to_markdown(Findings({}))


def test_all_finished_jobs_of_a_folder_are_read(tmp_path):
    for each in (Job("itc", 0), Job("itc", 11), Job(STAGES, 2)):
        each.folder(tmp_path).mkdir(parents=True)
        settings = ablation_jobs._settings(recipes_of(each, run=tmp_path), run=tmp_path)
        (each.folder(tmp_path) / RESULT).write_text(json.dumps({"settings": settings, "seed": each.seed}))
    Job("plain", 0).folder(tmp_path).mkdir(parents=True)  # begun, not finished
    seeds = {name: [found["seed"] for found in results] for name, results in read_findings(tmp_path).results.items()}
    assert seeds == {STAGES: [2], "itc": [0, 11]}
