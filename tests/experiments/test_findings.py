"""Findings: variants differ in one thing, effects have right intervals, and jobs run once and are reported."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image

import findings
import findings_design
import findings_report
import icon_world
import shape_world
from findings_design import CLAIMS, FIRST, ICONS, MATCHING, PROBE, RECALL, SCENES, TENTH, VARIANTS
from findings_report import Effect, effect
from vlmo import VLMoForMaskedLM
from vlmo.data.decoding import encode_image
from vlmo.data.schema import FEATURES, make_row
from vlmo.data.sources import open_source
from vlmo.recipes.schema import changed_settings
from vlmo.tasks import evaluate

CHANGED = {
    "plain": [],
    "few": ["data.source", "trainer.max_steps"],
    "few-stages": ["data.source", "trainer.max_steps"],
    "few-separate-attention": ["data.source", "model.attention", "trainer.max_steps"],
    "itc": ["model.num_fusion_layers", "task.losses.itm_weight", "task.losses.mlm_weight"],
    "local-negatives": ["task.losses.negative_groups"],
    "no-fusion-expert": ["model.num_fusion_layers"],
    "standard": ["model.experts"],
    "separate-attention": ["model.attention"],
    "fewest": ["data.source", "trainer.max_steps"],
    "fewest-stages": ["data.source", "trainer.max_steps"],
    "brief": ["trainer.max_steps"],
    "brief-stages": ["trainer.max_steps"],
    "brief-stages-no-fusion-expert": ["model.num_fusion_layers", "trainer.max_steps"],
    "thin": ["model.intermediate_size"],
    "thin-no-fusion-expert": ["model.intermediate_size", "model.num_fusion_layers"],
    "icons": [],
    "icons-stages": [],
    "icons-few": ["data.source"],
    "icons-few-stages": ["data.source"],
    "icons-fewest": ["data.source"],
    "icons-fewest-stages": ["data.source"],
    "icons-stages-no-fusion-expert": ["model.num_fusion_layers"],
    "icons-stages-separate-attention": ["model.attention"],
}


def test_variants_differ_from_plain_in_one_thing(tmp_path):
    recipes = {name: findings_design.stage3(name, worlds=tmp_path) for name in VARIANTS}
    plain = {SCENES: recipes["plain"], ICONS: recipes["icons"]}
    changed = {
        name: sorted(changed_settings(plain[VARIANTS[name].world], recipe))
        for name, recipe in recipes.items()
    }
    assert changed == CHANGED
    assert {name for claim in CLAIMS for name in (claim.better, claim.worse)} == set(VARIANTS)
    assert all(VARIANTS[claim.better].world == VARIANTS[claim.worse].world for claim in CLAIMS)


def test_jobs_come_seed_by_seed_and_need_the_stages_of_their_world(tmp_path):
    jobs = findings.jobs_of([ICONS], seeds=2, run=tmp_path)
    number = sum(each.world == ICONS for each in VARIANTS.values())
    assert [job.seed for job in jobs] == [1] * number + [2] * number
    assert {job.world for job in jobs} == {ICONS}
    needing = {job.name for job in jobs if job.needs == replace(job, name="stages-icons")}
    assert needing == {
        name for name, each in VARIANTS.items() if each.world == ICONS and "stages" in name
    }


def test_an_effect_has_the_t_interval_of_seeds_and_the_bootstrap_of_items():
    """Seeds differ by 10 and 30 points: 20 ± 12.706 * 10. Items by 0 and 40: a quarter of the draws is either twice."""
    found = effect(np.array([[0.5, 0.7], [0.5, 0.8]]), np.array([[0.5, 0.5], [0.5, 0.2]]))
    assert found.seeds == pytest.approx((10, 30))
    assert found.t == pytest.approx((20 - 127.062, 20 + 127.062), abs=0.001)
    assert found.bootstrap == pytest.approx((0, 40))


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


@pytest.mark.parametrize(("seeds", "shown"), [(5, "unclear"), (3, "none: 3 seeds")])
def test_a_claim_has_a_verdict_with_all_its_seeds_only(seeds, shown):
    around = {"hardware": {"cpu": "a CPU"}, "versions": {"torch": "2"}}
    results = {
        (name, seed): {"items": {PROBE: [right, 1.0]}, "circumstances": around, "cpu_seconds": 360}
        for name, right in (("plain", 1.0), ("itc", 0.5))
        for seed in range(1, seeds + 1)
    }
    for name in ("icons-stages", "icons-stages-no-fusion-expert"):
        items = {metric: [1.0, 1.0] for metric in (PROBE, FIRST, TENTH)}
        results |= {
            (name, seed): results["itc", seed] | {"items": items} for seed in range(1, seeds + 1)
        }
    table = findings_report.report(results)
    assert f"{4 * seeds} jobs, {seeds} seeds. {0.4 * seeds:.1f} hours of one core of a CPU" in table
    assert "(`icons-stages`, `icons-stages-no-fusion-expert`) | icons | probe | **+0.0** |" in table
    assert "| same | icons | IR@1 | **+0.0** |" in table
    # Seeds are equal, and items differ by 0 and 50 points: the bootstrap is the wider interval, and touches zero.
    assert f"(`plain`, `itc`) | scenes | probe | **+25.0** | +0.0 to +50.0 | {shown} |" in table


def test_scenes_are_those_of_the_findings():
    rows = [
        shape_world._pairs("train", 50),
        shape_world._gallery("test", 50),
        list(shape_world._binding("test", 8)),
    ]
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == "df02f67a42010520"


def icon(family, name, number):
    image = Image.fromarray(
        np.random.default_rng(number).integers(256, size=(16, 16, 3), dtype=np.uint8)
    )
    captions = [name, f"{name}, a synonym"]
    facts = {
        "image": encode_image(image, f"{name}.png"),
        "captions": captions,
        "source": family,
        "licence": "MIT",
    }
    return make_row(f"{family}:{name}", **facts)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Icons of four families, of which training sees three, and glosses, as `vlmo data prepare` leaves them."""
    folder = tmp_path_factory.mktemp("prepared")
    names = [f"thing {number}" for number in range(60)]
    seen = [
        icon(family, name, number)
        for family in ("a", "b", "c")
        for number, name in enumerate(names)
    ]
    unseen = [
        icon("carbon", name, 100 + number) for number, name in enumerate([*names[:40], "alone"])
    ]
    test = [icon("lucide", name, 200 + number) for number, name in enumerate(names[40:])]
    splits = {"train": [*unseen, *seen, icon("a", "rare", 300)], "test": test}
    rows = {split: Dataset.from_list(each, features=FEATURES) for split, each in splits.items()}
    DatasetDict(rows).save_to_disk(str(folder / "icons"))
    glosses = [
        make_row(f"noun:{n}", captions=[f"{n}: a number"], source="wordnet", licence="WordNet")
        for n in names
    ]
    DatasetDict({"train": Dataset.from_list(glosses, features=FEATURES)}).save_to_disk(
        str(folder / "glosses")
    )
    return folder


