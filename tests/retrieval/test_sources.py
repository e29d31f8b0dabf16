import os
import time
from pathlib import Path

import fsspec
import pytest
from tests.toy_shards import write_parquet, write_tars

from vlmo.retrieval import sources
from vlmo.retrieval.sources import as_origin, find, was_deleted


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.name.encode())
    return path


def below(origin: Path | str) -> list[tuple[str, str]]:
    origin = as_origin(str(origin))
    return [(Path(found.path).name, found.kind) for found in find(origin)]


def test_folder_gives_images_and_shards_in_the_order_of_names(tmp_path):
    for name in ("b.JPG", "a/c.webp", "a/.hidden.png", ".git/x.png", "notes.txt", "z.gif"):
        touch(tmp_path / name)
    write_tars(tmp_path / "t", [1])
    write_parquet(tmp_path / "t" / "00000.parquet", ["x"])  # about the tar
    write_parquet(tmp_path / "t" / "00001.parquet", ["x"])
    names = [("c.webp", "file"), ("b.JPG", "file"), ("00000.tar", "shard")]
    assert below(tmp_path) == [*names, ("00001.parquet", "shard"), ("z.gif", "file")]


def test_patterns_name_files_and_folders(tmp_path):
    for name in ("one/1.png", "two/2.png", "three/3.png", "odd[1].png"):
        touch(tmp_path / name)
    assert below(f"{tmp_path}/t*") == [("3.png", "file"), ("2.png", "file")]
    assert below(f"{tmp_path}/{{one,two}}/*.png") == [("1.png", "file"), ("2.png", "file")]
    assert below(tmp_path / "odd[1].png") == [("odd[1].png", "file")]  # a name, not a pattern
    with pytest.raises(ValueError, match="matches nothing"):
        below(f"{tmp_path}/four*")


def test_pattern_passes_over_what_is_nothing_of_ours(tmp_path):
    names = "a.png .hidden.png captions.csv .git/x.png b/c.png 0.tar 0.parquet R"
    for name in names.split():
        touch(tmp_path / name)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert below(f"{tmp_path}/*") == [("0.tar", "shard"), ("a.png", "file"), ("c.png", "file")]
    assert below(f"{tmp_path}/*.png") == [("a.png", "file")]
    assert below(f"{tmp_path}/R*") == []
    assert below(tmp_path / ".hidden.png") == [(".hidden.png", "file")]  # it is named outright


@pytest.mark.parametrize("origin", ["{}", "{}/*", "file://{}/sub", "memory://photos"])
def test_images_of_other_formats_are_counted(origin, tmp_path, caplog):
    names = ("1.png", "sub/2.jxl", "sub/3.JXL", "sub/4.jpg", "sub/5.txt")
    if origin.startswith("memory"):
        fsspec.filesystem("memory").pipe({f"/photos/{name}": b"x" for name in names})
    for name in names:
        touch(tmp_path / name)
    assert ("4.jpg", "file") in (found := below(origin.format(tmp_path)))
    assert {kind for _, kind in found} == {"file"}
    (line,) = caplog.messages
    assert "2 .jxl files skipped: this format is not read" in line
    with pytest.raises(ValueError, match=r"2\.jxl is no image by its name"):
        below(tmp_path / "sub" / "2.jxl")


def link(base: Path, links: dict[str, str]) -> None:
    for name, target in links.items():
        (base / name).symlink_to(base / target)


def test_links_between_folders_lead_to_each_file_once(tmp_path):
    names = [f"folder{number}" for number in range(7)]
    for name in names:
        touch(tmp_path / name / f"{name}.png")
        link(tmp_path, {f"{name}/to-{other}": other for other in names})
    for origin in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/**/*.png"):
        assert sorted(below(origin)) == [(f"{name}.png", "file") for name in names]


def test_real_path_of_a_folder_wins_over_links_to_it(tmp_path):
    for name in ("z/sub/1.png", "z/.hidden/2.png"):
        touch(tmp_path / name)
    # The hidden one has no path but this.
    link(tmp_path, {"all": "z", "some": "z/sub", "z/found": "z/.hidden"})
    expected = [str(tmp_path / name) for name in ("z/found/2.png", "z/sub/1.png")]
    assert [found.path for found in find(str(tmp_path))] == expected
    found = [(found.path, found.root) for found in find(f"{tmp_path}/*")]
    assert found == [(path, str(tmp_path / "z")) for path in expected]


def test_stamp_is_the_same_in_another_time_zone(tmp_path, monkeypatch):
    touch(tmp_path / "1.jpg")
    (found,), stamps = find(str(tmp_path)), set()
    for zone in ("UTC", "XYZ-9"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        stamps.add(sources.Reader().stamp(found))
    monkeypatch.undo()
    time.tzset()
    assert len(stamps) == 1


def test_only_a_single_file_counts_as_deleted(tmp_path):
    touch(tmp_path / "full" / "a.png")
    (tmp_path / "empty").mkdir()
    assert was_deleted(f"{tmp_path}/full/b.jpg")
    assert was_deleted(f"{tmp_path}/full/.b.tar")
    for origin in ("full/a.png", "full/folder", "full/*.png", "empty/b.jpg", "gone/b.jpg"):
        assert not was_deleted(f"{tmp_path}/{origin}")
    assert not was_deleted("s3://bucket/b.jpg")


def test_object_store_is_listed_like_a_disk(tmp_path):
    files = fsspec.filesystem("memory")
    base = f"/{tmp_path.name}"
    for name in ("b.png", "a/c.jpg", "a/notes.txt", "a/x.tar", "a/x.parquet", "a/.h.png"):
        files.pipe(f"{base}/{name}", name.encode())
    found = list(find(f"memory:/{base}"))
    kinds = {each.path.rpartition(base)[2]: each.kind for each in found}
    assert kinds == {"/a/c.jpg": "file", "/a/x.tar": "shard", "/b.png": "file"}
    assert all(each.path.startswith("memory://") and each.size > 0 for each in found)
    assert [each.path for each in find(f"memory:/{base}/a/*.jpg")] == [found[0].path]
    with pytest.raises(ValueError, match="there is nothing at"):
        list(find("memory://nowhere"))


def test_files_of_an_object_store_are_read_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 1000)
    files = fsspec.filesystem("memory")
    for name, size in (("small.png", 1000), ("large.png", 1001)):
        files.pipe(f"/{tmp_path.name}/{name}", b"x" * size)
    assert sources.read_uri(f"memory://{tmp_path.name}/small.png") == b"x" * 1000
    with pytest.raises(OSError, match="more than the 1,000 bytes that are read"):
        sources.read_uri(f"memory://{tmp_path.name}/large.png")
    with pytest.raises(FileNotFoundError):
        sources.read_uri(f"memory://{tmp_path.name}/none.png")


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ("nowhere", "there is nothing at"),
        ("file.txt", "is no image by its name"),
        ("ftpx://a/b", "cannot be listed"),
        ("pipe.png", "no regular file"),
        ("pipe.tar", "no regular file"),
    ],
)
def test_what_holds_no_images_is_refused(origin, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "file.txt")
    if origin.startswith("pipe"):
        os.mkfifo(origin)
    with pytest.raises((OSError, ValueError), match=words):
        list(find(as_origin(origin)))
