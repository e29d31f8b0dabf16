import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tests.toy_shards import picture, write_parquet, write_tars

from vlmo.data.decoding import decode_image
from vlmo.data.listing import list_shards
from vlmo.data.own import own_labels
from vlmo.data.schema import FEATURES, make_row
from vlmo.data.sources import open_source
from vlmo.tasks.labels import names_of_source


def draw(*files: Path) -> None:
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (40 * number, 0, 0)).save(file)


def everything(path: Path):
    return open_source(str(path), test_share=0.0)


def write_lines(path: Path, *lines: dict | str) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def test_table_with_question_and_answer_is_a_set_of_questions(tmp_path) -> None:
    draw(tmp_path / "a.png", tmp_path / "b.png")
    lines = ("a.png,what color?,red", "b.png,what color?,blue", "a.png,how many?,")
    table = write_lines(tmp_path / "metadata.csv", "image,question,answer", *lines)
    for source in (tmp_path, table):
        rows = everything(source)
        assert rows["image_id"][:] == ["a.png", "b.png", "a.png"]
        assert rows["answers"][:] == [["red"], ["blue"], []]
        assert rows["answer_labels"][:] == [[1], [0], []]
        assert rows["answer_scores"][:] == [[1.0], [1.0], []]
        assert names_of_source(str(source)) == ["blue", "red"]


def test_table_with_two_images_is_a_set_of_sentences(tmp_path) -> None:
    draw(tmp_path / "a.png", tmp_path / "b.png")
    lines = ("a.png,b.png,both are red,True", "a.png,b.png,one is red,0")
    write_lines(tmp_path / "metadata.csv", "image,second_image,sentence,label", *lines)
    rows = everything(tmp_path)
    assert rows["label"][:] == [1, 0]
    assert rows["captions"][:] == [["both are red"], ["one is red"]]
    assert rows[0]["second_image"]["path"] == str(tmp_path / "b.png")
    assert len(set(rows["image_id"][:])) == 2


def test_sentences_about_one_image_stay_in_one_split(tmp_path) -> None:
    draw(*(tmp_path / f"{number}.png" for number in range(20)))
    lines = [f"{number}.png,0.png,sentence {each},1" for number in range(20) for each in range(3)]
    write_lines(tmp_path / "metadata.csv", "image,second_image,sentence,label", *lines)
    train, test = (
        {name.partition("#")[0] for name in rows["image_id"]}
        for rows in (open_source(str(tmp_path), split=s, test_share=0.4) for s in ("train", "test"))
    )
    assert train
    assert test
    assert not train & test


def test_folders_by_class_and_split(tmp_path) -> None:
    names = ("train/cat/1.png", "train/dog/2.png", "val/dog/deep/3.png")
    draw(*(tmp_path / name for name in names))
    rows = open_source(str(tmp_path), split="train")
    assert rows.features["label"].names == ["cat", "dog"]
    assert rows["label"][:] == [0, 1]
    assert open_source(str(tmp_path), split="validation")["label"][:] == [1]
    lines = ("path;label", r"train\cat\1.png;tom", r"train\dog\2.png;rex")
    write_lines(tmp_path / "metadata.csv", *lines)
    rows = everything(tmp_path)
    assert [rows.features["label"].names[label] for label in rows["label"]] == ["tom", "rex"]
    assert tuple(rows["image_id"]) == names[:2]


def test_images_with_masks_need_names_of_classes(tmp_path) -> None:
    draw(*(tmp_path / name for name in ("images/1.jpg", "images/2.jpg", "masks/1.png")))
    with pytest.raises(ValueError, match=r"no classes\.txt"):
        everything(tmp_path)
    with pytest.raises(ValueError, match="no answers or classes: expected"):
        own_labels(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nsea\n")
    with pytest.raises(ValueError, match=r"1 images .* no mask of the same name, such as 2\.jpg"):
        everything(tmp_path)
    draw(tmp_path / "masks/2.png")
    rows = everything(tmp_path)
    assert [Path(mask["path"]).name for mask in rows["mask"]] == ["1.png", "2.png"]
    assert names_of_source(str(tmp_path)) == ["sky", "sea"]


def test_metadata_of_an_image_folder_is_read_and_others_are_not(tmp_path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("camera,year\nx,2001\n")
    assert everything(tmp_path)["captions"][:] == [[]]
    (tmp_path / "metadata.csv").write_text("file_name,text,license\na.png,a red square,CC0\n")
    rows = everything(tmp_path)
    assert (rows["captions"][:], rows["licence"][:]) == ([["a red square"]], ["CC0"])
    (tmp_path / "metadata.csv").unlink()
    write_lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "red"})
    assert everything(tmp_path)["captions"][:] == [["red"]]


