"""The comparison of BEiT-3's stage with VLMo's: its probe, its joint step, and its arms."""

import pytest
import torch
from tests.losses.steps import close
from tests.toy_batch import FixedTokens, make_batch, with_parts_alone
from tests.toy_model import toy

from beit3 import (
    ARMS,
    BOTH,
    CONTRAST,
    CONTRAST_EQUAL,
    MASKS,
    STAGES,
    Both,
    BothObjective,
    arm,
    main,
    probe,
    report,
    things,
)
from vlmo.data.sources import open_source
from vlmo.recipes.schema import check_recipe
from vlmo.tasks import RetrievalTask


def test_probe_finds_what_states_tell_and_nothing_else() -> None:
    one = torch.eye(6, dtype=torch.bool)
    things = (one | one.roll(1, 0)).repeat(20, 1)
    states = things.float() @ torch.randn(6, 8)
    assert probe((states, things), (states[:30], things[:30])) == 1
    noise = torch.randn(120, 8)
    assert probe((noise, things), (noise[:30], things[30:60])) < 0.5


@torch.no_grad()
def test_joint_step_is_the_sum_of_both() -> None:
    objective = BothObjective(toy(Both, size=0.1, use_match_head=False), tokenizer=FixedTokens())
    losses = objective(with_parts_alone(make_batch()))
    parts = ("pair_mlm", "pair_mim", "text_mlm", "image_mim", "itc")
    close(losses["loss"], sum(losses[name] for name in parts))


@pytest.mark.parametrize(("world", "source"), [("shapes", "shapes"), ("icons", "emoji-pairs")])
def test_arms_are_valid_recipes_of_one_world(world, source) -> None:
    for name in ARMS["shapes"]:
        steps = None if name == STAGES else 40
        runs = arm(name, world=world, seed=3, tokenizer="tokens", steps=steps)
        assert len(runs) == (3 if name == STAGES else 1)
        for _, recipe in runs:
            check_recipe(recipe, processes=1)
            assert (recipe.seed, recipe.data.source, recipe.loader.num_workers) == (3, source, 0)
            assert recipe.text is None or source in recipe.text.learn_from
            assert isinstance(recipe.task, RetrievalTask) == (name in (CONTRAST, CONTRAST_EQUAL))
            assert name != BOTH or recipe.task.architectures == ("Both",)
            assert steps is None or recipe.trainer.max_steps == steps


def test_icons_have_the_group_of_their_emoji() -> None:
    rows = open_source("emoji-pairs", split="test")
    shown = things(rows, "icons")
    assert set(shown.sum(dim=1).tolist()) == {0, 1}
    groups = {rows[number]["captions"][0]: group for number, group in shown.nonzero().tolist()}
    flag, animal = groups["rainbow flag"], groups["dolphin"]
    assert flag != animal
    assert (groups["triangular flag"], groups["rhinoceros"]) == (flag, animal)


def test_report_has_paired_intervals() -> None:
    values = {STAGES: (0.50, 0.60, 0.70), MASKS: (0.40, 0.48, 0.62), BOTH: (0.5, 0.6, 0.7)}
    names, same = ("probe", "ir@1", "tr@1", "ir@10"), {"steps": {"a": 1000, "b": 200}}
    seeds = {}
    for seed in range(3):
        shared = same | {"seconds": 9.6 + seed}
        arms = {arm: shared | dict.fromkeys(names, value[seed]) for arm, value in values.items()}
        seeds[str(seed)] = arms
    shown = report(seeds, "icons")
    assert "| `masks` | 1,200 | 10 to 12 | 50.0 | 50.0 | 50.0 |" in shown
    # deviation 2, 4.303 * 2 / sqrt(3)
    assert f"| `masks` - `stages` |{' -10.0 ± 5.0 |' * 3}" in shown
    assert f"| `masks and contrast` - `stages` |{' +0.0 ± 0.0 |' * 3}" in shown


def test_file_of_another_scale_is_kept(tmp_path) -> None:
    out = tmp_path / "found.json"
    out.write_text('{"world": "icons", "scale": 1.0, "steps": {}, "seeds": {}}')
    reasons = {"--scale=-1": "above 0", "--scale=0.5": "another file", "--seeds=1": "another world"}
    for option, reason in reasons.items():
        with pytest.raises(SystemExit, match=reason):
            main([str(tmp_path / "runs"), "--out", str(out), option])
    assert not (tmp_path / "runs").exists()
