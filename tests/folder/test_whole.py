from __future__ import annotations

from pathlib import Path

import pytest

from vlmo.folder import whole, write_file, write_folder


class CrashError(Exception):
    """Stands for the power cord: whatever the code does, it does no more."""


def test_folder_replaces_the_one_before_it(tmp_path) -> None:
    for text in ("old", "new"):
        with write_folder(tmp_path / "model") as aside:
            (aside / f"{text}.txt").write_text(text)
            (aside / "inner").mkdir()
            (aside / "inner" / "x.txt").write_text("x")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["inner", "new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_folder_that_fails_leaves_the_one_before_it(tmp_path) -> None:
    with write_folder(tmp_path / "model") as aside:
        (aside / "old.txt").write_text("old")
    with pytest.raises(CrashError), write_folder(tmp_path / "model") as aside:
        raise CrashError
    assert (tmp_path / "model" / "old.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    events = []
    real_replace = Path.replace
    monkeypatch.setattr(whole, "_flush_to_disk", lambda path: events.append(path.name))
    monkeypatch.setattr(Path, "replace", lambda path, to: (events.append(f"rename {to.name}"), real_replace(path, to)))
    with write_folder(tmp_path / "model") as aside:
        (aside / "a.txt").write_text("a")
    assert events == ["a.txt", "model.aside", "rename model", tmp_path.name]


def test_file_that_fails_leaves_the_one_before_it(tmp_path, monkeypatch) -> None:
    write_file(tmp_path / "a.txt", "old")

    def crashing(path: Path, to: Path) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crashing)
        with pytest.raises(CrashError):
            write_file(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    write_file(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_folder_comes_back_after_a_crash_between_the_two_renames(tmp_path) -> None:
    (tmp_path / "model.replaced").mkdir()
    (tmp_path / "model.replaced" / "old.txt").write_text("old")
    with pytest.raises(CrashError), write_folder(tmp_path / "model"):
        raise CrashError
    assert (tmp_path / "model" / "old.txt").read_text() == "old"
