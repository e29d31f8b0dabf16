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
from tests.toy_shards import pack, picture, write_parquet, write_tars

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


def test_table_with_question_and_answer_is_a_set_of_questions(tmp_path) -> None:
    draw(tmp_path / "a.png", tmp_path / "b.png")
    table = tmp_path / "metadata.csv"
    table.write_text(
        "image,question,answer\na.png,what color?,red\nb.png,what color?,blue\na.png,how many?,\n"
    )
    for source in (tmp_path, table):
        rows = everything(source)
        assert rows["image_id"][:] == ["a.png", "b.png", "a.png"]
        assert rows["answers"][:] == [["red"], ["blue"], []]
        assert (rows["answer_labels"][:], rows["answer_scores"][:]) == (
            [[1], [0], []],
            [[1.0], [1.0], []],
        )
        assert names_of_source(str(source)) == ["blue", "red"]


def test_table_with_two_images_is_a_set_of_sentences(tmp_path) -> None:
    draw(tmp_path / "a.png", tmp_path / "b.png")
    table = tmp_path / "metadata.csv"
    table.write_text(
        "image,second_image,sentence,label\na.png,b.png,both are red,True\na.png,b.png,one is red,0\n"
    )
    rows = everything(tmp_path)
    assert rows["label"][:] == [1, 0]
    assert rows["captions"][:] == [["both are red"], ["one is red"]]
    assert rows[0]["second_image"]["path"] == str(tmp_path / "b.png")
    assert len(set(rows["image_id"][:])) == 2


def test_sentences_about_one_image_stay_in_one_split(tmp_path) -> None:
    draw(*(tmp_path / f"{number}.png" for number in range(20)))
    lines = [f"{number}.png,0.png,sentence {each},1" for number in range(20) for each in range(3)]
    (tmp_path / "metadata.csv").write_text("\n".join(["image,second_image,sentence,label", *lines]))
    parts = [
        open_source(str(tmp_path), split=split, test_share=0.4)["image_id"][:]
        for split in ("train", "test")
    ]
    train, test = ({name.partition("#")[0] for name in part} for part in parts)
    assert train
    assert test
    assert not train & test


def test_folders_by_class_and_split(tmp_path) -> None:
    draw(
        *(tmp_path / name for name in ("train/cat/1.png", "train/dog/2.png", "val/dog/deep/3.png"))
    )
    rows = open_source(str(tmp_path), split="train")
    assert rows.features["label"].names == ["cat", "dog"]
    assert rows["label"][:] == [0, 1]
    assert open_source(str(tmp_path), split="validation")["label"][:] == [1]
    (tmp_path / "metadata.csv").write_text(
        "path;label\ntrain\\cat\\1.png;tom\ntrain\\dog\\2.png;rex\n"
    )
    rows = everything(tmp_path)
    assert [rows.features["label"].names[label] for label in rows["label"]] == ["tom", "rex"]
    assert rows["image_id"][:] == ["train/cat/1.png", "train/dog/2.png"]


def test_images_with_masks_need_names_of_classes(tmp_path) -> None:
    draw(*(tmp_path / name for name in ("images/1.jpg", "images/2.jpg", "masks/1.png")))
    for read, message in (
        (everything, r"no classes\.txt"),
        (own_labels, "no answers or classes: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path)
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
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "red"}))
    assert everything(tmp_path)["captions"][:] == [["red"]]


def test_tables_in_folders_of_splits_are_one_set(tmp_path) -> None:
    for part, answer in (("train", "red"), ("validation", "blue")):
        draw(tmp_path / part / "a.png", tmp_path / part / "b.png")
        lines = [
            "file_name,question,answer",
            f"./a.png,what?,{answer}",
            f"{tmp_path}/{part}/b.png,what?,{answer}",
        ]
        (tmp_path / part / "metadata.csv").write_text("\n".join(lines))
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
    table = tmp_path / "metadata.jsonl"
    lines = [{"answers": ["red"] * 2 + ["blue"] * 4}, {"answers": ["blue"]}, {"answers": 3}]
    table.write_text(
        "\n".join(json.dumps({"image": "a.png", "question": "what?"} | line) for line in lines)
    )
    rows = everything(tmp_path)
    assert rows["answer_labels"][:] == [[2, 1], [1], [0]]
    assert [[round(each, 3) for each in scores] for scores in rows["answer_scores"][:]] == [
        [0.6, 1.0],
        [1.0],
        [1.0],
    ]
    assert names_of_source(str(tmp_path)) == ["3", "blue", "red"]


def test_zero_is_an_id(tmp_path) -> None:
    draw(tmp_path / "a.png")
    table = tmp_path / "metadata.jsonl"
    lines = [{"image_id": 0, "question_id": number} for number in (7, 0)]
    table.write_text(
        "\n".join(
            json.dumps({"image": "a.png", "question": "what?", "answer": "x"} | a) for a in lines
        )
    )
    rows = everything(tmp_path)
    assert (rows["image_id"][:], rows["question_id"][:]) == (["0", "0"], ["7", "0"])


