import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from tests.toy_shards import pack, picture

from vlmo.data.schema import FEATURES, make_row
from vlmo.data.sources import open_source

# The last two pairs show one image.
PAIRS = {f"thing {number}": picture(min(number, 58)) for number in range(60)}
IMAGES, CAPTIONS = [*PAIRS.values()], [*PAIRS]


def write_images(folder: Path, prefix: str) -> list[str]:
    folder.mkdir()
    names = [f"{prefix}{number}.png" for number in range(len(IMAGES))]
    for name, image in zip(names, IMAGES, strict=True):
        (folder / name).write_bytes(image)
    return names


def write_csv(path: Path) -> None:
    lines = [",".join(pair) for pair in zip(write_images(path, "a"), CAPTIONS, strict=True)]
    (path / "captions.csv").write_text("\n".join(["image,caption", *lines]))


def write_json_lines(path: Path) -> None:
    pairs = zip(write_images(path, "other-"), CAPTIONS, strict=True)
    lines = [{"image": name, "caption": text, "image_id": f"id {text}"} for name, text in pairs]
    (path / "captions.jsonl").write_text("\n".join(map(json.dumps, reversed(lines))))


def write_parquet(path: Path) -> None:
    path.mkdir()
    pq.write_table(pa.table({"jpg": IMAGES[::-1], "caption": CAPTIONS[::-1]}), path / "0.parquet")


def write_tars(path: Path) -> None:
    path.mkdir()
    for shard in range(2):
        members = {}
        for number in range(shard, len(IMAGES), 2):
            members |= {f"{number}.png": IMAGES[number], f"{number}.txt": CAPTIONS[number].encode()}
        (path / f"{shard}.tar").write_bytes(pack(members))


def save(path: Path) -> None:
    images = [{"bytes": image, "path": None} for image in IMAGES]
    rows = Dataset.from_dict({"image": images, "caption": CAPTIONS})
    rows.cast_column("image", ImageFeature()).save_to_disk(path)


def captions(path: Path, split: str, **options: float) -> set[str]:
    rows = open_source(str(path), split=split, **options)
    return {text for texts in rows["captions"] for text in texts}


def test_test_split_is_the_same_in_every_format_order_and_naming(tmp_path) -> None:
    splits = {}
    for write in (write_csv, write_json_lines, write_parquet, write_tars, save):
        write(source := tmp_path / write.__name__)
        test, train = captions(source, "test"), captions(source, "train")
        assert test | train == set(CAPTIONS)
        assert not test & train
        assert {"thing 58", "thing 59"} & test in (set(), {"thing 58", "thing 59"})
        splits[write.__name__] = test
    assert set(map(frozenset, splits.values())) == {frozenset(test)}
    assert len(test - {"thing 59"}) == 11  # a fifth of 59 images


def test_rows_of_text_alone_are_split_by_it(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(CAPTIONS))
    (tmp_path / "b.txt").write_text("\n".join([*CAPTIONS[::-1], *CAPTIONS[:9]]))
    tests = [captions(tmp_path / name, "test") for name in ("a.txt", "b.txt")]
    assert tests[0] == tests[1]
    assert not tests[1] & captions(tmp_path / "b.txt", "train")


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("share", [0.05, 0.99])
def test_few_images_leave_one_at_least_on_each_side(count, share, tmp_path) -> None:
    rows = []
    for number, data in enumerate(IMAGES[:count]):
        image = {"bytes": data, "path": None}
        rows.append(make_row(f"{number}", image=image, source="", licence=""))
    Dataset.from_list(rows, features=FEATURES).save_to_disk(tmp_path)
    splits = ("train", "test")
    counts = [len(open_source(str(tmp_path), split=split, test_share=share)) for split in splits]
    assert min(counts) >= 1
    assert sum(counts) == count


@pytest.mark.parametrize("place", [0, 1 << 17, (1 << 18) - 1])
def test_long_files_that_differ_at_an_end_or_in_the_middle_are_two_images(place, tmp_path) -> None:
    content = bytearray(1 << 18)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(content)
        content[place] = 1
    assert [len(open_source(str(tmp_path), split=split)) for split in ("train", "test")] == [1, 1]
