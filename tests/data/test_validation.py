import os
from pathlib import Path

import pytest
from datasets import Dataset, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from tests.distributed.gloo import run_processes
from tests.folder.test_atomic import full_disk

from vlmo.data import validation
from vlmo.data.builtin import built_folder
from vlmo.data.decoding import encode_image
from vlmo.data.rows import Bad, QuarantineFile, first_reasons, read_lines
from vlmo.data.schema import CONTRAST_FEATURES, FEATURES, REASONING_FEATURES
from vlmo.data.validation import ImageValidator, filter_invalid_rows


def png(shade: int) -> dict:
    return encode_image(Image.new("L", (4, 4), shade), f"{shade}.png")


def row(number: int, **changes) -> dict:
    good = {"image": png(number), "captions": [f"shade {number}"], "image_id": f"id{number}"}
    return good | {"source": "test", "licence": "CC0"} | changes


def dataset(rows: list[dict]) -> Dataset:
    return Dataset.from_list(rows, features=FEATURES)


def checked(rows: Dataset, folder: Path, name: str = "q.jsonl", **options) -> Dataset:
    return filter_invalid_rows(rows, quarantine=folder / name, **{"max_share": 1.0} | options)


def kept(rows: Dataset, folder: Path) -> list[str]:
    return checked(rows, folder)["image_id"][:]


def mixed() -> Dataset:
    """Six good rows (one of which loses a caption) among six bad ones."""
    return dataset(
        [
            row(0),
            row(1, image={"bytes": b"", "path": "empty.png"}),
            row(2),
            row(3, captions=["", "  \n"]),
            row(4, captions=["fine", " "]),
            row(5, captions=[]),
            row(6, image=None),
            row(7, image_id="id0"),
            row(8, image_id=""),
            row(9, image={"bytes": png(9)["bytes"][:-30], "path": "cut.png"}),
            row(10),
            row(11, image={"bytes": b"I am a text.", "path": "text.png"}, captions=[""]),
        ]
    )


def test_filter_loses_no_row_without_a_line_that_says_why(tmp_path) -> None:
    good = checked(mixed(), tmp_path, "deep/quarantine.jsonl")
    assert good["image_id"][:] == ["id0", "id2", "id4", "id10"]
    assert good["captions"][:] == [["shade 0"], ["shade 2"], ["fine"], ["shade 10"]]
    assert good.features == FEATURES
    found = {line["row"]: line for line in read_lines(tmp_path / "deep" / "quarantine.jsonl")}
    assert found[1].pop("reason") == "empty.png: empty file (0 bytes)"
    facts = {"image_id": "id1", "path": "empty.png", "source": "test"}
    assert found.pop(1) == {"kind": "row", "row": 1, **facts}
    assert "cut.png: cannot be decoded" in found.pop(9)["reason"]
    assert found.pop(11)["reason"].endswith("(12 bytes); every caption is empty")
    assert [(number, line["kind"], line["reason"]) for number, line in found.items()] == [
        (3, "row", "every caption is empty"),
        (4, "caption", "1 empty captions removed"),
        (5, "row", "the row has no caption"),
        (6, "row", "the row has no image"),
        (7, "row", "image_id repeats that of row 0"),
        (8, "row", "image_id is empty"),
    ]


SCENE = {"bytes": b"scene:8|ffffff", "path": None}
REPEATED = [row(0, captions=[""]), row(1, image_id="id0"), row(2, image_id="id0")]
SCENES = [row(0, image=SCENE), row(1, image=SCENE | {"bytes": b"scene:8|nocolor"})]


@pytest.mark.parametrize(
    ("rows", "options", "kept"),
    [
        (REPEATED, {}, [["shade 1"]]),
        (REPEATED[1:], {"unique_ids": False}, [["shade 1"], ["shade 2"]]),
        ([row(0, image=None)], {"needs_image": False}, [["shade 0"]]),
        ([row(0, captions=[])], {"needs_caption": False}, [[]]),
        (SCENES, {}, [["shade 0"]]),
    ],
)
def test_filter_keeps_what_a_task_can_use(tmp_path, rows, options, kept) -> None:
    assert checked(dataset(rows), tmp_path, **options)["captions"][:] == kept


def test_filter_keeps_further_columns_and_takes_false_captions_along(tmp_path) -> None:
    false = ["no star", "nothing", "no ring"]
    given = [
        row(0, captions=["a star", " ", "a ring"], false_captions=false),
        row(1, image_id="id0", false_captions=["no"]),
        row(2, false_captions=["no shade"]),
    ]
    rows = Dataset.from_list(given, features=CONTRAST_FEATURES)
    rows = rows.add_column("answer", ["x", "y", "z"], feature=Value("string"))
    good = checked(rows, tmp_path, max_share=0.5)
    assert good.column_names == rows.column_names
    assert good["answer"][:] == ["x", "z"]
    assert good["captions"][:] == [["a star", "a ring"], ["shade 2"]]
    assert good["false_captions"][:] == [["no star", "no ring"], ["no shade"]]