def test_columns_are_those_of_all_lines(tmp_path) -> None:
    draw(tmp_path / "a.png", tmp_path / "b.png")
    lines = [{"image": "a.png", "note": "none yet"}, {"image": "b.png", "caption": "red"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert everything(tmp_path)["captions"][:] == [[], ["red"]]
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join(map(json.dumps, [{"image": "a.png"}, lines[0]]))
    )
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
        write_parquet(
            path / f"{name}-00000-of-00001.parquet", [f"{name} {number}" for number in numbers]
        )
    return path


def captioned_set(path: Path) -> Path:
    features = Features({"image": ImageFeature(), "text": Value("string")})
    return saved(
        path, features, image=PICTURES, text=[f"a picture of thing {number}" for number in range(6)]
    )


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
    assert all(
        name.startswith("mine") for name in ids
    )  # so that others' rows of the same number are not merged


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
    tars = [
        pack({"a.png": picture(each), "a.txt": b"one" * each, f"{each}.png": picture(0)})
        for each in (1, 2)
    ]
    with tarfile.open(write_tars(tmp_path / "set", [1])[0], "w") as joined:
        for tar in map(io.BytesIO, tars):
            with tarfile.open(fileobj=tar) as opened:
                for member in opened:
                    joined.addfile(member, opened.extractfile(member))
    rows = everything(tmp_path / "set")
    assert rows["image_id"][:] == [f"set/00000.tar#{key}" for key in ("a", "1", "a#2", "2")]
    assert rows["captions"][:] == [["one"], [], ["oneone"], []]


def test_classes_and_questions_of_saved_sets_have_their_names(tmp_path) -> None:
    features = Features({"img": ImageFeature(), "label": ClassLabel(names=["dog", "cat", "cow"])})
    rows = open_source(
        str(saved(tmp_path / "classes", features, img=PICTURES, label=[1, 0] * 3)), split="test"
    )
    assert rows.features["label"].names == ["dog", "cat", "cow"]
    assert rows["label"][:] == [1, 0]
    texts = Features(
        {
            "image": ImageFeature(),
            "question": Value("string"),
            "answers": [{"answer": Value("string")}],
        }
    )
    answers = [[{"answer": "red" if number < 4 else "blue"}] * 10 for number in range(6)]
    source = saved(
        tmp_path / "questions", texts, image=PICTURES, question=["what?"] * 6, answers=answers
    )
    assert names_of_source(str(source)) == ["blue", "red"]
    assert open_source(str(source), split="test")["answer_labels"][:] == [[0], [0]]


KINDS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "struct": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_paths_in_parquet_are_read_from_its_folder_and_stay_there(
    kind, tmp_path
) -> None:
    folder = tmp_path / "set"
    draw(folder / "a.png", folder / "b" / "c.png", tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")

    def write(*images: str | bytes, **columns) -> Path:
        if kind == "struct":
            images = [{"path" if isinstance(each, str) else "bytes": each} for each in images]
        table = pa.table(
            {"image": pa.array(images, KINDS[kind]), "caption": ["one", "two", "uno"]} | columns
        )
        pq.write_table(table, folder / "0.parquet")
        return folder / "0.parquet"

    rows = everything(write("a.png", "b/c.png", "a.png"))
    assert dict(zip(rows["image_id"], rows["captions"], strict=True)) == {
        "a.png": ["one", "uno"],
        "b/c.png": ["two"],
    }
    assert [decode_image(each).size for each in rows["image"]] == [(4, 4)] * 2
    for outside in (str(tmp_path / "secret.png"), "../../secret.png", "link.png"):
        with pytest.raises(ValueError, match=r"record 1: .* lies outside"):
            everything(write("a.png", outside, "a.png"))
    if kind == "struct":
        rows = everything(write(picture(0), "a.png", picture(0), image_id=["7", "8", "7"]))
        assert dict(zip(rows["image_id"], rows["captions"], strict=True)) == {
            "7": ["one", "uno"],
            "8": ["two"],
        }
        assert [decode_image(each).size for each in rows["image"]] == [(24, 20), (4, 4)]


def test_paths_in_saved_sets_count_from_their_folder(tmp_path) -> None:
    draw(tmp_path / "set" / "a.png")
    Dataset.from_dict({"image": ["a.png"], "caption": ["one"]}).save_to_disk(tmp_path / "set")
    assert decode_image(everything(tmp_path / "set")[0]["image"]).size == (4, 4)


def test_empty_splits_are_left_out_and_val_is_validation(tmp_path) -> None:
    rows = Dataset.from_dict({"image": PICTURES, "caption": [*"abcdef"]}).cast_column(
        "image", ImageFeature()
    )
    full = Dataset.from_list(
        [make_row(name, image=PICTURES[0], source="", licence="") for name in "abcdef"],
        features=FEATURES,
    )
    for path, given in ((tmp_path / "own", rows), (tmp_path / "full", full)):
        sizes = {"train": 6, "val": 2, "test": 0}
        DatasetDict({name: given.select(range(size)) for name, size in sizes.items()}).save_to_disk(
            path
        )
        for split, count in (("train", 6), ("validation", 2), ("val", 2)):
            assert len(open_source(str(path), split=split)) == count
        with pytest.raises(ValueError, match="no split 'test'; it has train, validation"):
            open_source(str(path), split="test")
    DatasetDict({"train": rows.select([])}).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match="the set is empty"):
        everything(tmp_path / "empty")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": [b"x"], "words": ["red"]},
            "columns are image, words; expected .*caption, captions, text",
        ),
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
