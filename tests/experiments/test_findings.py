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
    for name, recipe in recipes.items():
        assert sorted(changed_settings(plain[VARIANTS[name].world], recipe)) == CHANGED[name], name
    assert recipes.keys() == CHANGED.keys()
    assert {name for claim in CLAIMS for name in (claim.better, claim.worse)} == set(VARIANTS)
    assert all(VARIANTS[claim.better].world == VARIANTS[claim.worse].world for claim in CLAIMS)


def test_jobs_come_seed_by_seed_and_need_the_stages_of_their_world(tmp_path):
    jobs = findings.jobs_of([ICONS], seeds=2, run=tmp_path)
    names = [name for name, variant in VARIANTS.items() if variant.world == ICONS]
    assert [job.seed for job in jobs] == [1] * len(names) + [2] * len(names)
    assert {job.world for job in jobs} == {ICONS}
    needing = {job.name for job in jobs if job.needs == replace(job, name="stages-icons")}
    assert needing == {name for name in names if "stages" in name}


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
        for seed in range(1, seeds + 1):
            results[name, seed] = results["itc", seed] | {"items": items}
    table = findings_report.report(results)
    assert f"{4 * seeds} jobs, {seeds} seeds. {0.4 * seeds:.1f} hours of one core of a CPU" in table
    assert "(`icons-stages`, `icons-stages-no-fusion-expert`) | icons | probe | **+0.0** |" in table
    assert "| same | icons | IR@1 | **+0.0** |" in table
    # Seeds are equal, and items differ by 0 and 50 points: the bootstrap is the wider interval, and touches zero.
    assert f"(`plain`, `itc`) | scenes | probe | **+25.0** | +0.0 to +50.0 | {shown} |" in table


def test_scenes_are_those_of_the_findings():
    rows = [shape_world._pairs("train", 50), shape_world._gallery("test", 50)]
    rows.append(list(shape_world._binding("test", 8)))
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == "df02f67a42010520"


