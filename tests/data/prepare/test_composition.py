"""SugarCrepe in the form of its files."""

from __future__ import annotations

import json

import pytest
from tests.data.prepare.toy_task_files import jpeg, write

from vlmo.data.prepare import prepare
from vlmo.data.sources import open_source


def sugarcrepe(root, *, tables: str = "data"):
    for kind, records in {
        "swap_att": {"0": ("1.jpg", "a red ball and a blue box", "a blue ball and a red box")},
        "add_obj": {"0": ("1.jpg", "a ball", "a ball and a cat"), "7": ("2.jpg", "a box", "a box and a cat")},
    }.items():
        names = ("filename", "caption", "negative_caption")
        content = {key: dict(zip(names, record, strict=True)) for key, record in records.items()}
        write(root / tables / f"{kind}.json", json.dumps(content))
    for number in (1, 2):
        write(root / "val2017" / f"{number}.jpg", jpeg(number))
    return root


@pytest.mark.parametrize("tables", ["data", ""])
def test_sugarcrepe_makes_a_row_of_each_record(tmp_path, tables) -> None:
    root = sugarcrepe(tmp_path / "root", tables=tables)
    prepare("sugarcrepe", root=root, out=tmp_path / "out")
    rows = list(open_source(str(tmp_path / "out"), split="test"))
    assert [(row["image_id"], row["kind"]) for row in rows] == [
        ("sugarcrepe/add_obj/0", "add_obj"),
        ("sugarcrepe/add_obj/7", "add_obj"),
        ("sugarcrepe/swap_att/0", "swap_att"),
    ]
    assert (rows[1]["captions"], rows[1]["false_caption"]) == (["a box"], "a box and a cat")
    assert rows[1]["image"] == {"bytes": None, "path": str(root / "val2017/2.jpg")}
    assert rows[1]["source"] == "sugarcrepe"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"0": {"filename": "1.jpg", "caption": "a"}}', r"\[0\]: .*negative_cap"),
        ('{"0": ', "it is no JSON .*cut off"),
        ('{"0": [1]}', r"\[0\]: TypeError"),
    ],
)
def test_other_files_are_named(tmp_path, content, message) -> None:
    root = sugarcrepe(tmp_path / "root")
    write(root / "data/add_obj.json", content)
    with pytest.raises(ValueError, match=f"add_obj.json: {message}"):
        prepare("sugarcrepe", root=root, out=tmp_path / "out")
