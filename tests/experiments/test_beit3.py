"""The comparison of BEiT-3's stage with VLMo's: its probe, its joint step, and its arms."""

import torch
from tests.losses.steps import close
from tests.toy_batch import FixedTokens, make_batch, with_parts_alone
from tests.toy_model import toy

from beit3 import ARMS, BOTH, CONTRAST, STAGES, Both, BothObjective, arm, probe
from vlmo.recipes.schema import check_recipe
from vlmo.tasks import RetrievalTask


def test_probe_finds_what_states_tell_and_nothing_else() -> None:
    things = torch.eye(6, dtype=torch.bool).repeat(20, 1) | torch.eye(6, dtype=torch.bool).roll(1, 0).repeat(20, 1)
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


def test_arms_are_valid_recipes_of_one_world() -> None:
    for name in ARMS:
        steps = None if name == STAGES else 40
        runs = arm(name, seed=3, tokenizer="tokens", steps=steps)
        assert len(runs) == (3 if name == STAGES else 1)
        for _, recipe in runs:
            check_recipe(recipe, processes=1)
            assert (recipe.seed, recipe.data.source, recipe.loader.num_workers) == (3, "shapes", 0)
            assert isinstance(recipe.task, RetrievalTask) == (name == CONTRAST)
            assert recipe.task.architectures == (("Both",) if name == BOTH else recipe.task.architectures)
            assert steps is None or recipe.trainer.max_steps == steps