def icon(family, name, number):
    noise = np.random.default_rng(number).integers(256, size=(16, 16, 3), dtype=np.uint8)
    image = encode_image(Image.fromarray(noise), f"{name}.png")
    texts = [name, f"{name}, a synonym"]
    row_id = f"{family}:{name}"
    return make_row(row_id, image=image, captions=texts, source=family, licence="MIT")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Icons of four families, of which training sees three, and glosses, as `vlmo data prepare` leaves them."""
    folder = tmp_path_factory.mktemp("prepared")
    names = [f"thing {number}" for number in range(60)]
    train = [icon("carbon", name, 100 + n) for n, name in enumerate([*names[:40], "alone"])]
    for family in ("a", "b", "c"):
        train += [icon(family, name, number) for number, name in enumerate(names)]
    train.append(icon("a", "rare", 300))
    test = [icon("lucide", name, 200 + number) for number, name in enumerate(names[40:])]
    write_set(folder / "icons", train=train, test=test)
    facts = {"source": "wordnet", "licence": "WordNet"}
    glosses = [make_row(f"noun:{n}", captions=[f"{n}: a number"], **facts) for n in names]
    write_set(folder / "glosses", train=glosses)
    return folder


def write_set(folder, **splits):
    rows = {split: Dataset.from_list(rows, features=FEATURES) for split, rows in splits.items()}
    DatasetDict(rows).save_to_disk(str(folder))


def test_icons_of_unseen_families_are_asked_for_by_names_that_training_knows(
    prepared, tmp_path, monkeypatch
):
    monkeypatch.setattr(icon_world, "KNOWN_FROM", 3)
    monkeypatch.setattr(icon_world, "SIZES", {"pairs": 170, "few": 150, "fewest": 130})
    icon_world.write(tmp_path, data=prepared)
    names = ("pairs", "few", "fewest", "images", "texts")
    trained = {name: open_source(str(tmp_path / name)) for name in names}
    assert [len(rows) for rows in trained.values()] == [170, 150, 130, 181, 181 + 60]
    for rows in trained.values():
        assert not {"carbon", "lucide"} & set(rows["source"])
    ids = {name: rows["image_id"] for name, rows in trained.items()}
    assert ids["pairs"][:150] == ids["few"]
    assert ids["few"][:130] == ids["fewest"]
    assert all("synonym" not in "".join(captions) for captions in trained["pairs"]["captions"])
    known = Counter(texts[0] for texts in trained["texts"]["captions"])
    assert all(known[name] >= 3 for (name,) in trained["pairs"]["captions"])
    names = {}
    for split, folder in {"validation": "pairs", "test": "pairs", "train": "binding"}.items():
        rows = open_source(str(tmp_path / folder), split=split)
        names[split] = [name for (name,) in rows["captions"]]
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
        model = replace(recipe.model, hidden_size=32, num_hidden_layers=2, num_fusion_layers=1)
        return replace(recipe, model=model)

    monkeypatch.setattr(findings_design, "stage3", tiny)
    page = tmp_path / "experiments" / "findings.md"
    page.parent.mkdir()
    page.write_text(f"# Page\n\n{findings_report.MARK}\n\nold")
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    names = ["few", "itc", "icons-stages-separate-attention"]
    options = f"--data {prepared} --seeds 1".split()
    first_run = ["--run-dir", str(tmp_path / "runs"), *options]
    command = [*names, *first_run, "--scale", "0.002"]
    findings.main(command)
    few, itc, icons = files = [tmp_path / f"runs/seed-1/{name}/{findings.RESULT}" for name in names]
    found = {file.parent.name: json.loads(file.read_text()) for file in files}
    items = {name: each["items"] for name, each in found.items()}
    tested = Dataset.load_from_disk(str(tmp_path / "runs/scenes/pairs/test"))
    assert len(items["few"][RECALL]) == len(tested)
    metrics = found["few"]["metrics"]
    assert np.mean(items["few"][RECALL]) == pytest.approx((metrics["ir@1"] + metrics["tr@1"]) / 2)
    # The fusion encoder alone on the dual encoder's shortlist.
    model, world = few.parent / "stage3" / "model", str(tmp_path / "runs/scenes/pairs")
    reranked = evaluate(model, source=world, split="test", rerank=16, rerank_weight=1.0).metrics
    recall = (reranked["rerank_ir@1"] + reranked["rerank_tr@1"]) / 2
    assert np.mean(items["few"][MATCHING]) == pytest.approx(recall)
    assert MATCHING not in items[itc.parent.name]
    metrics, of_icons = found[icons.parent.name]["metrics"], items[icons.parent.name]
    assert set(of_icons) == {PROBE, FIRST, TENTH}
    assert np.mean(of_icons[FIRST]) == pytest.approx(metrics["ir@1"])
    assert np.mean(of_icons[TENTH]) == pytest.approx(metrics["ir@10"])
    stages = icons.parents[1] / "stages-icons"
    folders = [stages / name / "model" for name in ("stage2", "stage2-separate")]
    models = [VLMoForMaskedLM.from_pretrained(folder).eval() for folder in folders]
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
    monkeypatch.setattr(findings, "run_job", lambda job: pytest.fail(f"{job.name} is run again"))
    line = f"--run-dir {tmp_path / 'other'} --scale 0.002 --results {tmp_path / 'all.json'}"
    findings.main([*names, *line.split(), *options])
    assert not (tmp_path / "other" / SCENES).exists()  # no data without a job
    for file in files:
        copied = tmp_path / "other" / file.relative_to(tmp_path / "runs")
        assert json.loads(copied.read_text())["items"] == json.loads(file.read_text())["items"]
    with pytest.raises(ValueError, match="other settings"):
        findings.main([*names, *first_run, "--scale", "0.01", "--report"])
    with pytest.raises(ValueError, match=r"scenes holds the share 0\.002 of the data, not 1; give"):
        findings.main(["plain", *first_run])
    with pytest.raises(ValueError, match="few-stages"):
        findings.main(["nonsense", "--run-dir", str(tmp_path)])