def test_tables_in_folders_of_splits_are_one_set(tmp_path) -> None:
    for part, answer in (("train", "red"), ("validation", "blue")):
        draw(tmp_path / part / "a.png", tmp_path / part / "b.png")
        lines = (f"./a.png,what?,{answer}", f"{tmp_path}/{part}/b.png,what?,{answer}")
        write_lines(tmp_path / part / "metadata.csv", "file_name,question,answer", *lines)
    for part, label in (("train", 1), ("validation", 0)):
        rows = open_source(str(tmp_path), split=part)
        assert rows["image_id"][:] == [f"{part}/a.png", f"{part}/b.png"]
        assert all(Path(image["path"]).is_file() for image in rows["image"])
        assert rows["answer_labels"][:] == [[label]] * 2
    assert names_of_source(str(tmp_path)) == ["blue", "red"]
    assert everything(tmp_path / "train")["image_id"][:] == ["a.png", "b.png"]  # by itself
    (tmp_path / "train" / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"train has no table such as .*metadata\.csv"):
        everything(tmp_path)


def test_several_answers_are_those_of_people(tmp_path) -> None:
    draw(tmp_path / "a.png")
    question = {"image": "a.png", "question": "what?"}
    answers = (["red"] * 2 + ["blue"] * 4, ["blue"], 3)
    write_lines(tmp_path / "metadata.jsonl", *(question | {"answers": each} for each in answers))
    rows = everything(tmp_path)
    assert rows["answer_labels"][:] == [[2, 1], [1], [0]]
    first, *others = rows["answer_scores"][:]
    assert first == pytest.approx([0.6, 1.0])
    assert others == [[1.0], [1.0]]
    assert names_of_source(str(tmp_path)) == ["3", "blue", "red"]


def test_zero_is_an_id(tmp_path) -> None:
    draw(tmp_path / "a.png")
    question = {"image": "a.png", "question": "what?", "answer": "x", "image_id": 0}
    lines = (question | {"question_id": number} for number in (7, 0))
    rows = everything(write_lines(tmp_path / "metadata.jsonl", *lines))
    assert (rows["image_id"][:], rows["question_id"][:]) == (["0", "0"], ["7", "0"])


def test_columns_are_those_of_all_lines(tmp_path) -> None:
    draw(tmp_path / "a.png", tmp_path / "b.png")
    lines = [{"image": "a.png", "note": "none yet"}, {"image": "b.png", "caption": "red"}]
    table = write_lines(tmp_path / "metadata.jsonl", *lines)
    assert everything(tmp_path)["captions"][:] == [[], ["red"]]
    write_lines(table, {"image": "a.png"}, lines[0])
    with pytest.raises(ValueError, match="its columns are image, note; expected images"):
        everything(tmp_path)


PICTURES = [{"bytes": picture(number), "path": None} for number in range(6)]
SPLITS = {"train": range(4), "test": range(4, 6)}


def saved(path: Path, features: Features, **columns) -> Path:
    rows = Dataset.from_dict(columns, features=features)
    DatasetDict({name: rows.select(numbers) for name, numbers in SPLITS.items()}).save_to_disk(path)
    return path


def shards_by_split(path: Path) -> Path:
    write_tars(path / "train", [2, 2])
    write_tars(path, [2], name="test-")
    return path


def tables_by_split(path: Path) -> Path:
    for name, numbers in SPLITS.items():
        keys = [f"{name} {number}" for number in numbers]
        write_parquet(path / f"{name}-00000-of-00001.parquet", keys)
    return path


def captioned_set(path: Path) -> Path:
    features = Features({"image": ImageFeature(), "text": Value("string")})
    texts = [f"a picture of thing {number}" for number in range(6)]
    return saved(path, features, image=PICTURES, text=texts)


@pytest.mark.parametrize("write", [shards_by_split, tables_by_split, captioned_set])
def test_images_with_captions_are_read_from_what_an_index_reads(write, tmp_path) -> None:
    source = write(tmp_path / "mine")
    ids = set()
    for split, numbers in SPLITS.items():
        rows = open_source(str(source), split=split)
        assert len(rows) == len(numbers)
        assert all(captions[0].startswith("a picture of thing") for captions in rows["captions"])
        assert [decode_image(each).size for each in rows["image"]] == [(24, 20)] * len(rows)
        ids.update(rows["image_id"])
    assert len(ids) == 6
    # So that others' rows of the same number are not merged.
    assert all(name.startswith("mine") for name in ids)


