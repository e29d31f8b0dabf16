"""The machinery that all preparers share, shown on toy sets."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
from datasets import DatasetDict
from tests.data.prepare.toy_task_files import coco_record, jpeg, quarantined, write, write_coco
from tests.forkserver import Process, start

from vlmo.data import decoding
from vlmo.data.prepare import prepare
from vlmo.data.prepare.engine import Summary, prepare_set
from vlmo.data.prepare.preparer import BadRow, Record, Row, SetOnDisk, stamped
from vlmo.data.sources import open_source

SECONDS = 120
"""Longest wait for a process; it starts in a few seconds on an idle machine."""
CHUNK = SetOnDisk(list, "").chunk


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


def prepare_toy(records: Iterable[Record], tmp_path: Path, *, out: str = "out", **settings) -> Summary:
    """Prepare a set whose records are given."""
    found = SetOnDisk(partial(list, records), "CC0-1.0", **{"chunk": 2, **settings})
    return prepare_set("toy", lambda _: found, root=tmp_path, out=tmp_path / out)


def test_splits_keep_their_order_whatever_chunks_hold_them(tmp_path) -> None:
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
        toy_row(4, captions=[]),
        toy_row(5, image={"bytes": jpeg(5)[:-30], "path": "5.jpg"}),
        toy_row(6, image_id=""),
        toy_row(7, captions=["", "c 7"]),
    ]
    summary = prepare_toy(records, tmp_path)
    assert ids(tmp_path / "out") == ["toy/0", "toy/7"]
    assert open_source(str(tmp_path / "out"))["captions"][1] == ["c 7"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    facts = {"split": "train", "source": "toy"}
    bad = {"image_id": "toy/1", "path": "list.json", "reason": "no such record"}
    assert lines[0] == {"kind": "row", **facts, **bad}
    assert "5.jpg: cannot be decoded" in lines.pop(3)["reason"]
    assert [line["reason"] for line in lines[1:]] == [
        "the row has no image",
        "the row has no caption",
        "image_id is empty",
        "1 empty captions removed, the row is kept",
        "image_id toy/0 repeats that of an earlier row",
    ]
    assert summary.splits["train"] == {"rows": 2, "captions": 2, "quarantined": 6, "known": 0}
    assert "warning: 75.0% of train cannot be used; quarantine.jsonl says why" in summary.lines()


def test_repeats_of_bad_rows_and_of_other_splits_are_kept(tmp_path) -> None:
    records = [toy_row(0, captions=[]), toy_row(0), toy_row(0, "test"), toy_row(1), toy_row(0), toy_row(2), toy_row(0)]
    summary = prepare_toy(records, tmp_path)
    assert ids(tmp_path / "out") == ["toy/0", "toy/1", "toy/2"]
    assert ids(tmp_path / "out", "test") == ["toy/0"]
    assert (summary.splits["train"]["captions"], summary.splits["train"]["quarantined"]) == (3, 3)
    # Rows that are different by their making are not compared.
    prepare_toy([toy_row(0)] * 2, tmp_path, out="two", unique=None)
    assert ids(tmp_path / "two") == ["toy/0", "toy/0"]


def test_prepared_folder_says_what_it_holds(tmp_path) -> None:
    rows, sizes = [toy_row(number) for number in range(5)], {"train": 6, "test": 5}
    summary = prepare_toy(rows, tmp_path, labels=["a", "b"], known_sizes=sizes, notes=("x",))
    assert json.loads((tmp_path / "out" / "prepared.json").read_text()) == {
        "name": "toy",
        "source": str(tmp_path),
        "licence": "CC0-1.0",
        "splits": {
            "train": {"rows": 5, "captions": 5, "quarantined": 0, "known": 6},
            "test": {"rows": 0, "captions": 0, "quarantined": 0, "known": 5},
        },
        "labels": ["a", "b"],
        "notes": ["x"],
        "layout": 2,
    }
    assert summary.lines() == [
        "labels: 2",
        "warning: train has 5 rows; the whole set has 6",
        "warning: test has 0 rows; the whole set has 5",
        "note: x",
        "licence: CC0-1.0",
    ]
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        open_source(str(tmp_path / "out"), split="test")


@pytest.mark.parametrize(
    ("records", "message"),
    [([toy_row(0, image=None)] * 2, "can be used; the first one: the row has no image"), ([], "there are no rows")],
)
def test_nothing_good_is_an_error_with_the_first_reason_and_leaves_nothing(records, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_toy(records, tmp_path)
    assert not list(tmp_path.iterdir())


def test_prepared_folder_is_left_as_it_is(tmp_path) -> None:
    first = prepare_toy([toy_row(0)], tmp_path)
    (tmp_path / "out.unfinished").mkdir()
    before = content(tmp_path / "out")
    assert prepare_toy([toy_row(0), toy_row(1)], tmp_path) == first
    assert content(tmp_path / "out") == before
    assert not (tmp_path / "out.unfinished").exists()
    with pytest.raises(ValueError, match=r"holds toy from "):
        prepare_set("toy", lambda _: None, root=tmp_path / "elsewhere", out=tmp_path / "out")


def test_second_run_into_one_folder_is_refused_until_the_first_has_ended(tmp_path) -> None:
    def read(chunk: list[Row]) -> Iterator[Row]:
        with pytest.raises(ValueError, match=r"another process is preparing .*out; wait for it"):
            prepare_toy([toy_row(7)], tmp_path)
        yield from chunk

    prepare_toy([toy_row(0), toy_row(1)], tmp_path, read=read)
    assert ids(tmp_path / "out") == ["toy/0", "toy/1"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_summary_that_cannot_be_read_is_one_line(text, tmp_path) -> None:
    write(tmp_path / "out" / "prepared.json", text)
    with pytest.raises(ValueError, match=r"prepared\.json .*choose another --out"):
        prepare_toy([toy_row(0)], tmp_path)


def test_folder_with_other_things_is_never_replaced(tmp_path) -> None:
    mine = write(tmp_path / "out" / "thesis.txt", "years of work")
    with pytest.raises(ValueError, match="exists and is not empty; choose a new folder"):
        prepare_toy([toy_row(0)], tmp_path)
    assert mine.read_text() == "years of work"
    for more, message in (({"out": tmp_path}, "holds --root"), ({"num_proc": 0}, "num_proc 0 must be at least 1")):
        with pytest.raises(ValueError, match=message):
            prepare_set("toy", lambda _: None, **{"root": tmp_path / "root", "out": tmp_path / "new", **more})


class InterruptedRunError(Exception):
    """Stands for whatever ends a run."""


def test_finished_chunks_are_not_read_again_unless_they_have_changed(tmp_path) -> None:
    seen: list[int] = []

    def read(chunk: list[int], *, fails: bool) -> Iterator[Row]:
        seen.extend(chunk)
        yield toy_row(chunk[0])
        if fails and chunk == [2]:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        prepare_toy([0, 1, 2], tmp_path, chunk=1, read=partial(read, fails=True))
    assert not (tmp_path / "out").exists()
    prepare_toy([0, 7, 2], tmp_path, chunk=1, read=partial(read, fails=False))
    assert seen == [0, 1, 2, 7, 2]
    assert ids(tmp_path / "out") == ["toy/0", "toy/7", "toy/2"]
    assert not (tmp_path / "out.unfinished").exists()
    file = write(tmp_path / "a", "one")
    first = stamped(file)
    file.write_text("longer")
    longer = stamped(file)
    os.utime(file, (1, 1))
    assert len({first, longer, stamped(file)}) == 3


def test_chunks_are_kept_until_the_folder_is_whole(tmp_path, monkeypatch) -> None:
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


def kill_after_a_chunk(process: Process, unfinished: Path) -> list[int]:
    """Numbers of the processes that it had started."""
    end = time.monotonic() + SECONDS
    while not list(unfinished.glob("0*.arrow")):
        assert process.is_alive(), "it ended by itself"
        assert time.monotonic() < end, "no chunk was finished"
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
    records = [coco_record(number, "train") for number in range(3 * CHUNK)]
    root = write_coco(tmp_path / "coco", records)
    waits = root / "train2014" / records[2 * CHUNK + 5]["filename"]
    process = start(prepare_until, str(waits), root=root, out=tmp_path / "out", num_proc=2)
    started = kill_after_a_chunk(process, tmp_path / "out.unfinished")
    assert not (tmp_path / "out").exists()
    assert_all_end(started)
    kept = {int(folder.name.split("-")[0]) for folder in (tmp_path / "out.unfinished").glob("0*.arrow")}
    # Images of finished chunks are not decoded again: nobody notices that they are gone.
    for record in [record for number, record in enumerate(records) if number // CHUNK in kept]:
        (root / "train2014" / record["filename"]).unlink()
    assert kept
    assert prepare("coco", root=root, out=tmp_path / "out").splits["train"]["rows"] == len(records)
    assert ids(tmp_path / "out") == [f"coco/{record['cocoid']}" for record in records]
    assert not (tmp_path / "out.unfinished").exists()


def assert_all_end(processes: list[int]) -> None:
    """Those who were started end with the one that started them, although no signal reached them."""
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
    records = [coco_record(number, ("train", "val", "test")[number % 3]) for number in range(2 * CHUNK + 10)]
    records[7] |= {"cocoid": 1}
    root = write_coco(tmp_path / "coco", records)
    (root / "train2014" / records[0]["filename"]).write_bytes(b"")
    one = prepare("coco", root=root, out=tmp_path / "one")
    assert one == prepare("coco", root=root, out=tmp_path / "two", num_proc=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert set(quarantined(tmp_path / "two")) == {"coco/0", "coco/1"}
