"""Ablations: variants differ in one thing, jobs go on where they were, and a failed one says why."""

import dataclasses
import json
import os
import platform
import re
import signal
import subprocess
import sys

import pytest
from filelock import FileLock, Timeout
from rich.console import Console
from tests.killing import wait_until
from tests.recipes.toy_recipes import shrunk

from vlmo.model import VLMoForPreTraining
from vlmo.recipes import ablation, ablation_jobs, find_recipe
from vlmo.recipes.ablation import (
    PLAIN,
    QUESTIONS,
    SENTENCES_RUN,
    VARIANTS,
    base_name,
    small_finetuning,
    small_stage3,
    variants_of,
)
from vlmo.recipes.ablation_jobs import (
    LOCK,
    LOG,
    MATCHING,
    RESULT,
    STAGES,
    Job,
    jobs_of,
    read_result,
    recipes_of,
    run_job,
    run_jobs,
)
from vlmo.recipes.estimate import estimate
from vlmo.recipes.recipe import changed_settings

CHANGED = {
    "stage1": [],
    "stage2": [],
    "standard": ["model.experts"],
    "no-fusion-expert": ["model.num_fusion_layers"],
    # Without a loss that reaches them, the vision-language experts are left to fine-tuning.
    "itc": ["model.num_fusion_layers", "stage.losses.itm_weight", "stage.losses.mlm_weight"],
    "itc-mlm": ["stage.losses.itm_weight"],
    "itc-itm": ["stage.losses.mlm_weight"],
    "random-negatives": ["stage.losses.negative_sharpness"],
    "local-negatives": ["stage.losses.negative_groups"],
    "separate-attention": ["model.attention"],
}


def test_variants_differ_in_one_thing(tmp_path):
    assert set(VARIANTS) == {PLAIN, *CHANGED}
    plain, base = small_stage3(PLAIN), find_recipe(base_name(PLAIN))()
    paper = find_recipe("base-stage3")()
    one_contrast = dataclasses.replace(paper.model, contrast_fusion_ending=False)
    assert base == dataclasses.replace(paper, init=None, model=one_contrast)
    assert find_recipe(base_name("stage2"))() == dataclasses.replace(paper, model=one_contrast)
    for name, changed in CHANGED.items():
        assert changed_settings(plain, small_stage3(name)) == changed
        assert [each for each in changed_settings(base, find_recipe(base_name(name))()) if each != "init"] == changed
        for task, recipe in small_finetuning(name).items():  # nothing but the sizes that stage 3 had
            differing = changed_settings(small_finetuning(PLAIN)[task], recipe)
            assert differing == [f"model.{setting}" for setting, _ in VARIANTS[name].model]
    starts = {name: recipes_of(Job(name, 4), run=tmp_path)["stage3"].init for name in VARIANTS}
    assert {name: start for name, start in starts.items() if start is not None} == {
        name: str(tmp_path / "stages" / "seed-4" / name / "model") for name in ("stage1", "stage2")
    }


@pytest.mark.parametrize(
    "recipe_of", [small_stage3, lambda name: find_recipe(base_name(name))()], ids=["small", "base"]
)
def test_other_experts_cost_other_parameters_and_the_same_flops(recipe_of):
    needs = {name: estimate(recipe_of(name)) for name in (PLAIN, "standard", "no-fusion-expert", "separate-attention")}
    assert len({each.flops_per_sample for each in needs.values()}) == 1
    parameters = {name: each.parameters for name, each in needs.items()}
    assert parameters["standard"] < parameters["no-fusion-expert"] < parameters[PLAIN]
    assert parameters[PLAIN] < parameters["separate-attention"]


def test_every_run_of_a_job_has_its_seed_and_starts_from_the_one_before(tmp_path):
    for name, runs in (
        (STAGES, ["tokenizer", "stage1", "stage2"]),
        ("itc", ["stage3", "easy-vqa", SENTENCES_RUN]),
        (PLAIN, ["stage3", "easy-vqa", SENTENCES_RUN, "easy-vqa-hidden"]),
    ):
        recipes, folder = recipes_of(Job(name, 7), run=tmp_path), tmp_path / name / "seed-7"
        assert list(recipes) == runs
        assert {recipe.seed for recipe in recipes.values()} == {7}
        assert recipes[runs[0]].init is None
        if name != STAGES:
            assert recipes["easy-vqa"].init == str(folder / "stage3" / "model")
            assert recipes[SENTENCES_RUN].init == str(folder / "easy-vqa" / "model")
    assert recipes["easy-vqa-hidden"].init == recipes["easy-vqa"].init


