"""Findings: means and spread by hand, verdicts seed by seed, and what is missing is said to be."""

from xml.etree import ElementTree

from vlmo.recipes.findings import Findings, charts, read_findings, to_markdown, write_findings


def job(variant, seed, *, seconds=60.0, chance=0.02, **metrics):
    metrics = {name.replace("_at_", "@"): value for name, value in metrics.items()}
    return {
        "variant": variant,
        "seed": seed,
        "metrics": metrics,
        "chance": dict.fromkeys(metrics, chance),
        "seconds": {"stage3": seconds},
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
    assert one.verdict("plain", "separate-attention", "ir@10") == "hidden by the spread"
    apart = Findings({"plain": TWO.results["plain"][:1], "separate-attention": TWO.results["separate-attention"][1:]})
    assert apart.verdict("plain", "separate-attention", "ir@10") is None


def test_table_has_means_spread_chance_minutes_and_verdicts():
    lines = to_markdown(TWO).splitlines()
    assert "| shared | 45.0 ± 7.1 | 30.0 ± 0.0 | 1.5 |  |" in lines
    assert "| separate | 32.5 ± 3.5 | 30.0 ± 14.1 | 1.0 |  |" in lines
    assert "| chance | 2.0 | 2.0 |  |  |" in lines
    assert "- *shared* better than *separate*: holds for IR@10; hidden by the spread for TR@10." in lines
    assert sum(line.startswith("## ") for line in lines) == 1  # questions with one variant are left out


def test_paper_stands_beside_what_it_reports():
    results = {name: [job(name, 0, ir_at_10=0.4)] for name in ("plain", "local-negatives", "random-negatives")}
    text = to_markdown(Findings(results))
    assert "| hard, from an eighth of the batch | 40.0 | 1.0 | 77.70 / - |" in text
    assert "| drawn evenly from the batch | 40.0 | 1.0 |  |" in text


def test_figure_that_a_variant_lacks_is_a_dash():
    results = {
        "plain": [job("plain", 0, ir_at_10=0.4, **{"matching_ir@1": 0.1, "easy-vqa": 0.8, "easy-vqa-hidden": 0.6})],
        "itc": [job("itc", 0, ir_at_10=0.4, **{"easy-vqa": 0.7})],
    }
    text = to_markdown(Findings(results))
    assert "| ITC | 40.0 | - | 70.0 | 1.0 | 73.91 / 73.75 |" in text
    assert text.startswith("Easy-VQA with every picture hidden, from the plain variant: 60.0 (")


def test_charts_are_xml_with_every_seed():
    drawn = charts(TWO)
    assert list(drawn) == ["findings-attention.svg"]
    root = ElementTree.fromstring(drawn["findings-attention.svg"])
    circles = [node for node in root.iter() if node.tag.endswith("circle")]
    assert sum(node.get("class") == "seed" for node in circles) == 2 * 2 * 2  # panels, variants, seeds
    assert sum(node.get("class") == "mean" for node in circles) == 2 * 2
    width = float(root.get("viewBox").split()[2])
    assert all(0 < float(node.get("cx")) < width for node in circles)
    assert "IR@10: shared 45.0, separate 32.5" in root.get("aria-label")


def test_written_findings_hold_every_result(tmp_path):
    write_findings(TWO, tmp_path)
    assert (tmp_path / "findings.md").read_text() == to_markdown(TWO)
    assert (tmp_path / "images" / "findings-attention.svg").is_file()
    assert '"seed": 1' in (tmp_path / "findings.json").read_text()
    assert read_findings(["itc"], seeds=2, run=tmp_path).results == {}  # no job has finished