def test_quarantine_that_the_disk_refuses_is_named_and_goes_on_whole(tmp_path) -> None:
    file = tmp_path / "quarantine.jsonl"
    bad = [Bad("row", "a.tar", number, str(number), "torn") for number in (0, 1)]
    QuarantineFile(file).add(bad[:1])
    refused = pytest.raises(OSError, match=r"File too large.+quarantine\.jsonl")
    with full_disk(file.stat().st_size + 10), refused:
        QuarantineFile(file).add(bad)
    QuarantineFile(file).add(bad)
    assert [line["row"] for line in read_lines(file)] == [0, 1]


def test_first_three_kinds_of_reasons_are_said() -> None:
    reasons = ("0: cut (3 bytes)", "1: cut (5 bytes)", "2: no image", "3: too large", "4: empty")
    lines = [{"kind": "row", "path": each[0], "reason": each} for each in reasons]
    lines.append({"kind": "caption", "path": "5", "reason": "5: blank"})
    assert first_reasons(lines) == "0: cut (3 bytes) (and 1 more); 2: no image; 3: too large; ..."


def test_filter_stops_above_the_share_and_without_rows(tmp_path) -> None:
    rows = dataset([row(number, captions=[""] if number < 2 else ["x"]) for number in range(100)])
    images = [{"bytes": b"x", "path": f"{number}.png"} for number in range(5)]
    wrong = dataset([row(number, image=image) for number, image in enumerate(images)])
    file = tmp_path / "q.jsonl"
    for given, share, message in (
        (rows, 0.01, rf"2 of 100 rows are invalid \(2\.00%\), more than .* 1\.00%.*{file}"),
        (wrong, 0.01, r"0\.png: [^;]*\(and 4 more\)\. "),
        (rows.select([]), 1.0, "no rows"),
        (rows.select([0]), 1.0, "all 1 rows are invalid"),
        (rows.remove_columns("image_id"), 1.0, r"column\(s\) image_id missing"),
    ):
        with pytest.raises(ValueError, match=message):
            checked(given, tmp_path, max_share=share)
    assert len(checked(rows, tmp_path, max_share=0.02)) == 98
    assert len(read_lines(file)) == 2
    good = rows.select([7])
    assert filter_invalid_rows(good, quarantine=file).to_list() == good.to_list()
    assert file.read_text() == ""


def share_the_look(file: str) -> dict[str, object]:
    seen, updates = list[int](), list[None]()
    validate = ImageValidator.__call__
    options = {"progress": lambda: updates.append(None)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ImageValidator, "__call__", lambda self, row: seen.append(1) or validate(self, row)
        )
        good = filter_invalid_rows(mixed(), quarantine=Path(file), max_share=1.0, **options)
    return {"good": good.to_list(), "seen": len(seen), "updates": len(updates)}


def test_processes_share_the_look_and_keep_the_same_rows(tmp_path) -> None:
    one = checked(mixed(), tmp_path, "one.jsonl")
    found = run_processes(share_the_look, str(tmp_path / "two.jsonl"))
    assert [process["good"] for process in found] == [one.to_list()] * 2
    assert [process["seen"] for process in found] == [6, 6]  # of twelve rows
    assert found[0]["updates"] == 1
    assert (tmp_path / "one.jsonl").read_text() == (tmp_path / "two.jsonl").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]


@pytest.fixture
def decoded(tmp_path, monkeypatch) -> list[str]:
    """Paths of images that are decoded from here on; the cache folder is empty."""
    monkeypatch.setenv("VLMO_CACHE", str(tmp_path / "cache"))
    paths, true = list[str](), validation.decode_image

    def noted(cell):
        paths.append(cell["path"])
        return true(cell)

    monkeypatch.setattr(validation, "decode_image", noted)
    return paths


def save(rows: Dataset, folder: Path) -> Dataset:
    rows.save_to_disk(folder / "train")
    return Dataset.load_from_disk(str(folder / "train"))


def test_rows_of_a_saved_set_are_decoded_once_for_all_runs(tmp_path, decoded) -> None:
    mixed().save_to_disk(tmp_path / "set")
    found = []
    for run in ("first", "second"):
        rows = Dataset.load_from_disk(str(tmp_path / "set"))
        found.append(checked(rows, tmp_path, run).to_list())
        assert len(decoded) == 11  # of twelve rows, one of which has no image
    assert found[0] == found[1]
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text()
    (saved,) = (tmp_path / "set").glob("*.arrow")
    os.utime(saved, (1, 1))
    kept(rows, tmp_path)
    assert len(decoded) == 22


