"""The page of published models has a row for each, with the facts of the package's table."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmo.cli import main
from vlmo.recipes import RECIPES
from vlmo.released.published import MODELS, NamedModel

PAGE = Path(__file__).parents[2] / "docs" / "published.md"
METRICS = {"tr@1": "TR@1", "ir@1": "IR@1", "accuracy": "accuracy"}
DATA = {"coco": "coco", "f30k": "flickr30k", "in1k": "imagenet", "ft1k": "imagenet", "ft22kto1k": "imagenet"}
DATA |= {"ft21kto1k": "imagenet"}


def command(model: NamedModel) -> str:
    name, size = model.name, model.size.replace("_", "-")
    data = next((DATA[part] for part in reversed(name.split("-")) if part in DATA), None)
    starts = {"pre-training": "coco-retrieval", "text": "stage3", "images": "stage2", "classification": "imagenet"}
    if model.task == "vqa":
        return f"vlmo evaluate {name} --data prepared/vqav2 --split validation"
    if model.task == "nlvr2":
        return f"vlmo evaluate {name} --data prepared/nlvr2"
    if data is not None:
        return f"vlmo evaluate {name} --data prepared/{data}" + " --split validation" * (data == "imagenet")
    if model.task in starts:
        plain = " --model.position-embedding absolute --model.layer-scale-init None" * (name == "beit-base-pt1k-800ep")
        return f"vlmo train {size}-{starts[model.task]} --init {name}{plain}"
    return f"vlmo index {name} PHOTOS --out photos" if model.task == "retrieval" else f"vlmo models {name}"


def row(model: NamedModel) -> str:
    file = f"[{model.address.rpartition('/')[2]}]({model.address})" if model.address else "in the package"
    numbers = ", ".join(f"{split} {METRICS[metric]} {percent:g}" for split, metric, percent in model.reported)
    return f"| `{model.name}` | {model.task} | {model.image_size} | {file} | {numbers} | `{command(model)}` |"


def test_page_has_a_row_for_each_model():
    table = PAGE.read_text().partition("| name |")[2].splitlines()
    assert table[2:] == [row(model) for model in MODELS.values()]


def test_commands_of_the_page_exist(capsys):
    for model in MODELS.values():
        words = command(model).split()
        if words[1] == "train":
            assert words[2] in RECIPES
        else:
            with pytest.raises(SystemExit) as ended:
                main([words[1], "--help"])
            assert ended.value.code == 0
    assert "--split" in capsys.readouterr().out
