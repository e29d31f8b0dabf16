"""Ablations: variants differ in one thing; jobs run in order, continue where they were, and a failed one says why."""

import json
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console
from tests.killing import wait_until
from tests.recipes.toy_recipes import shrunk
from tests.retrieval.toy_index import write_folder

import ablations
from ablations import LOG, PLAIN, QUESTIONS, RESULT, STAGES, STEPS, VARIANTS, Job
from vlmo.folder import lock_folder
from vlmo.model import VLMoForPreTraining
from vlmo.recipes import find_recipe
from vlmo.recipes.schema import changed_settings

CHANGED = {
    "stage1": [],
    "stage2": [],
    "standard": ["model.experts"],
    "no-fusion-expert": ["model.num_fusion_layers"],
    # Without a loss that trains them, the vision-language experts are left to fine-tuning.
    "itc": ["model.num_fusion_layers", "stage.losses.itm_weight", "stage.losses.mlm_weight"],
    "itc-mlm": ["stage.losses.itm_weight"],
    "itc-itm": ["stage.losses.mlm_weight"],
    "random-negatives": ["stage.losses.negative_sharpness"],
    "local-negatives": ["stage.losses.negative_groups"],
    "separate-attention": ["model.attention"],
}
IN_FINETUNING = {"standard", "no-fusion-expert", "separate-attention"}


def test_variants_differ_in_one_thing():
    assert set(VARIANTS) == {PLAIN, *CHANGED}
    plain, base = ablations.small_stage3(PLAIN), find_recipe("base-ablation-plain")
    tuned = ablations.small_finetuning(PLAIN)
    for name, changed in CHANGED.items():
        assert changed_settings(plain, ablations.small_stage3(name)) == changed
        assert changed_settings(base, find_recipe(f"base-ablation-{name}")) == changed
        for task, recipe in ablations.small_finetuning(name).items():
            expected = changed if name in IN_FINETUNING else []
            assert changed_settings(tuned[task], recipe) == expected
    assert {name for question in QUESTIONS.values() for name in question.rows} == set(VARIANTS)
    for question in QUESTIONS.values():
        assert {PLAIN, *question.paper} <= set(question.rows)
        assert {name for claim in question.claims for name in claim} == set(question.rows)


def test_every_run_of_a_job_has_its_seed_and_starts_from_the_one_before(tmp_path):
    pairs = "easy-vqa-pairs-colors"
    for name, runs in (
        (STAGES, ["tokenizer", "stage1", "stage2"]),
        ("stage2", ["stage3", "easy-vqa", pairs]),
        (PLAIN, ["stage3", "easy-vqa", pairs, "easy-vqa-hidden"]),
    ):
        recipes, folder = ablations.recipes_of(Job(name, 7), run=tmp_path, scale=0.5), tmp_path / name / "seed-7"
        assert list(recipes) == runs
        assert {recipe.seed for recipe in recipes.values()} == {7}
        starts = {run: recipe.init for run, recipe in recipes.items() if recipe.init is not None}
        if name == STAGES:
            assert starts == {"stage2": str(folder / "stage1" / "model")}
            assert recipes["stage1"].stage.visual_tokenizer == str(folder / "tokenizer" / "model")
        else:
            assert starts["easy-vqa"] == str(folder / "stage3" / "model")
            assert starts[pairs] == str(folder / "easy-vqa" / "model")
            assert {run: recipe.trainer.max_steps for run, recipe in recipes.items()} == {
                run: STEPS[run] // 2 for run in runs
            }
            before = str(tmp_path / STAGES / "seed-7" / "stage2" / "model")
            assert starts.get("stage3") == (before if name == "stage2" else None)
    assert starts["easy-vqa-hidden"] == starts["easy-vqa"]


def test_jobs_are_asked_for_by_questions_or_variants():
    assert ablations.variants_of([]) == VARIANTS
    assert ablations.variants_of(["attention", "itc", "stage1"]) == [PLAIN, "stage1", "itc", "separate-attention"]
    with pytest.raises(ValueError, match="no question or variant 'attntion'; questions: initialisation, "):
        ablations.variants_of(["attntion"])
    # Stages are trained first, and only for the variants that need them.
    assert ablations.jobs_of(["itc", PLAIN], seeds=2) == [Job("itc", 0), Job(PLAIN, 0), Job("itc", 1), Job(PLAIN, 1)]
    assert ablations.jobs_of([PLAIN, "stage2"], seeds=1) == [Job(STAGES, 0), Job(PLAIN, 0), Job("stage2", 0)]


class Tiny:
    """Jobs that write their names into one file, and fail where they are told."""

    def __init__(self, run, *, failing=()):
        self.run, self.failing = run, failing
        self.order = run / "order"

    def command(self, job):
        code = f"open({str(self.order)!r}, 'a').write('{job}; ')\n"
        if job in self.failing:
            return [sys.executable, "-SIc", f"{code}raise SystemExit('it is broken')"]
        return [sys.executable, "-SIc", f"{code}open({str(job.folder(self.run) / RESULT)!r}, 'w')"]

    def jobs(self, jobs, *, workers=1):
        how = {"command": self.command, "finished": lambda job: (job.folder(self.run) / RESULT).exists()}
        failures = ablations.run_jobs(jobs, run=self.run, workers=workers, console=Console(quiet=True), **how)
        return failures, [name for name in self.order.read_text().split("; ") if name]


