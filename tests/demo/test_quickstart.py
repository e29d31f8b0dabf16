from __future__ import annotations

from PIL import Image

from vlmo.demo import quickstart


def test_a_seed_is_that_of_every_stage(tmp_path):
    recipes = quickstart.quickstart_recipes(tmp_path, seed=7)
    assert {recipe.seed for recipe in recipes.values()} == {7}


def test_examples_come_from_predictions():
    images = {name: Image.new("RGB", (4, 4)) for name in "uvwxyz"}
    predictions = [
        {"caption": "a", "image_id": "x", "rank": 2, "rerank_rank": 1, "rerank_found": [*"xzyuvw"], "found": [*"zxy"]},
        {"caption": "b", "image_id": "y", "rank": 6, "rerank_rank": 6, "rerank_found": [*"xzuvwy"], "found": [*"xzu"]},
        {"caption": "c", "image_id": "y", "rank": 1, "rerank_rank": 2, "rerank_found": [*"xyzuvw"], "found": [*"yzx"]},
    ]
    predictions = [row | {"query": "caption"} for row in predictions] + [{"query": "image"}]
    gained, lost, queries = quickstart.examples(predictions, images=images)
    assert (gained, lost) == ([{"text": "a", "dual": images["z"], "fusion": images["x"]}], 1)
    shown = [(query["text"], query["correct"], query["rank"]) for query in queries]
    assert shown == [("a", 0, 1), ("b", None, 6), ("c", 1, 2)]
    assert queries[1]["images"] == [images[name] for name in "xzuvw"]
    assert queries[1]["answer"] is images["y"]