def test_a_folder_is_read_as_its_images_or_its_tars_or_its_parquet_files(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert len(everything(tmp_path)) == 2
    shard = write_parquet(tmp_path / "train.PARQUET", [*"abc"])
    assert list_shards(str(shard)) == (str(shard),)
    assert [len(everything(source)) for source in (shard, tmp_path)] == [3, 3]
    write_tars(tmp_path, [6])[0].rename(tar := tmp_path / "UP.TAR")
    assert [len(everything(source)) for source in (tar, tmp_path)] == [6, 6]
    draw(tmp_path / "a.png")
    assert everything(tmp_path)["image_id"][:] == ["a.png"]


def test_second_record_of_one_name_in_a_tar_is_another_image(tmp_path) -> None:
    with tarfile.open(write_tars(tmp_path / "set", [1])[0], "w") as joined:
        for number in (1, 2):
            files = {"a.png": picture(number), "a.txt": b"one" * number}
            for name, data in (files | {f"{number}.png": picture(0)}).items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                joined.addfile(member, io.BytesIO(data))
    rows = everything(tmp_path / "set")
    assert rows["image_id"][:] == [f"set/00000.tar#{key}" for key in ("a", "1", "a#2", "2")]
    assert rows["captions"][:] == [["one"], [], ["oneone"], []]


def test_classes_and_questions_of_saved_sets_have_their_names(tmp_path) -> None:
    features = Features({"img": ImageFeature(), "label": ClassLabel(names=["dog", "cat", "cow"])})
    source = saved(tmp_path / "classes", features, img=PICTURES, label=[1, 0] * 3)
    rows = open_source(str(source), split="test")
    assert rows.features["label"].names == ["dog", "cat", "cow"]
    assert rows["label"][:] == [1, 0]
    text = Value("string")
    features = Features({"image": ImageFeature(), "question": text, "answers": [{"answer": text}]})
    columns = {"image": PICTURES, "question": ["what?"] * 6}
    columns["answers"] = [[{"answer": "red" if n < 4 else "blue"}] * 10 for n in range(6)]
    source = saved(tmp_path / "questions", features, **columns)
    assert names_of_source(str(source)) == ["blue", "red"]
    assert open_source(str(source), split="test")["answer_labels"][:] == [[0], [0]]


KINDS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "struct": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_paths_in_parquet_are_read_from_its_folder_and_stay_there(kind, tmp_path):
    folder = tmp_path / "set"
    draw(folder / "a.png", folder / "b" / "c.png", tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")

    def write(*images: str | bytes, **columns) -> Path:
        if kind == "struct":
            images = [{"path" if isinstance(each, str) else "bytes": each} for each in images]
        columns |= {"image": pa.array(images, KINDS[kind]), "caption": ["one", "two", "uno"]}
        pq.write_table(pa.table(columns), folder / "0.parquet")
        return folder / "0.parquet"

    def check(source: Path, ids: list[str], sizes: list[tuple[int, int]]) -> None:
        rows = everything(source)
        assert (rows["image_id"][:], rows["captions"][:]) == (ids, [["one", "uno"], ["two"]])
        assert [decode_image(each).size for each in rows["image"]] == sizes

    check(write("a.png", "b/c.png", "a.png"), ["a.png", "b/c.png"], [(4, 4)] * 2)
    for outside in (str(tmp_path / "secret.png"), "../../secret.png", "link.png"):
        with pytest.raises(ValueError, match=r"record 1: .* lies outside"):
            everything(write("a.png", outside, "a.png"))
    if kind == "struct":
        mixed = write(picture(0), "a.png", picture(0), image_id=["7", "8", "7"])
        check(mixed, ["7", "8"], [(24, 20), (4, 4)])


def test_paths_in_saved_sets_count_from_their_folder(tmp_path) -> None:
    draw(tmp_path / "set" / "a.png")
    Dataset.from_dict({"image": ["a.png"], "caption": ["one"]}).save_to_disk(tmp_path / "set")
    assert decode_image(everything(tmp_path / "set")[0]["image"]).size == (4, 4)


def test_empty_splits_are_left_out_and_val_is_validation(tmp_path) -> None:
    rows = Dataset.from_dict({"image": PICTURES, "caption": [*"abcdef"]})
    rows = rows.cast_column("image", ImageFeature())
    full = [make_row(name, image=PICTURES[0], source="", licence="") for name in "abcdef"]
    for name, given in (("own", rows), ("full", Dataset.from_list(full, features=FEATURES))):
        sizes = {"train": 6, "val": 2, "test": 0}
        splits = {split: given.select(range(size)) for split, size in sizes.items()}
        DatasetDict(splits).save_to_disk(tmp_path / name)
        for split, count in (("train", 6), ("validation", 2), ("val", 2)):
            assert len(open_source(str(tmp_path / name), split=split)) == count
        with pytest.raises(ValueError, match="no split 'test'; it has train, validation"):
            open_source(str(tmp_path / name), split="test")
    DatasetDict({"train": rows.select([])}).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match="the set is empty"):
        everything(tmp_path / "empty")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"x"], "words": ["red"]}, "columns are image, words; expected .*caption, "),
        ({"caption": ["red"]}, "columns are caption; expected images"),
        ({"image": [7], "caption": ["red"]}, "record 0: it has no image"),
    ],
)
def test_columns_that_nobody_knows_are_named(columns, message, tmp_path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        everything(tmp_path)


def test_damaged_shards_and_patterns_name_the_option_that_reads_on(tmp_path) -> None:
    tar = write_tars(tmp_path, [3])[0]
    tar.write_bytes(tar.read_bytes()[:1000])
    for source in (tar, tmp_path / "*.tar"):
        with pytest.raises(ValueError, match=r"--data\.streams\.patterns"):
            everything(source)
    (tmp_path / "a.parquet").write_bytes(b"PAR1xxxxPAR1")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read"):
        everything(tmp_path / "a.parquet")
