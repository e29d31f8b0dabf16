"""Findings: variants differ in one thing, effects have right intervals, and jobs run once and are reported."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

import findings
import findings_design
import findings_report
import shape_world
from findings_design import CLAIMS, CONFIRMATIONS, MATCHING, RECALL, SECONDARY, VARIANTS
from findings_report import Effect, effect
from vlmo.recipes.schema import changed_settings
from vlmo.tasks import evaluate

CHANGED = {
    "few": ["data.source", "trainer.max_steps"],
    "few-stages": ["data.source", "trainer.max_steps"],
    "few-stage1": ["data.source", "trainer.max_steps"],
    "few-separate-attention": ["data.source", "model.attention", "trainer.max_steps"],
    "itc": ["model.num_fusion_layers", "task.losses.itm_weight", "task.losses.mlm_weight"],
    "local-negatives": ["task.losses.negative_groups"],
    "no-fusion-expert": ["model.num_fusion_layers"],
    "standard": ["model.experts"],
    "separate-attention": ["model.attention"],
    "itc-itm": ["task.losses.mlm_weight"],
    "random-negatives": ["task.losses.negative_sharpness"],
    "standard-wide": ["model.experts", "model.intermediate_size"],
    "separate-attention-narrow": ["model.attention", "model.intermediate_size"],
    "fewest": ["data.source", "trainer.max_steps"],
    "fewest-stages": ["data.source", "trainer.max_steps"],
    "brief": ["trainer.max_steps"],
    "brief-stages": ["trainer.max_steps"],
    "brief-stages-no-fusion-expert": ["model.num_fusion_layers", "trainer.max_steps"],
    "thin": ["model.intermediate_size"],
    "thin-no-fusion-expert": ["model.intermediate_size", "model.num_fusion_layers"],
    "itc-mlm": ["task.losses.itm_weight"],
    "itm-mlm": ["task.losses.itc_weight"],
}


def test_variants_differ_from_plain_in_one_thing(tmp_path):
    recipes = {name: findings_design.stage3(name, world=tmp_path) for name in VARIANTS}
    changed = {name: sorted(changed_settings(recipes["plain"], recipe)) for name, recipe in recipes.items()}
    assert changed == {"plain": []} | CHANGED
    compared = {name for claim in CLAIMS + CONFIRMATIONS + SECONDARY for name in (claim.better, claim.worse)}
    assert compared == set(VARIANTS)


def test_an_effect_has_the_t_interval_of_seeds_and_the_bootstrap_of_items():
    """Seeds differ by 10 and 30 points: 20 ± 12.706 * 10. Items by 0 and 40: a quarter of the draws is either twice."""
    found = effect(np.array([[0.5, 0.7], [0.5, 0.8]]), np.array([[0.5, 0.5], [0.5, 0.2]]))
    assert found.seeds == pytest.approx((10, 30))
    assert found.t == pytest.approx((20 - 127.062, 20 + 127.062), abs=0.001)
    assert found.bootstrap == pytest.approx((0, 40))
    with pytest.raises(ValueError, match="1 seeds"):
        effect(np.ones((1, 2)), np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("t", "bootstrap", "verdict"),
    [
        ((0.1, 3), (1, 2), "holds"),
        ((-3, -0.1), (-2, -1), "reversed"),
        ((-0.1, 3), (1, 2), "unclear"),
        ((0.1, 3), (-1, 2), "unclear"),
    ],
)
def test_a_verdict_needs_both_intervals_on_one_side_of_zero(t, bootstrap, verdict):
    assert Effect((1.0, 2.0), t=t, bootstrap=bootstrap).verdict == verdict


def test_scenes_are_those_of_the_findings():
    rows = [shape_world._pairs("train", 50), shape_world._gallery("test", 50), list(shape_world._binding("test", 8))]
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == "df02f67a42010520"


@pytest.mark.slow
def test_jobs_run_once_and_are_published(tmp_path, monkeypatch, capsys):
    real = findings_design.stage3

    def tiny(variant, *, world):
        recipe = real(variant, world=world)
        return replace(recipe, model=replace(recipe.model, hidden_size=32, num_hidden_layers=2, num_fusion_layers=1))

    monkeypatch.setattr(findings_design, "stage3", tiny)
    page = tmp_path / "docs" / "findings.md"
    page.parent.mkdir()
    page.write_text(f"# Page\n\n{findings_report.MARK}\n\nold")
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    command = ["few", "itc", "--run-dir", str(tmp_path / "runs"), "--scale", "0.002", "--seeds", "1"]
    findings.main(command)
    results = sorted((tmp_path / "runs").glob(f"seed-*/*/{findings.RESULT}"))
    assert [file.parent.name for file in results] == ["few", "itc"]
    few, itc = (json.loads(file.read_text()) for file in results)
    assert len(few["items"][RECALL]) == len(Dataset.load_from_disk(str(tmp_path / "runs/world/pairs/test")))
    assert np.mean(few["items"][RECALL]) == pytest.approx((few["metrics"]["ir@1"] + few["metrics"]["tr@1"]) / 2)
    # The fusion encoder alone on the dual encoder's shortlist.
    model, world = tmp_path / "runs/seed-1/few/stage3/model", str(tmp_path / "runs/world/pairs")
    found = evaluate(model, source=world, split="test", rerank=16, rerank_weight=1.0).metrics
    assert np.mean(few["items"][MATCHING]) == pytest.approx((found["rerank_ir@1"] + found["rerank_tr@1"]) / 2)
    assert MATCHING not in itc["items"]
    before = [file.stat().st_mtime_ns for file in results]
    findings.main([*command, "--report", "--publish", str(tmp_path / "all.json")])
    assert [file.stat().st_mtime_ns for file in results] == before
    assert "`itc`: ITC alone" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("# Page")
    assert "old" not in text
    assert "2 jobs" in text
    assert len(json.loads((tmp_path / "all.json").read_text())) == 2
    elsewhere = [*command[:3], str(tmp_path / "other"), *command[4:], "--results", str(tmp_path / "all.json")]
    monkeypatch.setattr(findings, "run_job", lambda job: pytest.fail(f"{job.name} is run again"))
    findings.main(elsewhere)
    for file in results:
        again = tmp_path / "other" / file.relative_to(tmp_path / "runs")
        assert json.loads(again.read_text())["items"] == json.loads(file.read_text())["items"]
    with pytest.raises(ValueError, match="other settings"):
        findings.main([*command[:-4], "--scale", "0.01", "--report"])
    with pytest.raises(ValueError, match="few-stages"):
        findings.main(["nonsense", "--run-dir", str(tmp_path)])
