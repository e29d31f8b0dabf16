"""The machinery that all preparers share, shown on toy sets."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from tests.data.prepare.toy_task_files import coco_record, jpeg, quarantined, write, write_coco
from tests.forkserver import Process, start

from vlmo.data import decoding
from vlmo.data.prepare import prepare
from vlmo.data.prepare.engine import prepare_set
from vlmo.data.prepare.parts import ROWS_A_PART, Absent, BadRow, Part, Record, Row, SetOnDisk, chunked, file_key
from vlmo.data.sources import open_source

SECONDS = 120
"""Longest wait for a process; it starts in a few seconds on an idle machine."""


class ToySet:
    """A set whose records are given."""

    def __init__(self, records: Iterable[Record], *, size: int = 2, **settings) -> None:
        self.records = records
        self.size = size
        self.settings = settings

    def open_set(self, root: Path) -> SetOnDisk:
        return SetOnDisk(parts=chunked(self.records, size=self.size), licence="CC0-1.0", **self.settings)


def toy_row(number: int, split: str = "train", **changes) -> Row:
    values = {"image": {"bytes": jpeg(number), "path": f"{number}.jpg"}, "captions": [f"c {number}"]}
    values |= {"image_id": f"toy/{number}", "source": "toy", "licence": "CC0-1.0"}
    return Row(split, values | changes)


def ids(out: Path, split: str = "train") -> list[str]:
    return open_source(str(out), split=split)["image_id"][:]


def content(out: Path) -> dict[str, bytes]:
    """Every file but those with the fingerprints that `datasets` makes of paths and times."""
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file.name != "state.json"]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def prepare_toy(records: Iterable[Record], tmp_path: Path, **settings):
    return prepare_set("toy", ToySet(records, **settings).open_set, root=tmp_path, out=tmp_path / "out", num_proc=1)


def test_splits_keep_their_order_whatever_parts_hold_them(tmp_path) -> None:
    splits = ["test", "train", "dev", "train", "validation", "train", "test"]
    summary = prepare_toy([toy_row(number, split) for number, split in enumerate(splits)], tmp_path)
    assert list(summary.splits) == ["train", "validation", "test", "dev"]
    assert ids(tmp_path / "out") == ["toy/1", "toy/3", "toy/5"]
    assert ids(tmp_path / "out", "test") == ["toy/0", "toy/6"]
    assert ids(tmp_path / "out", "dev") == ["toy/2"]
    assert set(DatasetDict.load_from_disk(str(tmp_path / "out"))) == set(summary.splits)


def test_nothing_is_lost_without_a_line(tmp_path) -> None:
    records = [
        toy_row(0),
        BadRow("train", "toy/1", "no such record", path="list.json"),
        toy_row(2, image=None),
        toy_row(3, image_id="toy/0"),
        Absent("train", "gone"),
        toy_row(4, captions=[]),
        toy_row(5, image={"bytes": jpeg(5)[:-30], "path": "5.jpg"}),
        toy_row(6, image_id=""),
        toy_row(7, captions=["", "c 7"]),
    ]
    summary = prepare_toy(records, tmp_path)
    assert ids(tmp_path / "out") == ["toy/0", "toy/7"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    # Rows are counted as they were read; what never was there is none.
    assert [line["row"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert lines[0] == {
        "kind": "row",
        "split": "train",
        "row": 1,
        "image_id": "toy/1",
        "path": "list.json",
        "source": "toy",
        "reason": "no such record",
    }
    assert [line["reason"] for line in lines[1:4]] == [
        "the row has no image",
        "image_id toy/0 repeats that of an earlier row",
        "the row has no caption",
    ]
    assert "5.jpg: cannot be decoded" in lines[4]["reason"]
    assert lines[6]["reason"] == "caption 1 is empty; removed, the row is kept"
    assert (summary.splits["train"].quarantined, summary.splits["train"].removed_captions) == (6, 1)
    assert "warning: 75.0% of train cannot be used; quarantine.jsonl says why" in summary.lines()
    assert summary.rows() == [("train", "2", "2", "6", "")]
    assert "note: train: 1 records left out: gone" in summary.lines()


def test_repeats_of_bad_rows_and_of_other_splits_are_kept(tmp_path) -> None:
    records = [toy_row(0, captions=[]), toy_row(0), toy_row(0, "test"), toy_row(1), toy_row(0), toy_row(2), toy_row(0)]
    summary = prepare_toy(records, tmp_path)
    assert ids(tmp_path / "out") == ["toy/0", "toy/1", "toy/2"]
    assert ids(tmp_path / "out", "test") == ["toy/0"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 3, 5]
    # Whoever tests on what was trained on should know.
    assert "warning: 1 rows of test are in train too" in summary.lines()
    assert summary.splits["train"].captions == 3
    # Rows that are different by their making are not compared.
    prepare_set("toy", ToySet([toy_row(0)] * 2, unique=None).open_set, root=tmp_path, out=tmp_path / "two")
    assert ids(tmp_path / "two") == ["toy/0", "toy/0"]


def test_prepared_folder_tells_what_it_holds(tmp_path) -> None:
    summary = prepare_toy(
        [toy_row(number) for number in range(5)],
        tmp_path,
        labels=["a", "b"],
        known_sizes={"train": 6, "test": 5},
        notes=("x",),
    )
    facts = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert facts == summary.to_json()
    assert (facts["name"], facts["layout"], facts["licence"]) == ("toy", 1, "CC0-1.0")
    assert (facts["sources"], facts["labels"], facts["notes"]) == ([str(tmp_path)], ["a", "b"], ["x"])
    assert (facts["splits"]["train"]["rows"], facts["splits"]["train"]["expected"]) == (5, 6)
    assert summary.lines() == [
        "warning: train has 5 rows; the whole set has 6",
        "warning: test has 0 rows; the whole set has 5",
        "note: x",
        "labels: 2",
        "licence: CC0-1.0",
        f"{tmp_path / 'out'} is ready",
    ]
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        open_source(str(tmp_path / "out"), split="test")


def test_rows_are_written_to_files_of_some_size(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vlmo.data.prepare.engine._FILE_SIZE", 4 * len(jpeg(0)))
    rows = [toy_row(number) for number in range(12)]
    prepare_toy(rows, tmp_path)
    files = sorted((tmp_path / "out" / "train").glob("*.arrow"))
    assert len(files) > 2
    names = [name for file in files for name in Dataset.from_file(str(file))["image_id"]]
    assert names == ids(tmp_path / "out") == [f"toy/{number}" for number in range(12)]


@pytest.mark.parametrize(
    ("records", "message"),
    [([toy_row(0, image=None)] * 2, "can be used; the first one: the row has no image"), ([], "there are no rows")],
)
def test_nothing_good_is_an_error_with_the_first_reason_and_leaves_nothing(records, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_toy(records, tmp_path)
    assert not list(tmp_path.iterdir())


def test_prepared_folder_is_left_as_it_is(tmp_path) -> None:
    prepare_toy([toy_row(0)], tmp_path)
    (tmp_path / "out.unfinished").mkdir()
    before = content(tmp_path / "out")
    again = prepare_toy([toy_row(0), toy_row(1)], tmp_path)
    assert again.already
    assert again.splits["train"].rows == 1
    assert "was prepared before" in again.lines()[-1]
    assert content(tmp_path / "out") == before
    assert not (tmp_path / "out.unfinished").exists()
    with pytest.raises(ValueError, match=r"holds toy from .*, not toy from .*elsewhere"):
        prepare_set("toy", ToySet([]).open_set, root=tmp_path / "elsewhere", out=tmp_path / "out", num_proc=1)


def test_second_run_into_one_folder_is_refused_until_the_first_has_ended(tmp_path) -> None:
    def meanwhile() -> Iterator[Row]:
        yield toy_row(0)
        with pytest.raises(ValueError, match=r"another process is preparing .*out; wait for it"):
            prepare_toy([toy_row(7)], tmp_path)
        yield toy_row(1)

    prepare_toy(meanwhile(), tmp_path, size=1)
    assert ids(tmp_path / "out") == ["toy/0", "toy/1"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_summary_that_cannot_be_read_is_one_line(text, tmp_path) -> None:
    write(tmp_path / "out" / "prepared.json", text)
    with pytest.raises(ValueError, match=r"prepared\.json .*choose another --out"):
        prepare_toy([toy_row(0)], tmp_path)


def test_chunks_and_files_have_keys_of_their_content(tmp_path) -> None:
    rows = [toy_row(number) for number in range(5)]
    found = list(chunked(rows, size=2))
    assert [len(list(part.rows())) for part in found] == [2, 2, 1]
    assert len(chunked(lambda: iter(rows), size=2)) == 3
    changed = [part.key for part in chunked(lambda: [*rows[:3], toy_row(9), rows[4]], size=2)]
    assert [old.key == new for old, new in zip(found, changed, strict=True)] == [True, False, True]
    file = write(tmp_path / "a", "one")
    key = file_key(file, 1)
    assert key == file_key(file, 1) != file_key(file, 2)
    file.write_text("longer")
    longer = file_key(file, 1)
    os.utime(file, (1, 1))
    assert len({key, longer, file_key(file, 1)}) == 3


def test_folder_with_other_things_is_never_replaced(tmp_path) -> None:
    mine = write(tmp_path / "out" / "thesis.txt", "years of work")
    with pytest.raises(ValueError, match="exists and is not empty; choose a new folder"):
        prepare_toy([toy_row(0)], tmp_path)
    assert mine.read_text() == "years of work"
    with pytest.raises(ValueError, match="holds --root"):
        prepare_set("toy", ToySet([toy_row(0)]).open_set, root=tmp_path / "root", out=tmp_path, num_proc=1)
    with pytest.raises(ValueError, match="num_proc 0 must be at least 1"):
        prepare_set("toy", ToySet([toy_row(0)]).open_set, root=tmp_path, out=tmp_path / "new", num_proc=0)


class InterruptedRunError(Exception):
    """Stands for whatever ends a run."""


def test_finished_parts_are_not_read_again(tmp_path) -> None:
    read: list[int] = []

    def part(number: int, *, fails: bool = False) -> Part:
        def rows() -> Iterator[Row]:
            read.append(number)
            yield toy_row(number)
            if fails:
                raise InterruptedRunError

        return Part(key=f"part {number}", rows=rows)

    def run(given: list[Part]) -> None:
        found = SetOnDisk(parts=given, licence="CC0-1.0")
        prepare_set("toy", lambda _: found, root=tmp_path, out=tmp_path / "out", num_proc=1)

    with pytest.raises(InterruptedRunError):
        run([part(0), part(1), part(2, fails=True)])
    assert not (tmp_path / "out").exists()
    run([part(0), part(7), part(2)])
    # The second part is another one now; the third was not finished.
    assert read == [0, 1, 2, 7, 2]
    assert ids(tmp_path / "out") == ["toy/0", "toy/7", "toy/2"]
    assert not (tmp_path / "out.unfinished").exists()


def test_parts_are_kept_until_the_folder_is_whole(tmp_path, monkeypatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("vlmo.data.prepare.engine.DatasetDict.save_to_disk", full_disk)
        with pytest.raises(OSError, match="no space"):
            prepare_toy([toy_row(number) for number in range(4)], tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.unfinished"]
    with monkeypatch.context() as patched:
        patched.setattr("vlmo.data.prepare.engine.ImageValidator", full_disk)
        prepare_toy([toy_row(number) for number in range(4)], tmp_path)
    assert ids(tmp_path / "out") == [f"toy/{number}" for number in range(4)]


def prepare_until(path: str, **arguments) -> None:
    """Prepare COCO; whoever reads the image at `path` waits for ever."""
    read_path = decoding.read_path
    decoding.read_path = lambda asked: threading.Event().wait() if asked == path else read_path(asked)
    prepare("coco", **arguments)


def kill_after_a_part(process: Process, unfinished: Path) -> list[int]:
    """Numbers of the processes that it had started."""
    end = time.monotonic() + SECONDS
    while not list(unfinished.glob("0*.arrow")):
        assert process.is_alive(), "it ended by itself"
        assert time.monotonic() < end, "no part was finished"
        time.sleep(0.05)
    started = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait(SECONDS) == -signal.SIGKILL
    return started


def descendants(number: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
    return children + [further for child in children for further in descendants(child)]


@pytest.mark.slow
def test_preparation_goes_on_after_kill_9(tmp_path) -> None:
    records = [coco_record(number, "train") for number in range(3 * ROWS_A_PART)]
    root = write_coco(tmp_path / "coco", records)
    waits = root / "train2014" / records[2 * ROWS_A_PART + 5]["filename"]
    process = start(prepare_until, str(waits), root=root, out=tmp_path / "out", num_proc=2)
    started = kill_after_a_part(process, tmp_path / "out.unfinished")
    assert not (tmp_path / "out").exists()
    assert_all_end(started)
    kept = {int(folder.name.split("-")[0]) for folder in (tmp_path / "out.unfinished").glob("0*.arrow")}
    # Pictures of finished parts are not looked at again: nobody notices that they are gone.
    for record in [record for number, record in enumerate(records) if number // ROWS_A_PART in kept]:
        (root / "train2014" / record["filename"]).unlink()
    assert kept
    assert prepare("coco", root=root, out=tmp_path / "out").splits["train"].rows == len(records)
    assert ids(tmp_path / "out") == [f"coco/{record['cocoid']}" for record in records]
    assert not (tmp_path / "out.unfinished").exists()


def assert_all_end(processes: list[int]) -> None:
    """Those who were started end with the one that started them, although nobody told them to."""
    assert len(processes) >= 2
    end = time.monotonic() + SECONDS
    while alive := [number for number in processes if is_running(number)]:
        assert time.monotonic() < end, f"{alive} are still there"
        time.sleep(0.05)


def is_running(number: int) -> bool:
    try:
        # The letter behind the name in brackets; Z is one that has ended and that nobody has asked about.
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path) -> None:
    records = [coco_record(number, ("train", "val", "test")[number % 3]) for number in range(2 * ROWS_A_PART + 10)]
    records[7] |= {"cocoid": 1}
    root = write_coco(tmp_path / "coco", records)
    (root / "train2014" / records[0]["filename"]).write_bytes(b"")
    one = prepare("coco", root=root, out=tmp_path / "one")
    two = prepare("coco", root=root, out=tmp_path / "two", num_proc=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert one.rows() == two.rows()
    assert set(quarantined(tmp_path / "two")) == {"coco/0", "coco/1"}