def test_icons_of_unseen_families_are_asked_for_by_names_that_training_knows(
    prepared, tmp_path, monkeypatch
):
    monkeypatch.setattr(icon_world, "KNOWN_FROM", 3)
    monkeypatch.setattr(icon_world, "SIZES", {"pairs": 170, "few": 150, "fewest": 130})
    icon_world.write(tmp_path, data=prepared)
    trained = {
        name: open_source(str(tmp_path / name))
        for name in ("pairs", "few", "fewest", "images", "texts")
    }
    assert [len(rows) for rows in trained.values()] == [170, 150, 130, 181, 181 + 60]
    assert not {"carbon", "lucide"} & {
        family for rows in trained.values() for family in rows["source"]
    }
    ids = {name: rows["image_id"] for name, rows in trained.items()}
    assert ids["pairs"][:150] == ids["few"]
    assert ids["few"][:130] == ids["fewest"]
    assert all("synonym" not in "".join(captions) for captions in trained["pairs"]["captions"])
    known = Counter(texts[0] for texts in trained["texts"]["captions"])
    assert all(known[name] >= 3 for (name,) in trained["pairs"]["captions"])
    galleries = {
        split: open_source(str(tmp_path / "pairs"), split=split) for split in ("validation", "test")
    }
    galleries["train"] = open_source(str(tmp_path / "binding"), split="train")
    names = {split: [name for (name,) in rows["captions"]] for split, rows in galleries.items()}
    assert all(known[name] >= 3 for each in names.values() for name in each)
    assert [len(each) for each in names.values()] == [20, 20, 20]
    assert not {*names["train"]} & {*names["validation"]}
    for split in names:
        rows = open_source(str(tmp_path / "binding"), split=split)
        true, false = [name for (name,) in rows["captions"]], rows["false_caption"]
        assert true[::2] == false[1::2]
        assert true[1::2] == false[::2]
        assert all(one != two for one, two in zip(true, false, strict=True))
    with pytest.raises(ValueError, match="vlmo data prepare icons"):
        icon_world.write(tmp_path / "none", data=tmp_path / "nowhere")


