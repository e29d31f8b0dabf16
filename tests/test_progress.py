from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from vlmo import progress
from vlmo.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def log(**terminal) -> Console:
    """What stderr is when it goes into a file, or on a terminal."""
    return Console(file=io.StringIO(), **({"force_terminal": False, "width": 40} | terminal))


def said(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def test_log_gets_a_line_every_ten_seconds(clock):
    console = log()
    with Progress(console, in_bytes=True) as bar:
        bar.update("indexing", 0, 100_000)
        for second in range(1, 26):
            clock[0] = 100.0 + second
            bar.update("indexing", 1000 * second, 100_000, note=f"{second} images")
    assert said(console) == [
        "indexing: 10.0 kB of 100.0 kB, 10 images, 0:01:30 left",
        "indexing: 20.0 kB of 100.0 kB, 20 images, 0:01:20 left",
    ]


def test_time_left_is_by_the_speed_of_late(clock):
    """A run that goes on with an earlier one passes over what is unchanged in no time."""
    console = log()
    with Progress(console) as bar:
        for done in (0, 50_000, *range(51_000, 57_000, 1000)):
            bar.update("rows", done, 100_000)
            clock[0] += 10
    assert said(console)[-1] == "rows: 56000 of 100000, 0:07:20 left"


def test_terminal_has_a_bar_for_each_title_and_cuts_notes(clock):
    wide, narrow = (log(force_terminal=True, width=width, color_system=None) for width in (100, 80))
    with Progress(wide) as bar:
        bar.update("images", 4, 9)
        clock[0] += 20
        bar.update("texts", 5, 7, note="loss 0.25")
    shown = wide.file.getvalue()
    assert all(part in shown for part in ("images", "4/9", "texts", "5/7", "loss 0.25", "━"))
    assert "left" not in shown
    with Progress(narrow) as bar:
        note = "0:09:30 to the end, loss 2.303 itc 1.056 mlm 0.6818"
        for done in range(3):
            bar.update("shapes-stage3", 100 * done, 1100, note=note)
            clock[0] += 20
        bar._bars.refresh()
    assert re.search(r" 200/1100 0:09:30 to the end[^\r]*… \d:\d\d:\d\d", narrow.file.getvalue())


def test_amount_that_is_not_known_is_counted_and_no_console_hears_nothing(clock, capfd):
    console = log()
    for place in (console, None):
        with Progress(place, line_every_s=0) as bar:
            bar.update("listing", 20, None)
    assert said(console) == ["listing: 20"]
    assert capfd.readouterr() == ("", "")
