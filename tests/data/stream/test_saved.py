from __future__ import annotations

import json

import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value

from vlmo.data.stream.records import Bad, Sample, read_saved

FEATURES = Features(
    {
        "image": Image(),
        "captions": List(Value("string")),
        "image_id": Value("string"),
        "year": Value("int32"),
        "mask": Image(),
    }
)


def rows(*numbers: int) -> Dataset:
    picture = {"bytes": b"not decoded", "path": None}
    return Dataset.from_list(
        [
            {"image": picture, "captions": ["one", " "], "image_id": f"id {n}", "year": n, "mask": picture}
            for n in numbers
        ],
        features=FEATURES,
    )


def test_rows_are_read_with_everything_but_other_pictures(tmp_path):
    rows(1, 2).save_to_disk(tmp_path / "set")
    first, second = read_saved(tmp_path / "set")
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert (first.key, first.image, first.captions) == ("id 1", b"not decoded", ("one",))
    assert second.metadata == {"image_id": "id 2", "year": 2}
    assert (second.index, second.shard) == (1, str(tmp_path / "set"))


def test_splits_follow_each_other_and_are_told(tmp_path):
    empty = rows(1).select([])
    DatasetDict({"train": rows(1, 2), "val": empty, "test": rows(3)}).save_to_disk(tmp_path / "sets")
    found = list(read_saved(tmp_path / "sets"))
    assert [(each.index, each.metadata["split"]) for each in found] == [(0, "train"), (1, "train"), (2, "test")]


def test_sounds_are_not_decoded(tmp_path):
    sound = {"bytes": b"not decoded", "path": "a.mp3"}
    Dataset.from_list([{"image": sound, "caption": "one", "sound": sound}]).save_to_disk(tmp_path / "set")
    told = tmp_path / "set" / "dataset_info.json"
    facts = json.loads(told.read_text())
    facts["features"] |= {"image": {"_type": "Image"}, "sound": {"_type": "Audio"}}
    told.write_text(json.dumps(facts))
    (found,) = read_saved(tmp_path / "set")
    assert (found.image, found.captions, found.metadata) == (b"not decoded", ("one",), {"sound": sound})


@pytest.mark.parametrize("split", ["../set", "{}/set", ".."])
def test_split_outside_of_the_folder_is_refused(tmp_path, split):
    rows(1).save_to_disk(tmp_path / "set")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "dataset_dict.json").write_text(json.dumps({"splits": [split.format(tmp_path)]}))
    (bad,) = read_saved(tmp_path / "sets")
    assert "is no folder in it" in bad.reason


def test_paths_and_other_names_are_understood(tmp_path):
    Dataset.from_dict({"image": ["a.png"], "text": ["one"], "id": [7]}).save_to_disk(tmp_path / "set")
    (found,) = read_saved(tmp_path / "set")
    assert (found.path, found.image, found.captions, found.key) == ("a.png", None, ("one",), "7")
    Dataset.from_dict({"image": ["a.png"], "captions": [[1, 2]]}).save_to_disk(tmp_path / "wrong")
    (bad,) = read_saved(tmp_path / "wrong")
    assert isinstance(bad, Bad)
    assert "expected a text or a list of texts" in bad.reason


def test_damaged_set_or_state_that_names_files_elsewhere_is_refused(tmp_path):
    for damage in ("state.json", "data-00000-of-00001.arrow"):
        rows(1).save_to_disk(tmp_path / "set")
        (tmp_path / "set" / damage).write_text("{}")
        assert [bad.kind for bad in read_saved(tmp_path / "set")] == ["shard"]
    rows(1).save_to_disk(tmp_path / "set")
    state = tmp_path / "set" / "state.json"
    for name in ("../set/data-00000-of-00001.arrow", "/dev/zero", "gone.arrow"):
        state.write_text(json.dumps(json.loads(state.read_text()) | {"_data_files": [{"filename": name}]}))
        (bad,) = read_saved(tmp_path / "set")
        assert bad.kind == "shard"
        assert f"1 of 1 files are not in it, such as {name!r}" in bad.reason
    state.write_text(json.dumps({"_data_files": 7}))
    assert next(read_saved(tmp_path / "set")).kind == "shard"


@pytest.mark.parametrize("place", ["file:///etc/a.png", "reference://a.png", "github://a.png", "memory://a.png"])
def test_record_names_no_file_system_but_stores(tmp_path, place):
    Dataset.from_dict({"image": [place, "s3://bucket/a.png"], "text": ["a", "b"]}).save_to_disk(tmp_path / "set")
    bad, good = read_saved(tmp_path / "set")
    assert bad.kind == "row"
    assert "is in no store" in bad.reason
    assert good.path == "s3://bucket/a.png"