@pytest.mark.slow
def test_jobs_run_once_and_are_published(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(icon_world, "KNOWN_FROM", 3)
    real = findings_design.stage3

    def tiny(variant, *, worlds):
        recipe = real(variant, worlds=worlds)
        return replace(
            recipe,
            model=replace(recipe.model, hidden_size=32, num_hidden_layers=2, num_fusion_layers=1),
        )

    monkeypatch.setattr(findings_design, "stage3", tiny)
    page = tmp_path / "experiments" / "findings.md"
    page.parent.mkdir()
    page.write_text(f"# Page\n\n{findings_report.MARK}\n\nold")
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    names, data = ["few", "itc", "icons-stages-separate-attention"], ["--data", str(prepared)]
    command = [
        *names,
        "--run-dir",
        str(tmp_path / "runs"),
        *data,
        "--scale",
        "0.002",
        "--seeds",
        "1",
    ]
    findings.main(command)
    few, itc, icons = files = [
        tmp_path / "runs" / "seed-1" / name / findings.RESULT for name in names
    ]
    found = {file.parent.name: json.loads(file.read_text()) for file in files}
    items = {name: each["items"] for name, each in found.items()}
    assert len(items["few"][RECALL]) == len(
        Dataset.load_from_disk(str(tmp_path / "runs/scenes/pairs/test"))
    )
    metrics = found["few"]["metrics"]
    assert np.mean(items["few"][RECALL]) == pytest.approx((metrics["ir@1"] + metrics["tr@1"]) / 2)
    # The fusion encoder alone on the dual encoder's shortlist.
    model, world = few.parent / "stage3" / "model", str(tmp_path / "runs/scenes/pairs")
    reranked = evaluate(model, source=world, split="test", rerank=16, rerank_weight=1.0).metrics
    assert np.mean(items["few"][MATCHING]) == pytest.approx(
        (reranked["rerank_ir@1"] + reranked["rerank_tr@1"]) / 2
    )
    assert MATCHING not in items[itc.parent.name]
    metrics, of_icons = found[icons.parent.name]["metrics"], items[icons.parent.name]
    assert set(of_icons) == {PROBE, FIRST, TENTH}
    assert [np.mean(of_icons[name]) for name in (FIRST, TENTH)] == pytest.approx(
        [metrics["ir@1"], metrics["ir@10"]]
    )
    before, start = (
        icons.parents[1] / "stages-icons" / name / "model" for name in ("stage2", "stage2-separate")
    )
    models = [VLMoForMaskedLM.from_pretrained(folder).eval() for folder in (before, start)]
    assert [model.config.attention for model in models] == ["shared", "separate"]
    logits = [model(torch.tensor([[2, 7, 9, 3]])).logits for model in models]
    torch.testing.assert_close(*logits)
    recipe = json.loads((icons.parent / "stage3" / "recipe.json").read_text())
    assert recipe["model"]["attention"] == "separate"
    assert Path(recipe["init"]).parts[-3:] == ("stages-icons", "stage2-separate", "model")
    before = [file.stat().st_mtime_ns for file in files]
    findings.main([*command, "--report", "--publish", str(tmp_path / "all.json")])
    assert [file.stat().st_mtime_ns for file in files] == before
    text = page.read_text()
    assert text.startswith("# Page")
    assert "old" not in text
    assert "3 jobs" in text
    assert len(json.loads((tmp_path / "all.json").read_text())) == 3
    again = [
        *names,
        "--run-dir",
        str(tmp_path / "other"),
        *command[5:],
        "--results",
        str(tmp_path / "all.json"),
    ]
    monkeypatch.setattr(findings, "run_job", lambda job: pytest.fail(f"{job.name} is run again"))
    findings.main(again)
    assert not (tmp_path / "other" / SCENES).exists()  # no data without a job
    for file in files:
        copied = tmp_path / "other" / file.relative_to(tmp_path / "runs")
        assert json.loads(copied.read_text())["items"] == json.loads(file.read_text())["items"]
    with pytest.raises(ValueError, match="other settings"):
        findings.main([*command[:-4], "--scale", "0.01", "--report"])
    other = next(
        name
        for name, each in findings_design.VARIANTS.items()
        if each.world == SCENES and name not in names
    )
    with pytest.raises(
        ValueError,
        match=r"scenes holds the share 0\.002 of the data, not 1; give another --run-dir",
    ):
        findings.main([other, *command[3:5], "--seeds", "1"])
    with pytest.raises(ValueError, match="few-stages"):
        findings.main(["nonsense", "--run-dir", str(tmp_path)])
