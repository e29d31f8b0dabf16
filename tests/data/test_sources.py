import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Image
from PIL import Image as PILImage

from vlmo.data.builtin import SETS
from vlmo.data.rows import false_captions
from vlmo.data.schema import CONTRAST_FEATURES, hash_share
from vlmo.data.sources import FEATURES, decode_image, open_source


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty pictures in two folders, each of its own grey."""
    root = tmp_path / "pictures"
    for number in range(40):
        file = root / ("a" if number % 2 else "b") / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (2, 2), (number, number, number)).save(file)
    return root


def everything(path: Path, **options) -> Dataset:
    """All rows of a path: none is kept for testing."""
    return open_source(str(path), test_share=0.0, **options)


def test_open_source_names_the_nearest_right_name() -> None:
    with pytest.raises(ValueError, match=r"'emoji-pair'.*did you mean 'emoji-pairs'\?") as caught:
        open_source("emoji-pair")
    assert all(name in str(caught.value) for name in SETS)


def test_folder_of_pictures_is_image_only(pictures) -> None:
    (pictures / "notes.txt").write_text("not a caption")
    (pictures / ".hidden.png").write_bytes(b"left by a file manager")
    shutil.copy(pictures / "a" / "01.png", pictures / "c.png")  # not every one is in a class
    rows = everything(pictures)
    assert rows.features == FEATURES
    assert len(rows) == 41
    first = [rows[0][name] for name in ("captions", "image_id", "source")]
    assert first == [[], "a/01.png", "pictures"]
    assert decode_image(rows[0]["image"]).getpixel((0, 0)) == (1, 1, 1)


def test_split_by_hash_is_a_fixed_partition(pictures, tmp_path, caplog) -> None:
    train = open_source(str(pictures), split="train", test_share=0.3)["image_id"][:]
    test = open_source(str(pictures), split="test", test_share=0.3)["image_id"][:]
    assert sorted([*train, *test]) == sorted(everything(pictures)["image_id"])
    # Pinned: by another rule, images that older models were trained on would be tested on.
    held_out = []
    for name in sorted([*train, *test]):
        data = (pictures / name).read_bytes()
        key = sha256(str(len(data)).encode() + data * 3).hexdigest()
        held_out += [name] if hash_share(key) < 0.3 else []
    assert test == held_out
    caplog.set_level("INFO")
    assert len(open_source(str(pictures), split="test")) == 8  # a fifth, as 5 % are two
    assert "takes 8 of 40 rows as test" in caplog.text
    lines = [f"{number}.png,a" for number in range(400)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *lines]))
    parts = [open_source(str(tmp_path), split=split) for split in ("train", "test")]
    assert [*map(len, parts)] == [350, 50]
    assert 0 < len(test) < len(train)
    for split, share, message in (
        ("val", 0.05, "split 'val'"),
        ("test", 0.0, "'test' holds none of the 40 rows.*test_share"),
        ("test", 1.5, r"test_share 1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(str(pictures), split=split, test_share=share)
    # On every machine: sha256("a") starts so.
    assert hash_share("a") == int("ca978112ca1bbdca", 16) / 2**64


def test_images_of_other_formats_are_counted_once(pictures, caplog) -> None:
    for name in ("1.jxl", "2.JXL", "a/3.dng", "notes.md"):
        (pictures / name).touch()
    for split in ("train", "test"):
        open_source(str(pictures), split=split)
    (line,) = caplog.messages
    assert line.startswith(f"{pictures}: 2 .jxl, 1 .dng files skipped: this format is not read")


def test_csv_merges_rows_of_one_picture(pictures) -> None:
    (pictures / "captions.csv").write_text(
        'image,caption\na/01.png,"one, dark"\nb/02.png,two\na/01.png,uno\nmissing.png,three\n',
        encoding="utf-8-sig",
    )
    for source in (pictures, pictures / "captions.csv"):
        rows = everything(source)
        assert rows["image_id"][:] == ["a/01.png", "b/02.png", "missing.png"]
        assert rows["captions"][:] == [["one, dark", "uno"], ["two"], ["three"]]
    assert decode_image(rows[1]["image"]).getpixel((0, 0)) == (2, 2, 2)
    # A picture that is not there is a bad row, found when rows are looked at, and not an end.
    with pytest.raises(ValueError, match=r"missing\.png: cannot be read: No such file"):
        decode_image(rows[2]["image"])


def test_jsonl_takes_lists_and_further_columns(pictures) -> None:
    columns = {"image_id": 7, "licence": "CC0", "source": "mine"}
    lines = [
        {"file_name": "a/01.png", "captions": ["one", "uno"], **columns},
        {"file_name": "b/02.png", "caption": "two"},
        {"file_name": "b/04.png", "captions": None},
    ]
    table = pictures / "captions.jsonl"
    table.write_text("\n\n".join(json.dumps(line) for line in lines))
    rows = everything(table)
    assert rows["captions"][:] == [["one", "uno"], ["two"], []]
    assert rows["image_id"][:] == ["7", "b/02.png", "b/04.png"]
    assert (rows[0]["licence"], rows[0]["source"]) == ("CC0", "mine")
    assert rows[1]["licence"] == "unknown"


def test_split_column_is_used(pictures) -> None:
    lines = ("image,caption,split", "a/01.png,one,train", "b/02.png,two,val", "a/01.png,uno,train")
    (pictures / "captions.csv").write_text("\n".join(lines))
    assert open_source(str(pictures), split="train")["captions"][:] == [["one", "uno"]]
    assert open_source(str(pictures), split="val")["captions"][:] == [["two"]]
    with pytest.raises(ValueError, match="no row has split 'test'; found train, val"):
        open_source(str(pictures), split="test")


PAIRS = "image,second_image,sentence,label\n"
WRONG = {
    "captions.csv": [
        ("picture,caption\na.png,x\n", "its columns are picture, caption; expected images"),
        ("image,words\na.png,x\n", "its columns are image, words; expected images"),
        ("image,caption\na.png,x,y\n", "2: not the 2 fields of the heading.*quotes"),
        ("image,caption\na.png\n", "2: not the 2 fields of the heading"),
        ("image,caption\n ,x\n", "2: image is ' '; expected a text"),
        ("image,caption\n", "no rows"),
        ("", "no rows"),
        ("image,caption\n../secret.png,x\n", r"2: '\.\./secret\.png' lies outside"),
        ("image,caption\n/etc/hosts,x\n", "2: '/etc/hosts' lies outside"),
        ("image,caption,split\na,x,train\na,y,test\n", "3: a has split 'test', an earlier line"),
        ("image,caption,split\na,x,train\nb,y,\n", "1 images have no split, such as b"),
        ("image,caption,image_id\na,x,1\nb,y,1\n", "3: 1 has image .*b.*earlier line"),
        ("image,caption\nlink.png,x\n", r"link\.png' lies outside"),
        ("image,caption\na.png,x\udce9\n", r"not UTF-8.*save it as UTF-8"),
        (PAIRS + "a,b,x,1\na,b,y,maybe\n", "3: label is 'maybe'"),
        (PAIRS + "a,b,x,\n", "2: label is ''"),
    ],
    "captions.jsonl": [
        ('{"image": "a.png", "caption": "x"}\n{"image":\n', "2: not JSON"),
        ("[1]\n", "1: expected an object"),
        ('{"image": "a.png", "captions": [1]}\n', r"1: captions must be a text or a list.*\[1\]"),
        ('{"image": "a\\u0000.png", "captions": "x"}\n', "lies outside"),
        (
            '{"image": "a", "second_image": "b", "sentence": null, "label": 1}',
            "1: sentence is None",
        ),
        ('{"image": "a", "question": " ", "answer": "x"}', "1: question is ' '"),
        ('{"image": "a", "question": ["what?"], "answer": "x"}', "1: question is"),
        ('{"image": "a", "label": null}', "1: label is None"),
    ],
    # It is split at tabs.
    "captions.tsv": [("image,caption\na.png,x\n", "its columns are image,caption; expected")],
    "a.txt": [("\n \n", r"a\.txt hold no text")],
}


@pytest.mark.parametrize(
    ("name", "text", "message"), [(name, *each) for name, cases in WRONG.items() for each in cases]
)
def test_wrong_table_is_named_with_its_line(tmp_path, name: str, text: str, message: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message) as caught:
        open_source(str(folder / name))
    assert str(tmp_path) in str(caught.value)


def test_two_tables_or_nothing_known_are_errors(tmp_path) -> None:
    (tmp_path / "data.bin").write_bytes(b"\0")
    for nothing in (tmp_path, tmp_path / "data.bin"):
        with pytest.raises(ValueError, match=r"expected a \.csv"):
            open_source(str(nothing))
    (tmp_path / "captions.csv").touch()
    (tmp_path / "captions.jsonl").touch()
    with pytest.raises(ValueError, match=r"captions\.csv and captions\.jsonl; keep one"):
        open_source(str(tmp_path))


def test_texts_give_a_row_a_line_and_more_of_a_long_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vlmo.data.sources.MAX_WORDS", 3)
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("One two. Three four five. Six\n\n  Second line.  \n")
    (tmp_path / "sub" / "c.txt").write_text("x")
    rows = everything(tmp_path)
    assert rows.features == FEATURES
    assert rows["captions"][:] == [["One two. Three"], ["four five. Six"], ["Second line."], ["x"]]
    assert rows["image_id"][:] == ["b.txt:1", "b.txt:1:1", "b.txt:3", "sub/c.txt:1"]
    assert rows["image"][:] == [None] * 4
    assert everything(tmp_path / "b.txt")["captions"][:] == rows["captions"][:3]


def test_saved_data_set_opens_and_what_it_lacks_is_named(pictures, tmp_path) -> None:
    rows = everything(pictures).add_column("area", [4] * 40).cast_column("image", Image())
    rows.save_to_disk(str(tmp_path / "saved"))
    again = everything(tmp_path / "saved")
    assert len(again) == 40
    assert again[3]["area"] == 4
    assert set(again[3]["image"]) == {"bytes", "path"}
    DatasetDict({"train": rows, "dev": rows.select(range(3))}).save_to_disk(str(tmp_path / "dict"))
    assert len(open_source(str(tmp_path / "dict"), split="dev")) == 3
    wrong = rows.remove_columns(["captions", "label"]).add_column("words", ["red"] * 40)
    wrong.save_to_disk(str(tmp_path / "wrong"))
    with pytest.raises(ValueError, match=r"columns are image, .*, area, words; expected"):
        open_source(str(tmp_path / "wrong"))
    rows.save_to_disk(str(tmp_path / "shards"), num_shards=3)
    shard = sorted((tmp_path / "shards").glob("*.arrow"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=rf"1 of 3 files are not in it, such as '{shard.name}'"):
        open_source(str(tmp_path / "shards"))


DAMAGES = [b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"splits": 7}', b" " * (1 << 25)]


@pytest.mark.parametrize("file", ["dataset_dict", "train/state", "train/dataset_info"])
@pytest.mark.parametrize("content", DAMAGES)
def test_damaged_file_of_a_saved_set_is_named(pictures, tmp_path, file, content) -> None:
    DatasetDict({"train": everything(pictures)}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / f"{file}.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"saved/{file.rpartition('/')[0]}.* is damaged"):
        open_source(str(tmp_path / "saved"))


@pytest.mark.parametrize("file", ["saved/train/state.json", "a.csv", "a.txt"])
def test_pipes_are_not_read(pictures, tmp_path, file: str) -> None:
    DatasetDict({"train": everything(pictures)}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / file).unlink(missing_ok=True)
    os.mkfifo(tmp_path / file)
    with pytest.raises((OSError, ValueError), match="no regular file"):
        open_source(str(tmp_path / file.partition("/")[0]))


def test_joined_sources_keep_false_captions_beside_their_captions(tmp_path) -> None:
    shared = {"image": None, "source": "x", "licence": "y"}
    contrast, named = [], []
    for number in range(3):
        captions = [f"a{number}", f"b{number}"]
        false = [f"not {text}" for text in captions]
        row = {**shared, "image_id": str(number)}
        contrast.append({**row, "captions": captions, "false_captions": false})
        named.append({**row, "captions": [f"c{number}"]})
    Dataset.from_list(contrast[:2], features=CONTRAST_FEATURES).save_to_disk(tmp_path / "contrast")
    Dataset.from_list(named[1:], features=FEATURES).save_to_disk(tmp_path / "named")
    source = f"{tmp_path / 'contrast'}+{tmp_path / 'named'}"
    rows = open_source(source, weights=(2.0, 1.0), test_share=0.0)
    assert rows["captions"][:] == [["a0", "a0", "b0", "b0"], ["a1", "a1", "b1", "b1", "c1"], ["c2"]]
    assert rows["false_captions"][:] == [
        ["not a0", "not a0", "not b0", "not b0"],
        ["not a1", "not a1", "not b1", "not b1", ""],
        [""],
    ]
    plain = open_source(str(tmp_path / "named"), weights=(1.0,), test_share=0.0)
    assert "false_captions" not in plain.column_names
    kept = set()
    for row in open_source(source, weights=(1.5, 1.0), test_share=0.0):
        kept |= set(zip(row["captions"], row["false_captions"], strict=True))
    true = {(text, f"not {text}") for text in ("a0", "b0", "a1", "b1")}
    assert kept == true | {("c1", ""), ("c2", "")}


def join(*sources: Path, **options) -> Dataset:
    return open_source("+".join(map(str, sources)), **options)


def test_two_images_of_one_name_are_not_joined(tmp_path) -> None:
    tables = [tmp_path / name / "captions.csv" for name in "ab"]
    for table in tables:
        (table.parent / "c").mkdir(parents=True)
        PILImage.new("RGB", (2, 2)).save(table.parent / "c" / "0.png")
    message = r"two images are called c/0\.png: .*a/c/0\.png and .*b/c/0\.png; give each a column"
    with pytest.raises(ValueError, match=message):
        join(tmp_path / "a", tmp_path / "b", test_share=0.0)
    for table, split in zip(tables, ("train", "test"), strict=True):
        lines = ["image,caption,split", f"c/0.png,x,{split}", f"{table.parent}/c/1.png,x,train"]
        table.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):  # one would be held out for the other's sake
        join(*tables)
    for table in tables:
        table.write_text(f"image,caption,image_id\nc/0.png,of {table.parent.name},7\n")
    assert join(*tables, test_share=0.0)["captions"][:] == [["of a", "of b"]]
    (tmp_path / "link").symlink_to(tmp_path / "a")
    tables[0].rename(table := tmp_path / "a" / "own.csv")
    table.write_text("image,caption\nc/0.png,of a\n")
    assert join(tmp_path / "link", table, test_share=0.0)["captions"][:] == [["of a"]]


def test_images_that_a_joined_source_holds_out_are_left_out(pictures) -> None:
    names = everything(pictures)["image_id"][:]
    given, plain = pictures / "given.csv", pictures / "plain.csv"
    for held_out in ("test", "val"):
        lines = [f"{name},x,{'train' if number else held_out}" for number, name in enumerate(names)]
        given.write_text("\n".join(["image,caption,split", *lines]).replace("val", "validation"))
        plain.write_text("\n".join(["image,caption", *(f"{name},y" for name in names)]))
        test = {*open_source(str(plain), split="test")["image_id"], names[0]}
        assert set(join(plain, given)["image_id"]) == set(names) - test
        assert set(join(given, pictures, test_share=0.0)["image_id"]) == set(names[1:])


@pytest.mark.parametrize("none", [None, [], [None], [" "]])
def test_rows_without_false_captions_have_empty_ones(none) -> None:
    rows = [{"captions": ["a"], "false_captions": none}]
    rows.append({"captions": ["b"], "false_captions": ["not b"]})
    assert false_captions(Dataset.from_list(rows)) == [[""], ["not b"]]
    rows[1]["false_captions"] = ["not b", "not c"]
    with pytest.raises(ValueError, match="sample 1 has 1 captions and 2 false_captions; give as"):
        false_captions(Dataset.from_list(rows))
