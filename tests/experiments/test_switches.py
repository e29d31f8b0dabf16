"""The comparison of switches: its sigmoid loss, its averages, its arms, and its tables."""

import math

import pytest
import torch
from tests.losses.steps import close, results
from tests.toy_batch import make_batch
from tests.toy_model import toy
from torch.nn.functional import softplus

from switches import (
    ADAMW,
    AVERAGE,
    METRICS,
    MUON,
    SIGMOID,
    TRIES,
    Arm,
    SigmoidObjective,
    averages,
    main,
    recipe_of,
    report,
    sigmoid_loss,
)
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.recipes.schema import changed_settings, check_recipe
from vlmo.tasks.vision_language import VisionLanguageConfig

LOSSES = VisionLanguageConfig(mlm_weight=0.0, itm_weight=0.0, itc_false_captions=True)


def test_sigmoid_loss_counts_each_pair_once_and_false_captions_as_negatives() -> None:
    logits = torch.tensor([[3.0, -1.0, 3.0], [-1.0, 3.0, -1.0], [-1.0, -1.0, -1.0]])
    same = torch.eye(3, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True

    def loss(logit: float) -> float:
        return math.log1p(math.exp(-logit))

    # Three true pairs, and four negatives of -1, as rows 0 and 2 leave each other out.
    expected = 2 * loss(3) + loss(-1) + 4 * loss(1)
    close(sigmoid_loss(logits, same=same, false=torch.zeros(0)), torch.tensor(expected / 3))
    expected += loss(1) + loss(-3)
    close(
        sigmoid_loss(logits, same=same, false=torch.tensor([-1.0, 3.0])), torch.tensor(expected / 3)
    )


def test_objective_has_the_batch_and_its_false_captions_and_learns_scale_and_bias() -> None:
    model = toy(VLMoForImageTextRetrieval, size=0.1)
    objective, batch = SigmoidObjective(model, bias=-5.0, config=LOSSES), make_batch()
    batch |= {f"false_{part}": batch[part].roll(1, 0) for part in ("input_ids", "attention_mask")}
    batch["false_attention_mask"][3] = 0  # a row without
    losses, gradients = results(objective, batch)
    close(losses["temperature"], torch.tensor(0.1))
    images = model.get_image_features(batch["pixel_values"])
    texts = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    logits = 10 * images @ texts.T - 5
    terms = softplus(logits - 2 * logits * torch.eye(8))
    false = softplus(logits).roll(1, 1).diagonal()[torch.arange(8) != 3].sum()
    close(losses["loss"], (terms.sum() - terms[0, 5] - terms[5, 0] + false) / 8)
    assert gradients["contrast_head.logit_scale"].abs() > 0
    assert objective.bias.grad.abs() > 0


def test_averages_follow_the_steps() -> None:
    weight = torch.nn.Parameter(torch.tensor([8.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    (mean,) = averages([weight], optimizer, decay=0.5)
    for gradient in (2.0, 1.0, 4.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
    close(mean, torch.tensor([(0.25 * 6 + 0.5 * 5 + 1) / 1.75]))  # of 6, 5 and 1


def test_arms_are_valid_recipes_that_differ_in_one_thing(tmp_path) -> None:
    arms = [Arm(name, 1e-3) for name in (MUON, ADAMW)]
    arms += [Arm(AVERAGE, 1e-3, decay=0.9), Arm(SIGMOID, 1e-3, bias=-5.0)]
    recipes = {arm.name: recipe_of(arm, seed=3, steps=40) for arm in arms}
    for recipe in recipes.values():
        check_recipe(recipe, processes=1)
        assert (recipe.seed, recipe.init, recipe.data.source) == (3, None, "shapes")
        assert (recipe.trainer.max_steps, recipe.loader.num_workers) == (40, 0)
        assert recipe.task.losses.itc_false_captions
    changed = {name: changed_settings(recipes[MUON], recipe) for name, recipe in recipes.items()}
    assert changed == {MUON: [], ADAMW: ["optimizer.muon"], AVERAGE: [], SIGMOID: ["task.bias"]}
    on_icons = recipe_of(arms[0], seed=3, steps=40, icons=tmp_path)
    check_recipe(on_icons, processes=1)
    assert on_icons.data.source == str(tmp_path / "icons" / "pairs")
    assert not on_icons.task.losses.itc_false_captions
    assert on_icons.optimizer == recipes[MUON].optimizer


def test_report_has_the_chosen_setting_and_paired_intervals() -> None:
    values = {ADAMW: (0.50, 0.60, 0.70), MUON: (0.60, 0.72, 0.78)}
    values |= {AVERAGE: (0.6, 0.73, 0.76), SIGMOID: (0.2, 0.3, 0.4)}
    runs = [arm._asdict() | {"seed": 0, "recall": arm.lr} for arm in TRIES]
    for name, each in values.items():
        for seed, value in enumerate(each, 1):
            known = {"name": name, "seed": seed, "steps": 300, "seconds": 58.6 + seed}
            runs.append(known | dict.fromkeys(METRICS[False], value))
    shown = report(runs)
    assert "| AdamW | lr 0.002, end 0.05 | 300 | 60 to 62 | 60.0 | 60.0 | 60.0 |  |" in shown
    # Deviations 2, 1.53 and 2; 4.303 / sqrt(3) of them.
    row = "| Muon | lr 0.003, end 0.05 | 300 | 60 to 62 |"
    assert f"{row}{' 70.0 (+10.0 ± 5.0) |' * 3} AdamW: holds |" in shown
    assert f"| 60 to 62 |{' 69.7 (-0.3 ± 3.8) |' * 3} Muon: unclear |" in shown
    assert f"| 60 to 62 |{' 30.0 (-40.0 ± 5.0) |' * 3} Muon: reversed |" in shown


def test_runs_of_another_world_are_not_gone_on_with(tmp_path) -> None:
    out = tmp_path / "out.json"
    out.write_text('{"seconds": 50, "world": "scenes", "step": {}, "runs": []}')
    (tmp_path / "icons" / "pairs").mkdir(parents=True)
    with pytest.raises(SystemExit, match="holds runs of 50 s on scenes; name another file"):
        main(tmp_path, icons=tmp_path, out=out)