@pytest.mark.parametrize(
    ("changes", "count", "ids"),
    [
        ({}, 0, ["id0", "id1"]),
        ({"captions": []}, 0, ["id0"]),  # captions were not needed when it was prepared
        ({"image": None}, 1, ["id0"]),
    ],
)
def test_rows_of_prepared_folders_are_decoded_where_they_do_not_tell(
    changes, count, ids, tmp_path, decoded
) -> None:
    rows = save(dataset([row(0), row(1, **changes)]), tmp_path / "set")
    (tmp_path / "set" / "prepared.json").write_text('{"layout": 1}')
    assert kept(rows, tmp_path) == ids
    assert len(decoded) == count
    (tmp_path / "set" / "prepared.json").write_text('{"labels": []}')  # somebody's own
    decoded.clear()
    kept(rows.select([0]), tmp_path)
    assert len(decoded) == 1


def test_built_in_sets_and_their_mixtures_with_prepared_folders_are_not_decoded(
    tmp_path, decoded
) -> None:
    def recaptioned(rows: Dataset) -> Dataset:
        return rows.remove_columns("captions").add_column("captions", [["a"]] * len(rows))

    folders = (built_folder() / "drawn-0" / "drawn", tmp_path / "set", tmp_path / "own")
    sets = [save(dataset([row(number)]), folder) for number, folder in enumerate(folders)]
    built, prepared = sets[:2]
    (tmp_path / "set" / "prepared.json").write_text('{"layout": 1}')
    mixture = concatenate_datasets([built, dataset([row(3)])])
    for rows, count in (
        (built, 0),
        (concatenate_datasets([built, prepared]), 0),
        (concatenate_datasets(sets), 3),
        (mixture, 2),  # rows in memory
        (recaptioned(mixture), 2),
        (recaptioned(built), 0),  # captions alone in memory
    ):
        decoded.clear()
        assert len(kept(rows, tmp_path)) == len(rows)
        assert len(decoded) == count


def test_files_beside_a_prepared_folder_are_decoded_each_time(tmp_path, decoded) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(1)["bytes"])
    saved = tmp_path / "set" / "train" / "data.arrow"
    saved.parent.mkdir(parents=True)
    rows = dataset([row(0), row(1, image={"bytes": None, "path": str(file)})])
    # Sets that are saved in the usual way would hold the file.
    with ArrowWriter(path=str(saved), features=FEATURES) as writer:
        writer.write_batch(rows.to_dict())
        writer.finalize()
    (tmp_path / "set" / "prepared.json").write_text('{"layout": 1}')
    rows = Dataset.from_file(str(saved))
    for run in (1, 2):
        filter_invalid_rows(rows, quarantine=tmp_path / "q.jsonl")
        assert len(decoded) == 2 * run


def test_second_pictures_are_looked_at_too(tmp_path) -> None:
    more = {"label": 1, "sentence_group": "g"}
    rows = [
        row(0, second_image=png(5), **more),
        row(1, second_image={"bytes": b"x", "path": "right.png"}, **more),
        row(2, second_image=None, **more),
    ]
    pairs = Dataset.from_list(rows, features=REASONING_FEATURES)
    assert kept(pairs, tmp_path) == ["id0"]
    first, second = (line["reason"] for line in read_lines(tmp_path / "q.jsonl"))
    assert first == "right.png: not an image in a known format (1 bytes)"
    assert second == "the row has no second_image"


def test_image_of_many_rows_is_decoded_once_while_its_bytes_are_the_same(
    tmp_path, decoded, monkeypatch
) -> None:
    file = tmp_path / "broken.jpg"
    file.write_bytes(b"no image")
    broken = {"bytes": None, "path": str(file)}
    images = [png(1), png(1), broken, broken, png(2), png(1)]
    rows = dataset([row(number, image=image) for number, image in enumerate(images)])
    assert kept(rows, tmp_path) == ["id0", "id1", "id4", "id5"]
    assert decoded == ["1.png", str(file), "2.png"]
    # Each row has a line of its own.
    assert [line["row"] for line in read_lines(tmp_path / "q.jsonl")] == [2, 3]
    monkeypatch.setattr(validation, "_REMEMBERED", 2)
    validator = ImageValidator(["image"])
    assert validator({"image": png(1) | {"path": "same.png"}}) == []
    other = {"image": {"bytes": b"other", "path": "same.png"}}
    assert validator(other) == ["same.png: not an image in a known format (5 bytes)"]
    decoded.clear()
    for shade in (1, 1, 2, 3, 1):
        assert validator({"image": png(shade)}) == []
    assert len(decoded) == 4  # the first image had been dropped by then
