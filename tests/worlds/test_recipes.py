from pathlib import Path

import pytest
from tests.recipes.test_recipes import ALL, check_training, kind_of, settings_table
from tests.recipes.toy_recipes import shrunk

import worlds
from vlmo.data.prepare import PREPARERS
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval
from vlmo.recipes import describe, find_recipe
from vlmo.recipes.schema import check_recipe
from worlds.recipes import RUN, STEPS, entries

GOLDEN = Path(__file__).with_name("recipes.txt")
RECIPES = {name: entry.recipe for name, entry in entries().items()}
OTHER_KINDS = {
    kind: name
    for name, recipe in reversed(RECIPES.items())
    if (kind := kind_of(recipe)) not in {kind_of(known) for known in ALL.values()}
}


def test_settings_are_golden():
    assert settings_table(RECIPES) == GOLDEN.read_text(), (
        "if that is wanted: python -m tests.worlds.test_recipes"
    )


@pytest.mark.parametrize("name", OTHER_KINDS.values())
def test_recipe_trains_shrunk(name, pictures, visual_tokenizer, sets, tmp_path):
    data = {"source": pictures, "visual_tokenizer": visual_tokenizer, "sets": sets}
    check_training(name, shrunk(find_recipe(name), **data), tmp_path)


def test_recipes_are_valid_and_described():
    for name, recipe in RECIPES.items():
        check_recipe(recipe, processes=1)
        assert f"train {name} --import worlds" in describe(name)
        assert "Expect:" in describe(name)


def test_steps_form_a_chain_that_reads_nothing_about_held_out_concepts():
    names = ["vlmo-small" if name == "released" else f"small-{name}" for name in STEPS]
    recipes = [find_recipe(name) for name in names]
    read = set[str]()
    for recipe in recipes:
        read.update(recipe.data.source.split("+"), recipe.text.learn_from)
    # their splits "train" hold nothing of the tests
    prepared = {name for name in read if name.startswith("data/")}
    assert prepared == {f"data/{name}" for name in worlds.PREPARED}
    assert set(worlds.PREPARED) <= set(PREPARERS)
    # No drawing of the held-out concepts, and none that is kept for testing, stands in a training scene.
    assert read - prepared == {"shapes", "scenes", "english-text"}
    assert {recipe.data.split for recipe in recipes} == {"train"}
    starts = (None, *(f"{RUN}/{folder}/model" for folder in (*list(STEPS)[:-2], "names-mean")))
    assert tuple(recipe.init for recipe in recipes) == starts
    teachers = [None, *[f"{RUN}/contrast/model"] * 2, *[None] * 3]
    assert [recipe.task.teacher for recipe in recipes] == teachers
    sizes = vars(recipes[-1].model) | {"vocab_size": recipes[-1].text.vocab_size}
    model = VLMoForImageTextRetrieval(VLMoConfig(**sizes))
    assert model.num_parameters() <= 10_000_000
    assert model.match_head is not None


if __name__ == "__main__":
    GOLDEN.write_text(settings_table(RECIPES))