def test_jobs_run_in_order_and_continue_where_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "_POLL_S", 0.01)
    jobs = [Job(STAGES, 0), Job("stage1", 0), Job("itc", 0), Job("stage2", 1)]
    failures, order = Tiny(tmp_path, failing=[Job(STAGES, 0), Job("itc", 0)]).jobs(jobs)
    # The job that needs the failed one never begins; the one whose stages are not among the jobs does.
    assert order == ["stages, seed 0", "itc, seed 0", "stage2, seed 1"]
    assert failures[0] == f"stages, seed 0: exit code 1; {tmp_path}/stages/seed-0/{LOG} ends with: it is broken"
    assert len(failures) == 2
    assert Tiny(tmp_path).jobs(jobs) == ([], [*order, "stages, seed 0", "stage1, seed 0", "itc, seed 0"])
    assert Tiny(tmp_path).jobs(jobs)[1] == Tiny(tmp_path).jobs(jobs, workers=2)[1]  # nothing is left to do
    # With two workers the second one waits for the stages with the job that needs them, and takes the next.
    both = Tiny(tmp_path / "two")
    both.run.mkdir()
    assert sorted(both.jobs(jobs, workers=2)[1]) == sorted(map(str, jobs))
    assert both.order.read_text().index("stages, seed 0") < both.order.read_text().index("stage1, seed 0")


def test_interrupted_runner_asks_its_jobs_to_stop(tmp_path, monkeypatch):
    asked = tmp_path / "asked"
    code = f"import signal, sys, time\nsignal.signal(15, lambda *_: (open({str(asked)!r}, 'w'), sys.exit()))\n"
    code += f"open({str(tmp_path / 'ready')!r}, 'w')\ntime.sleep(60)"

    def interrupt(_):
        if (tmp_path / "ready").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(ablations.time, "sleep", interrupt)
    how = {"command": lambda _: [sys.executable, "-SIc", code], "finished": lambda _: False}
    with pytest.raises(KeyboardInterrupt):
        ablations.run_jobs([Job("itc", 0)], run=tmp_path, workers=1, console=Console(quiet=True), **how)
    assert asked.exists()


def test_job_stops_with_the_process_that_started_it(monkeypatch):
    sent = []
    monkeypatch.setattr(ablations.os, "kill", lambda *signal: sent.append(signal))
    monkeypatch.setattr(ablations, "_POLL_S", 0.01)
    ablations.stop_with_parent()  # started by hand: there is nobody to watch
    monkeypatch.setenv(ablations._PARENT, str(os.getppid()))
    ablations.stop_with_parent()
    time.sleep(0.1)
    assert not sent
    monkeypatch.setattr(ablations.os, "getppid", lambda: 0)  # nobody's, not even in a container
    wait_until(lambda: sent == [(os.getpid(), signal.SIGTERM)], within_s=60)


def test_result_is_read_where_it_was_moved_and_refused_with_other_settings(tmp_path):
    job, here, there = Job("stage2", 0), tmp_path / "here", tmp_path / 'there "is" \\ space'
    assert ablations.read_result(job, run=here) is None
    job.folder(here).mkdir(parents=True)
    settings = ablations._settings(ablations.recipes_of(job, run=here), run=here)
    (job.folder(here) / RESULT).write_text(json.dumps({"settings": settings}))
    here.rename(there)
    assert ablations.read_result(job, run=there) == {"settings": settings}
    assert ablations.run_job(job, run=there)  # without any training
    with pytest.raises(ValueError, match="was made with other settings"):
        ablations.read_result(job, run=there, scale=0.5)


def test_job_is_run_by_one_process_at_a_time(tmp_path):
    folder = Job("itc", 0).folder(tmp_path)
    with lock_folder(folder, work="testing"), pytest.raises(ValueError, match="itc/seed-0: another process is running"):
        ablations.run_job(Job("itc", 0), run=tmp_path)


def test_costs_are_those_of_the_base_recipes(capsys):
    ablations.main(["plain", "itc", "--costs"])
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "base-ablation-" in line]
    (plain, itc) = [[float(cell.strip(" M").replace(",", "")) for cell in line[2:6]] for line in lines]
    assert plain[1] == itc[1]  # samples
    assert plain[0] > itc[0]
    assert plain[2] > 2 * itc[2]


def test_job_trains_evaluates_and_writes_its_result(tmp_path, monkeypatch):
    pictures, job = write_folder(tmp_path / "pictures"), Job("local-negatives", 3)
    recipe = shrunk(ablations.small_stage3(job.name), source=pictures, visual_tokenizer=tmp_path)
    ranks = [1, 16, 17, 40]  # two of four shortlists of 16 hold the right image

    def evaluate(folder, *, source, **_):
        assert (folder / "model.safetensors").is_file()
        names = ("ir@1", "ir@10", "tr@1", "tr@10", "rerank_ir@1")
        rows = [{"query": "caption", "rank": rank} for rank in ranks] + [{"query": "image", "rank": 1}]
        return SimpleNamespace(metrics=dict.fromkeys(names, 0.25), chance=dict.fromkeys(names, 0.1), predictions=rows)

    monkeypatch.setattr(ablations, "evaluate", evaluate)
    monkeypatch.setattr(ablations, "recipes_of", lambda *_, **__: {"stage3": recipe})
    assert ablations.run_job(job, run=tmp_path, device="cpu")
    found = ablations.read_result(job, run=tmp_path)
    assert (found["variant"], found["seed"], found["device"]) == ("local-negatives", 3, "cpu")
    assert found["metrics"] == {**dict.fromkeys(("ir@1", "ir@10", "tr@1", "tr@10"), 0.25), "matching": 0.5}
    assert found["chance"]["matching"] == 1 / 16
    assert set(found["seconds"]) == {"stage3"}
    model = VLMoForPreTraining.from_pretrained(job.folder(tmp_path) / "stage3" / "model")
    assert found["parameters"] == sum(weight.numel() for weight in model.parameters())
    monkeypatch.setattr(ablations, "build", lambda *_, **__: pytest.fail("it is trained again"))
    assert ablations.run_job(job, run=tmp_path)
