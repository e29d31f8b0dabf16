"""Recipes tell of the quickstart what `vlmo/recipes/quickstart.json` holds; README's chart is made from it too."""

from vlmo.recipes import describe
from vlmo.recipes.quickstart import DUAL, FUSION, over_seeds, which_runs


def test_recipes_have_the_quickstarts_numbers() -> None:
    told = " ".join(describe("shapes-matching").split())
    for column, row in ((DUAL, "Text to image R@1"), (FUSION, "Caption or one with the opposite side")):
        assert over_seeds(column, row) in told
    assert over_seeds(FUSION, "Questions") in " ".join(describe("shapes-questions").split())
    assert which_runs() in told
