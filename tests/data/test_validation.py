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
    file = tmp_path / "deep" / "quarantine.jsonl"
    good = filter_invalid_rows(mixed(), quarantine=file, max_share=1.0)
    assert good["image_id"][:] == ["id0", "id2", "id4", "id10"]
    assert good["captions"][:] == [["shade 0"], ["shade 2"], ["fine"], ["shade 10"]]
    assert good.features == FEATURES
    found = {line["row"]: line for line in read_lines(file)}
    assert [line["row"] for line in found.values() if line["kind"] == "row"] == [
        1,
        3,
        5,
        6,
        7,
        8,
        9,
        11,
    ]
    assert found[1] == {
        "kind": "row",
        "row": 1,
        "image_id": "id1",
        "path": "empty.png",
        "source": "test",
        "reason": "empty.png: empty file (0 bytes)",
    }
    assert {number: line["reason"] for number, line in found.items() if number in range(3, 9)} == {
        3: "every caption is empty",
        4: "1 empty captions removed",
        5: "the row has no caption",
        6: "the row has no image",
        7: "image_id repeats that of row 0",
        8: "image_id is empty",
    }
    assert found[4]["kind"] == "caption"
    assert "cut.png: cannot be decoded" in found[9]["reason"]
    assert found[11]["reason"].endswith("(12 bytes); every caption is empty")


SCENE = {"bytes": b"scene:8|ffffff", "path": None}


@pytest.mark.parametrize(
    ("rows", "options", "kept"),
    [
        (
            [row(0, captions=[""]), row(1, image_id="id0"), row(2, image_id="id0")],
            {},
            [["shade 1"]],
        ),
        ([row(0), row(1, image_id="id0")], {"unique_ids": False}, [["shade 0"], ["shade 1"]]),
        (
            [row(0, image=None), row(1, image=None)],
            {"needs_image": False},
            [["shade 0"], ["shade 1"]],
        ),
        ([row(0, captions=[]), row(1, captions=[])], {"needs_caption": False}, [[], []]),
        (
            [row(0, image=SCENE), row(1, image=SCENE | {"bytes": b"scene:8|nocolor"})],
            {},
            [["shade 0"]],
        ),
    ],
)
def test_filter_keeps_what_a_task_can_use(tmp_path, rows, options, kept) -> None:
    good = filter_invalid_rows(
        dataset(rows), quarantine=tmp_path / "q.jsonl", max_share=1.0, **options
    )
    assert good["captions"][:] == kept


def test_filter_keeps_further_columns_and_takes_false_captions_along(tmp_path) -> None:
    texts = {
        "captions": ["a star", " ", "a ring"],
        "false_captions": ["no star", "nothing", "no ring"],
    }
    given = [
        row(0, **texts),
        row(1, image_id="id0", false_captions=["no"]),
        row(2, false_captions=["no shade"]),
    ]
    rows = Dataset.from_list(given, features=CONTRAST_FEATURES)
    rows = rows.add_column("answer", ["x", "y", "z"], feature=Value("string"))
    kept = filter_invalid_rows(rows, quarantine=tmp_path / "q.jsonl", max_share=0.5)
    assert kept.column_names == rows.column_names
    assert kept["answer"][:] == ["x", "z"]
    assert kept["captions"][:] == [["a star", "a ring"], ["shade 2"]]
    assert kept["false_captions"][:] == [["no star", "no ring"], ["no shade"]]


def test_quarantine_that_the_disk_refuses_is_named_and_goes_on_whole(tmp_path) -> None:
    file, bad = (
        tmp_path / "quarantine.jsonl",
        [Bad("row", "a.tar", number, str(number), "torn") for number in (0, 1)],
    )
    QuarantineFile(file).add(bad[:1])
    with (
        full_disk(file.stat().st_size + 10),
        pytest.raises(OSError, match=r"File too large.+quarantine\.jsonl"),
    ):
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
    wrong = dataset(
        [row(number, image={"bytes": b"x", "path": f"{number}.png"}) for number in range(5)]
    )
    file = tmp_path / "q.jsonl"
    for given, share, message in (
        (
            rows,
            0.01,
            rf"2 of 100 rows are invalid \(2\.00%\), more than the allowed 1\.00%.*{file}",
        ),
        (wrong, 0.01, r"0\.png: [^;]*\(and 4 more\)\. "),
        (rows.select([]), 1.0, "no rows"),
        (rows.select([0]), 1.0, "all 1 rows are invalid"),
        (rows.remove_columns("image_id"), 1.0, r"column\(s\) image_id missing"),
    ):
        with pytest.raises(ValueError, match=message):
            filter_invalid_rows(given, quarantine=file, max_share=share)
    assert len(filter_invalid_rows(rows, quarantine=file, max_share=0.02)) == 98
    assert len(read_lines(file)) == 2
    assert (
        filter_invalid_rows(rows.select([7]), quarantine=file).to_list()
        == rows.select([7]).to_list()
    )
    assert file.read_text() == ""


