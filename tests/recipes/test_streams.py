"""Recipes on streams: every stage trains on them, and a run that was killed is the run that was not."""

import io
import json
import re
import signal
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from tests.forkserver import PATIENCE_S, run_processes, start
from tests.killing import wait_until
from tests.recipes.toy_recipes import shrunk, write_shards
from tests.training.toy_run import curve

from vlmo.data.config import StreamConfig
from vlmo.folder.card import read_data
from vlmo.recipes import find_recipe
from vlmo.recipes.schema import without_void_defaults
from vlmo.run import build
from vlmo.training import read_metrics


@pytest.fixture(scope="module")
def make(pictures, visual_tokenizer):
    """Recipes of a stage, shrunk, on shards with a damaged picture, a shard that is no tar and one that is missing."""
    folder = write_shards(pictures, count=4)
    with tarfile.open(folder / "00001.tar", "a") as tar:
        for suffix in ("jpg", "txt"):
            member = tarfile.TarInfo(f"broken.{suffix}")
            member.size = 7
            tar.addfile(member, io.BytesIO(b"nothing"))
    (folder / "00004.tar").write_bytes(b"not a tar" * 100)
    streams = StreamConfig(patterns=(f"{folder}/{{00000..00005}}.tar",), lanes=4, shuffle=8)

    def recipe(name: str, *, steps: int, save_every: int = 500, workers: int = 0):
        found = shrunk(find_recipe(name), source=pictures, visual_tokenizer=visual_tokenizer)
        every = {"save_every": save_every, "log_every": 1, "eval_every": None}
        return replace(
            found,
            data=replace(found.data, source="", streams=streams, max_bad_share=0.5),
            loader=replace(found.loader, global_batch_size=8, num_workers=workers),
            trainer=replace(found.trainer, max_steps=steps, **every),
            evaluate_on=None,
        )

    return recipe


def quarantined(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "quarantine.jsonl").read_text().splitlines()]


STAGES = (
    "shapes-tokenizer",
    "shapes-stage1",
    "shapes-stage2",
    "base-stage3",
    "base-coco-retrieval",
)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_of_pre_training_reads_streams(make, name, tmp_path):
    result = build(make(name, steps=5), run_dir=tmp_path).fit()
    assert result.status == "finished"
    assert result.samples_seen == 40
    reasons = {Path(line["path"]).name: line["reason"] for line in quarantined(tmp_path)}
    assert reasons.keys() >= {"00004.tar", "00005.tar"}
    assert ("00001.tar" in reasons) == (name != "shapes-stage2")  # whose pictures are not read
    assert "00005" in (tmp_path / "shards.json").read_text()
    (data, *_) = read_data(result.model_dir)
    assert re.fullmatch(r"pictures\d+-shards/\{00000\.\.00005\}\.tar", data.name)


def test_stages_that_need_rows_refuse_streams(make, tmp_path):
    recipe = make("base-stage3", steps=1)
    recipe = replace(recipe, task=find_recipe("base-imagenet").task)
    with pytest.raises(ValueError, match=r"data.streams is given, but .* does not read streams"):
        build(recipe, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"data.source is empty"):
        replace(recipe.data, streams=StreamConfig())
    recipe = make("base-stage3", steps=1)
    weighed = replace(recipe.data, unit="pair", weights=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"give data\.streams\.weights instead"):
        build(replace(recipe, data=weighed), run_dir=tmp_path)


def fit(recipe, run_dir) -> str:
    return build(recipe, run_dir=run_dir).fit().status


def test_a_run_killed_in_the_middle_of_an_epoch_is_bit_equal_to_one_that_was_not(make, tmp_path):
    recipe = make("base-stage3", steps=8, save_every=3, workers=2)
    process = start(fit, recipe, tmp_path / "killed")
    wait_until(
        lambda: any(line["step"] >= 5 for line in read_metrics(tmp_path / "killed")),
        within_s=PATIENCE_S,
        meanwhile=process.is_alive,
    )
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model").exists()
    for name in ("killed", "whole"):
        assert fit(recipe, tmp_path / name) == "finished"
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert quarantined(tmp_path / "killed") == quarantined(tmp_path / "whole")
    assert len(quarantined(tmp_path / "whole")) >= 3


def test_a_run_of_two_processes_goes_on_in_one_with_the_same_samples(make, tmp_path):
    long = make("base-stage3", steps=6, save_every=3)
    short = make("base-stage3", steps=3, save_every=3)
    assert run_processes(fit, short, tmp_path / "two") == ["finished"] * 2
    # The same run, only longer: what a run of two processes has when it is cut off after step 3.
    (tmp_path / "two" / "recipe.json").unlink()
    for name in ("two", "one"):
        assert fit(long, tmp_path / name) == "finished"
    digests = [
        [line["sample_ids_digest"] for line in curve(tmp_path / name)] for name in ("two", "one")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 6


def test_settings_of_the_recipe_that_another_makes_void_are_not_asked_to_be_left_out() -> None:
    original = find_recipe("shapes-stage3")
    data = replace(original.data, weights=(1.0, 2.0), unit="pair", source="a+b")
    original = replace(original, data=data, evaluate_on="c")
    other = replace(original, data=replace(data, source="mine"))
    derived = without_void_defaults(original, other)
    assert (derived.data.weights, derived.evaluate_on) == ((), None)  # c is not there
    given = replace(other, data=replace(other.data, weights=(3.0,)), evaluate_on="d")
    assert without_void_defaults(original, given) == given
    assert without_void_defaults(original, original) == original
