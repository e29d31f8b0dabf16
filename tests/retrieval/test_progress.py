from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from tests.retrieval.toy_index import NAMES, NUM, write_folder

from vlmo.retrieval import Encoder, IndexSettings, build_index, listing, progress
from vlmo.retrieval.progress import ByteProgress
from vlmo.retrieval.vectors import embed_pictures


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def log() -> Console:
    """What stderr is when it goes into a file."""
    return Console(file=io.StringIO(), force_terminal=False, width=60)


def said(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_log_gets_a_line_every_ten_seconds(clock):
    console = log()
    with ByteProgress(console, total=100_000) as bar:
        for second in range(1, 26):
            clock[0] = 100.0 + second
            bar.advance(1000, text=f"{second} pictures")
    assert said(console) == [
        "10 pictures, 10.0 kB of 100.0 kB, 0:01:30 left",
        "20 pictures, 20.0 kB of 100.0 kB, 0:01:20 left",
    ]


def test_time_left_is_by_the_speed_of_late(clock):
    """A run that goes on with an earlier one passes over what is unchanged in no time."""
    console = log()
    with ByteProgress(console, total=100_000) as bar:
        clock[0] += 10
        bar.advance(50_000, text="")
        for _ in range(6):
            clock[0] += 10
            bar.advance(1000, text="")
    assert said(console)[-1].endswith("0:07:20 left")


def test_terminal_has_a_bar_and_no_lines(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with ByteProgress(console, total=10) as bar:
        clock[0] += 20
        bar.advance(10, text="1 pictures")
    assert "left" not in "".join(said(console))
    assert "━" in "".join(said(console))


def test_index_and_vectors_tell_a_log(model, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(listing, "_TOLD_EVERY", 5)
    folder = write_folder(tmp_path / "pictures")
    size = sum((folder / name).stat().st_size for name in NAMES)
    console = log()
    build_index(model, [folder], out=tmp_path / "index", settings=IndexSettings(batch=8), console=console)
    lines = said(console)
    assert f"listing {folder}: 20" in lines
    whole = rf"{NUM} pictures, {size / 1000:.1f} kB of {size / 1000:.1f} kB.*"
    assert any(re.fullmatch(whole, line) for line in lines)
    assert "" not in lines
    console = log()
    embed_pictures(Encoder(model), [folder], out=tmp_path / "v.npy", batch=8, console=console)
    assert re.match(rf"\d+ pictures, {size / 1000:.1f} kB of", said(console)[-1])