def test_questions_are_about_variants():
    for question in QUESTIONS.values():
        assert PLAIN in question.rows
        assert set(question.paper) <= set(question.rows) <= set(VARIANTS)
        assert {name for claim in question.claims for name in claim} == set(question.rows)
    assert {name for question in QUESTIONS.values() for name in question.rows} == set(VARIANTS)


def test_names_are_of_questions_or_variants():
    assert variants_of([]) == list(VARIANTS)
    assert variants_of(["attention", "itc", "stage1"]) == [PLAIN, "stage1", "itc", "separate-attention"]
    with pytest.raises(ValueError, match="no question or variant 'attntion'; questions: initialisation, "):
        variants_of(["attntion"])


def test_stages_are_trained_first_and_only_for_those_who_need_them():
    assert jobs_of(["itc", PLAIN], seeds=2) == [Job("itc", 0), Job(PLAIN, 0), Job("itc", 1), Job(PLAIN, 1)]
    assert jobs_of([PLAIN, "stage2"], seeds=1) == [Job(STAGES, 0), Job(PLAIN, 0), Job("stage2", 0)]


@pytest.mark.slow
def test_finished_job_is_read_and_one_with_other_settings_refused(pictures, tmp_path, monkeypatch):
    def tiny(variant, *, seed):
        recipe = shrunk(small_stage3(variant, seed=seed), source=pictures, visual_tokenizer=tmp_path)
        return dataclasses.replace(recipe, text=dataclasses.replace(recipe.text, vocab_size=90))

    monkeypatch.setattr(ablation_jobs, "small_stage3", tiny)
    monkeypatch.setattr(ablation_jobs, "small_finetuning", lambda *_, **__: {})
    job = Job("local-negatives", 3)
    assert read_result(job, run=tmp_path) is None
    found = run_job(job, run=tmp_path)
    assert found is not None
    assert (found["variant"], found["seed"]) == ("local-negatives", 3)
    assert set(found["metrics"]) == set(found["chance"]) == {"ir@1", "ir@10", "tr@1", "tr@10", MATCHING}
    assert found["chance"]["ir@10"] == pytest.approx(10 / 500)
    assert found["chance"][MATCHING] == 1 / 16
    assert 0 <= found["metrics"][MATCHING] <= 1
    assert set(found["seconds"]) == {"stage3", "stage3, evaluation"}
    model = VLMoForPreTraining.from_pretrained(job.folder(tmp_path) / "stage3" / "model")
    assert found["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert found["circumstances"]["versions"]["python"] == platform.python_version()
    file = tmp_path / "local-negatives" / "seed-3" / RESULT
    assert json.loads(file.read_text()) == found

    monkeypatch.setattr(ablation_jobs, "build", lambda *_, **__: pytest.fail("it is trained again"))
    assert run_job(job, run=tmp_path) == found == read_result(job, run=tmp_path)
    with pytest.raises(
        ValueError,
        match=r"was made with other settings than the present ones \(its --scale is 1.0\); give another --run-dir",
    ):
        run_job(job, run=tmp_path, scale=2.0)


def test_folder_of_all_runs_may_be_moved(tmp_path):
    job, here, there = Job("stage2", 0), tmp_path / "here", tmp_path / 'there "is" \\ space'
    job.folder(here).mkdir(parents=True)
    settings = ablation_jobs._settings(recipes_of(job, run=here), run=here)
    (job.folder(here) / RESULT).write_text(json.dumps({"settings": settings}))
    here.rename(there)
    assert read_result(job, run=there) == {"settings": settings}
    with pytest.raises(ValueError, match="was made with other settings"):
        read_result(job, run=there, scale=0.5)


@pytest.mark.slow
def test_jobs_run_in_processes_and_a_failed_one_says_why(tmp_path):
    how = {"run": tmp_path, "scale": 0.001, "workers": 2, "device": "cpu", "console": Console(quiet=True)}
    assert run_jobs([Job(STAGES, 0)], **how)
    folder = tmp_path / STAGES / "seed-0"
    assert (folder / "stage2" / "model" / "model.safetensors").is_file()
    written = (folder / RESULT).stat().st_mtime_ns
    for job in (Job("itc", 0), Job(STAGES, 1)):
        run = job.folder(tmp_path) / ("stage3" if job.name == "itc" else "tokenizer")
        run.mkdir(parents=True)
        (run / "recipe.json").write_text("{}")  # of another run
    jobs = [Job(STAGES, 0), Job(STAGES, 1), Job("itc", 0), Job("itc-itm", 0), Job("stage1", 1)]
    with pytest.raises(ValueError, match=f"itc, seed 0: ended with exit code 2; .*{LOG} ends with: ") as caught:
        run_jobs(jobs, **how)
    assert "stages, seed 1: ended with exit code 2" in str(caught.value)
    assert f"vlmo ablate --report --run-dir {tmp_path} --scale 0.001" in str(caught.value)
    assert (folder / RESULT).stat().st_mtime_ns == written
    assert (Job("itc-itm", 0).folder(tmp_path) / RESULT).is_file(), (
        "those that start from no failed one run all the same"
    )
    assert not Job("stage1", 1).folder(tmp_path).exists()


@pytest.mark.parametrize("failing", [None, STAGES])
def test_jobs_wait_for_those_that_they_start_from_alone(tmp_path, monkeypatch, failing):
    """Two at a time; the stages take longer than three other jobs."""
    left: dict[Job, int] = {}
    begun = []

    class Process:
        def __init__(self, job):
            self.job = job
            left[job] = 4 if job.name == STAGES else 1
            begun.append(job.name)

        def poll(self):
            left[self.job] -= 1
            return None if left[self.job] else 0

    def end(processes, job):
        del processes._running[job]
        return "failed" if job.name == failing else None

    monkeypatch.setattr(ablation_jobs, "_POLL_S", 0.0)
    monkeypatch.setattr(ablation_jobs._Processes, "_start", lambda _, job: Process(job))
    monkeypatch.setattr(ablation_jobs._Processes, "_end", end)
    jobs = [Job(name, 0) for name in (STAGES, "stage1", "itc", "itc-mlm", "itc-itm", "stage2")]
    how = {"run": tmp_path, "scale": 1.0, "workers": 2, "device": "cpu", "console": Console(quiet=True)}
    if failing is None:
        assert run_jobs(jobs, **how)
        assert begun == [STAGES, "itc", "itc-mlm", "itc-itm", "stage1", "stage2"]
    else:
        with pytest.raises(ValueError, match=r"^failed\. What the others"):
            run_jobs(jobs, **how)
        assert begun == [STAGES, "itc", "itc-mlm", "itc-itm"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_whatever_ends_the_command_every_job_saves_and_ends(tmp_path, number):
    command = [sys.executable, "-m", "vlmo.cli", "ablate", "itc", "itc-mlm", "--run-dir", str(tmp_path)]
    command += ["--seeds", "1", "--workers", "2", "--device", "cpu"]
    with (tmp_path / "log").open("w") as log:
        ablating = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    logs = [tmp_path / name / "seed-0" / LOG for name in ("itc", "itc-mlm")]
    try:
        wait_until(lambda: all(file.is_file() and " of 500, loss" in _said(file) for file in logs), within_s=240)
    finally:
        os.killpg(ablating.pid, number)  # Ctrl-C goes to the group of the command
    ended = ablating.wait(120)
    wait_until(lambda: all("stopped after step" in _said(file) for file in logs), within_s=120)
    if number == signal.SIGINT:
        assert ended == 0
        assert "stopped; the same command goes on" in (tmp_path / "log").read_text()
    for file in logs:
        wait_until(lambda file=file: _is_free(file.with_name(LOCK)), within_s=60)
        last = int(re.findall(r"stopped after step ([\d,]+)", _said(file))[-1].replace(",", ""))
        assert max((file.parent / "stage3" / "state").glob("step_????????")).name == f"step_{last:08d}"


def _is_free(lock):
    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False


def _said(log):
    return " ".join(log.read_text().split())  # lines are wrapped


def test_job_is_run_by_one_process_at_a_time(tmp_path):
    job = Job("itc", 0)
    job.folder(tmp_path).mkdir(parents=True)
    with FileLock(job.folder(tmp_path) / LOCK), pytest.raises(ValueError, match="itc, seed 0: another process is at"):
        run_job(job, run=tmp_path)


def test_small_recipes_share_what_is_not_the_variant():
    steps = {name: {task: recipe.trainer for task, recipe in small_finetuning(name).items()} for name in VARIANTS}
    for tasks in steps.values():
        assert tasks["easy-vqa"] == steps[PLAIN]["easy-vqa"]
    assert steps[PLAIN]["easy-vqa-hidden"].max_steps == steps[PLAIN]["easy-vqa"].max_steps
    assert ablation.HIDDEN_RUN not in steps["itc"]
