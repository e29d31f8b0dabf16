from unittest.mock import Mock

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tests.retrieval.toy_index import nested_folders
from tests.toy_shards import tar_bytes, write_parquet, write_tars

from vlmo.data.listing import list_shards, walk
from vlmo.data.prepare import labels_of
from vlmo.data.rows import read_lines
from vlmo.data.stream.loader import open_sources
from vlmo.retrieval.sources import find


def test_patterns_name_shards(tmp_path, monkeypatch):
    paths = [str(path) for path in write_tars(tmp_path / "a", [1, 1, 1])]
    parquet = str(write_parquet(tmp_path / "b" / "deep" / "0.parquet", ["k"]))
    write_parquet(tmp_path / "a" / "00000.parquet", ["k"])  # img2dataset's, beside a tar
    assert list(list_shards(f"{tmp_path}/a/*.tar")) == paths
    assert list(list_shards(f"{tmp_path}/a")) == paths
    assert list(list_shards(f"{tmp_path}/b")) == [parquet]
    assert list(list_shards(f"file://{tmp_path}/a/0000[02].tar")) == [paths[0], paths[2]]
    assert list(list_shards(f"{tmp_path}/{{a/00001.tar,b/**/*.parquet}}")) == [paths[1], parquet]
    monkeypatch.chdir(tmp_path)
    missing = str(tmp_path / "a" / "00003.tar")
    assert list(list_shards("a/{00001..00003}.tar")) == [*paths[1:], missing]


def test_patterns_of_other_file_systems():
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/patterns/{number}.tar", tar_bytes([str(number)]))
    urls = tuple(f"memory:///patterns/{number}.tar" for number in range(3))
    for pattern in ("memory://patterns/*.tar", "memory://patterns/{0..2}.tar", "memory://patterns"):
        assert list_shards(pattern) == urls
    # The hub is asked nothing.
    hub = tuple(f"hf://datasets/owner/name/data/{number}.parquet" for number in range(2))
    assert list_shards("hf://datasets/owner/name/data/{0..1}.parquet") == hub


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{tmp}/*.tar", "matches nothing"),
        ("{tmp}/none", "matches nothing"),
        ("{tmp}/*.txt", "shards end with .tar or .parquet"),
        ("{tmp}/{{0..1", "braces do not match"),
        ("nowhere://a/*.tar", "cannot be listed"),
        ("reference://a/*.tar", "cannot be listed"),
        ("github://a/*.tar", "cannot be listed"),
    ],
)
def test_patterns_that_name_no_shards_are_refused(tmp_path, pattern, message):
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=message):
        list_shards(pattern.format(tmp=tmp_path))


def test_errors_of_a_store_are_named(monkeypatch):
    class StoreError(Exception):
        pass

    for name in ("glob", "find"):
        monkeypatch.setattr(MemoryFileSystem, name, Mock(side_effect=StoreError("no credentials")))
    for listed in (list_shards, lambda url: list(find(url))):
        with pytest.raises(ValueError, match="memory://patterns cannot be listed: no credentials"):
            listed("memory://patterns")
    monkeypatch.setattr(fsspec.core, "url_to_fs", Mock(side_effect=StoreError("no region")))
    with pytest.raises(ValueError, match="memory://patterns cannot be listed: no region"):
        list_shards("memory://patterns")


def test_the_list_of_shards_is_kept_beside_the_run(tmp_path):
    paths = write_tars(tmp_path / "shards", [1, 1])
    pattern, run = f"{tmp_path}/shards/*.tar", tmp_path / "run"
    first = open_sources([pattern], weights=(), folder=run)
    paths[0].unlink()
    write_tars(tmp_path / "shards", [1], name="new")
    assert open_sources([pattern], weights=(), folder=run) == first
    assert first[0].shards == tuple(map(str, paths))
    assert open_sources([pattern], weights=[2.5], folder=run)[0].weight == 2.5
    # A start with another pattern came to nothing.
    (only,) = open_sources([first[0].shards[0]], weights=(), folder=run)
    assert only.shards == first[0].shards[:1]
    with pytest.raises(ValueError, match="named twice"):
        open_sources([pattern, f"{tmp_path}/shards"], weights=(), folder=tmp_path / "other")


@pytest.mark.parametrize("name", ["d", "d" * 200])  # whose path the system takes, and does not take
def test_folders_nested_too_deep_are_lost_and_nothing_else_is(name, tmp_path):
    (tmp_path / "z.png").touch()
    lost = {}
    with nested_folders(tmp_path, name=name, at=(0, 5, 1100)):
        files = [str(file.relative_to(tmp_path)) for file in walk(tmp_path, lost=lost)]
        with pytest.raises(OSError, match=r"nested more than 100 deep|File name too long"):
            list(walk(tmp_path))
    assert files == ["/".join([*[name] * 6, "x.png"]), f"{name}/x.png", "z.png"]
    (reason,) = lost.values()
    assert "the folder cannot be listed" in reason


@pytest.mark.parametrize("content", [b"{", b"[]", b"7", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("name", ["shards.json", "quarantine.jsonl", "prepared.json"])
def test_damaged_file_of_a_run_or_set_is_named(tmp_path, name, content):
    read = {
        "shards.json": lambda: open_sources([], weights=(), folder=tmp_path),
        "quarantine.jsonl": lambda: read_lines(tmp_path / name),
        "prepared.json": lambda: labels_of(tmp_path),
    }
    (tmp_path / name).write_bytes(content + b"\n")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read[name]()


def test_half_a_line_that_a_kill_left_in_the_quarantine_is_removed(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    file.write_text('{"kind": "row"}\n{"ki')
    assert read_lines(file) == [{"kind": "row"}]
    assert file.read_text() == '{"kind": "row"}\n'