def share_the_look(file: str) -> dict[str, object]:
    seen, updates = list[int](), list[None]()
    validate, options = (
        ImageValidator.__call__,
        {"shared": True, "progress": lambda: updates.append(None)},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ImageValidator, "__call__", lambda self, row: seen.append(1) or validate(self, row)
        )
        good = filter_invalid_rows(mixed(), quarantine=Path(file), max_share=1.0, **options)
    return {"good": good.to_list(), "seen": len(seen), "updates": len(updates)}


def test_processes_share_the_look_and_keep_the_same_rows(tmp_path) -> None:
    one = filter_invalid_rows(mixed(), quarantine=tmp_path / "one.jsonl", max_share=1.0)
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
    monkeypatch.setattr(
        validation, "decode_image", lambda cell: paths.append(cell["path"]) or true(cell)
    )
    return paths


def kept(rows: Dataset, folder: Path) -> list[str]:
    return filter_invalid_rows(rows, quarantine=folder / "q.jsonl", max_share=1.0)["image_id"][:]


def save(rows: Dataset, folder: Path) -> Dataset:
    rows.save_to_disk(folder / "train")
    return Dataset.load_from_disk(str(folder / "train"))


def test_rows_of_a_saved_set_are_decoded_once_for_all_runs(tmp_path, decoded) -> None:
    mixed().save_to_disk(tmp_path / "set")
    found = []
    for run in ("first", "second"):
        rows = Dataset.load_from_disk(str(tmp_path / "set"))
        found.append(filter_invalid_rows(rows, quarantine=tmp_path / run, max_share=1.0).to_list())
        assert len(decoded) == 11  # of twelve rows, one of which has no image
    assert found[0] == found[1]
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text()
    (saved,) = (tmp_path / "set").glob("*.arrow")
    os.utime(saved, (1, 1))
    filter_invalid_rows(rows, quarantine=tmp_path / "third", max_share=1.0)
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
    built, prepared, own = (
        save(dataset([row(number)]), folder) for number, folder in enumerate(folders)
    )
    (tmp_path / "set" / "prepared.json").write_text('{"layout": 1}')
    mixture = concatenate_datasets([built, dataset([row(3)])])
    for rows, count in (
        (built, 0),
        (concatenate_datasets([built, prepared]), 0),
        (concatenate_datasets([built, prepared, own]), 3),
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
    with ArrowWriter(
        path=str(saved), features=FEATURES
    ) as writer:  # saved sets would hold the file
        writer.write_batch(
            dataset([row(0), row(1, image={"bytes": None, "path": str(file)})]).to_dict()
        )
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
    good = filter_invalid_rows(pairs, quarantine=tmp_path / "q.jsonl", max_share=1.0)
    assert good["image_id"][:] == ["id0"]
    reasons = [line["reason"] for line in read_lines(tmp_path / "q.jsonl")]
    assert reasons == [
        "right.png: not an image in a known format (1 bytes)",
        "the row has no second_image",
    ]


def test_image_of_many_rows_is_decoded_once_while_its_bytes_are_the_same(
    tmp_path, decoded, monkeypatch
) -> None:
    file = tmp_path / "broken.jpg"
    file.write_bytes(b"no image")
    broken = {"bytes": None, "path": str(file)}
    rows = [
        row(number, image=image)
        for number, image in enumerate([png(1), png(1), broken, broken, png(2), png(1)])
    ]
    good = filter_invalid_rows(dataset(rows), quarantine=tmp_path / "q.jsonl", max_share=0.5)
    assert good["image_id"][:] == ["id0", "id1", "id4", "id5"]
    assert decoded == ["1.png", str(file), "2.png"]
    assert [line["row"] for line in read_lines(tmp_path / "q.jsonl")] == [
        2,
        3,
    ]  # each row has a line of its own
    monkeypatch.setattr(validation, "_REMEMBERED", 2)
    validator = ImageValidator(["image"])
    assert validator({"image": png(1) | {"path": "same.png"}}) == []
    other = {"image": {"bytes": b"other", "path": "same.png"}}
    assert validator(other) == ["same.png: not an image in a known format (5 bytes)"]
    decoded.clear()
    for shade in (1, 1, 2, 3, 1):
        assert validator({"image": png(shade)}) == []
    assert len(decoded) == 4  # the first image had been dropped by then
