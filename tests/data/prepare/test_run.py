import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
from datasets import DatasetDict
from tests.data.prepare.toy_task_files import jpeg, quarantined, write
from tests.forkserver import start
from tests.killing import wait_until

from vlmo.data import decoding
from vlmo.data.prepare.engine import Summary, prepare_set
from vlmo.data.prepare.preparer import BadRow, Record, Row, SetOnDisk, stamped
from vlmo.data.rows import read_lines
from vlmo.data.sources import open_source

SECONDS = 120
"""Longest wait for a process; it starts in a few seconds on an idle machine."""
CHUNK = 40


def toy_row(number: int, split: str = "train", **changes) -> Row:
    image = {"bytes": jpeg(number), "path": f"{number}.jpg"}
    values = {"image": image, "captions": [f"c {number}"], "image_id": f"toy/{number}"}
    values |= {"source": "toy", "licence": "CC0-1.0"}
    return Row(split, values | changes)


def ids(out: Path, split: str = "train") -> list[str]:
    return open_source(str(out), split=split)["image_id"][:]


def content(out: Path) -> dict[str, bytes]:
    """Every file but those with the fingerprints that `datasets` makes of paths and times."""
    files = [file for file in out.rglob("*") if file.is_file() and file.name != "state.json"]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def prepare_toy(
    records: Iterable[Record], tmp_path: Path, *, out: str = "out", **settings
) -> Summary:
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
    lines = read_lines(tmp_path / "out" / "quarantine.jsonl")
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
    numbers = [toy_row(number) for number in (1, 0, 2, 0)]
    records = [toy_row(0, captions=[]), toy_row(0), toy_row(0, "test"), *numbers]
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
    [
        ([toy_row(0, image=None)], "can be used; the first one: the row has no image"),
        ([], "there are no rows"),
    ],
)
def test_nothing_good_is_an_error_with_the_first_reason(records, message, tmp_path) -> None:
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


@pytest.mark.parametrize(
    ("name", "text"), [("a.txt", "x"), *(("prepared.json", text) for text in ("{", "{}", "[]"))]
)
def test_folder_with_other_things_is_never_replaced(name, text, tmp_path) -> None:
    mine = write(tmp_path / "out" / name, text)
    with pytest.raises(ValueError, match=r"exists and is not empty|choose another --out"):
        prepare_toy([toy_row(0)], tmp_path)
    assert mine.read_text() == text


def test_impossible_options_are_refused(tmp_path) -> None:
    root = tmp_path / "root"
    with pytest.raises(ValueError, match="holds --root"):
        prepare_set("toy", lambda _: None, root=root, out=tmp_path)
    with pytest.raises(ValueError, match="num_proc 0 must be at least 1"):
        prepare_set("toy", lambda _: None, root=root, out=tmp_path / "new", num_proc=0)


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


def prepare_files(rows: list[Row], *, waits_for: str = "", **options) -> Summary:
    """Prepare rows; whoever reads the image at `waits_for` waits for ever."""
    read_path = decoding.read_path
    found = SetOnDisk(partial(list, rows), "CC0-1.0", chunk=CHUNK)

    def read(path: str) -> bytes:
        if path == waits_for:
            threading.Event().wait()
        return read_path(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "read_path", read)
        return prepare_set("toy", lambda _: found, **options)


def file_rows(root: Path, splits: list[str]) -> list[Row]:
    """Rows whose images are files, which are written."""
    paths = [write(root / f"{number}.jpg", jpeg(number)) for number in range(len(splits))]
    return [
        toy_row(number, split, image={"bytes": None, "path": str(path)})
        for number, (split, path) in enumerate(zip(splits, paths, strict=True))
    ]


def descendants(number: int) -> list[int]:
    children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    started = [*map(int, children)]
    for child in children:
        started += descendants(int(child))
    return started


@pytest.mark.slow
def test_preparation_goes_on_after_kill_9(tmp_path) -> None:
    rows = file_rows(tmp_path / "in", ["train"] * (3 * CHUNK))
    options = {"root": tmp_path / "in", "out": tmp_path / "out"}
    waits_for = rows[2 * CHUNK + 5].values["image"]["path"]
    process = start(prepare_files, rows, waits_for=waits_for, num_proc=2, **options)
    unfinished = tmp_path / "out.unfinished"

    def first():
        return any(unfinished.glob("0*.arrow"))

    wait_until(first, within_s=SECONDS, meanwhile=process.is_alive)
    started = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait(SECONDS) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    # Those whom it had started end with it, although no signal reached them.
    assert len(started) >= 2
    wait_until(lambda: not any(map(is_running, started)), within_s=SECONDS)
    kept = {int(folder.name.split("-")[0]) for folder in unfinished.glob("0*.arrow")}
    # Images of finished chunks are not decoded again: nobody notices that they are gone.
    for row in [row for number, row in enumerate(rows) if number // CHUNK in kept]:
        Path(row.values["image"]["path"]).unlink()
    assert kept
    assert prepare_files(rows, **options).splits["train"]["rows"] == len(rows)
    assert ids(tmp_path / "out") == [f"toy/{number}" for number in range(len(rows))]
    assert not unfinished.exists()


def is_running(number: int) -> bool:
    try:
        # The letter behind the name in brackets; Z is one that has ended and that nobody has asked about.
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path) -> None:
    rows = file_rows(tmp_path / "in", ["train", "validation", "test"] * CHUNK)
    rows[6].values["image_id"] = "toy/3"
    (tmp_path / "in" / "0.jpg").write_bytes(b"")
    one = prepare_files(rows, root=tmp_path / "in", out=tmp_path / "one")
    assert one == prepare_files(rows, root=tmp_path / "in", out=tmp_path / "two", num_proc=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert set(quarantined(tmp_path / "two")) == {"toy/0", "toy/3"}
