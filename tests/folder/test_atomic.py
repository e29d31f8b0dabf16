from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

from vlmo.folder import atomic
from vlmo.folder.atomic import write_file, write_folder


@contextlib.contextmanager
def full_disk(room: int = 100) -> Iterator[None]:
    """No file grows beyond `room` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class CrashError(Exception):
    """Stands for the power cord: whatever the code does, it does no more."""


def test_folder_replaces_the_one_before_it_unless_it_fails(tmp_path) -> None:
    for text in ("old", "new"):
        with write_folder(tmp_path / "model") as aside:
            (aside / f"{text}.txt").write_text(text)
            (aside / "inner").mkdir()
            (aside / "inner" / "x.txt").write_text("x")
    with pytest.raises(CrashError), write_folder(tmp_path / "model") as aside:
        raise CrashError
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["inner", "new.txt"]
    assert (tmp_path / "model" / "new.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def save_by_torch(tensors: dict[str, torch.Tensor], file: Path) -> None:
    with file.open("wb") as stream:
        torch.save(tensors, stream)


def save_plain(_: object, file: Path) -> None:
    file.write_bytes(bytes(200))


@pytest.mark.parametrize("save", [save_file, save_by_torch, save_plain])
def test_what_a_full_disk_refuses_is_an_error_that_names_the_folder(save, tmp_path) -> None:
    big = pytest.raises(OSError, match="File too large")
    with full_disk(), big as raised, write_folder(tmp_path / "model") as aside:
        save({"a": torch.zeros(100)}, aside / "model.safetensors")
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path / "model"))
    assert [*tmp_path.iterdir()] == []


def test_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    events = []
    replace = Path.replace

    def noted(path, to):
        events.append(f"rename {to.name}")
        replace(path, to)

    monkeypatch.setattr(Path, "replace", noted)
    monkeypatch.setattr(atomic, "_flush_to_disk", lambda path: events.append(path.name))
    with write_folder(tmp_path / "model") as aside:
        (aside / "a.txt").write_text("a")
    assert events == ["a.txt", ".model.vlmo-aside", "rename model", tmp_path.name]


def test_file_that_fails_leaves_the_one_before_it(tmp_path, monkeypatch) -> None:
    write_file(tmp_path / "a.txt", "old")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", Mock(side_effect=CrashError))
        with pytest.raises(CrashError):
            write_file(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    write_file(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_link_in_the_place_of_the_new_file_is_not_followed(tmp_path) -> None:
    (tmp_path / "other.txt").write_text("of others")
    (tmp_path / "a.txt.aside").symlink_to(tmp_path / "other.txt")
    write_file(tmp_path / "a.txt", "new")
    assert (tmp_path / "other.txt").read_text() == "of others"
    assert not (tmp_path / "a.txt").is_symlink()


def test_folder_comes_back_after_a_crash_between_the_two_renames(tmp_path) -> None:
    (tmp_path / ".model.vlmo-replaced").mkdir()
    (tmp_path / ".model.vlmo-replaced" / "old.txt").write_text("old")
    with pytest.raises(CrashError), write_folder(tmp_path / "model"):
        raise CrashError
    assert (tmp_path / "model" / "old.txt").read_text() == "old"


def test_link_to_a_folder_stays_a_link(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    for name, target in (("link", "real"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
        with write_folder(tmp_path / name) as aside:
            (aside / "a.txt").touch()
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / target / "a.txt").exists()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"dangling", "link", "nowhere", "real"}


def test_failure_at_the_last_rename_brings_the_folder_back(tmp_path, monkeypatch) -> None:
    with write_folder(tmp_path / "model") as aside:
        (aside / "old.txt").touch()
    real_replace = Path.replace

    def fails(path, to):
        if path.name.endswith("aside"):
            raise OSError("busy")
        return real_replace(path, to)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="busy"), write_folder(tmp_path / "model") as aside:
        (aside / "new.txt").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["old.txt"]


def test_write_file_leaves_nothing_beside_a_place_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_file(tmp_path / "taken", "text")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]
