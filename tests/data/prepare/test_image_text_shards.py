import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.prepare.toy_task_files import jpeg, png, quarantined, write

from vlmo.data.decoding import decode_image
from vlmo.data.prepare import prepare
from vlmo.data.sources import open_source

URL = "https://example.org/a.jpg"


def members(key: str, shade: int, *, caption: str | None = None, without: str = "") -> dict[str, bytes]:
    """What img2dataset writes for one pair (output_format="webdataset")."""
    caption = f"Caption {shade}." if caption is None else caption
    facts = {"url": URL, "caption": caption, "key": key, "status": "success", "error_message": None, "width": 6}
    found = {
        f"{key}.jpg": jpeg(shade),
        f"{key}.txt": caption.encode(),
        f"{key}.json": json.dumps(facts, indent=4).encode(),
    }
    return {name: data for name, data in found.items() if not without or not name.endswith(without)}


def write_tar(file: Path, content: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def write_parquet(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def parquet_row(key: str, shade: int, **changes) -> dict:
    """What img2dataset writes for one pair (output_format="parquet"); without a picture where it could not get it."""
    row = {"key": key, "jpg": jpeg(shade), "txt": f"Caption {shade}.", "url": URL, "caption": f"Caption {shade}."}
    return row | {"status": "success", "error_message": None} | changes


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    root = tmp_path / "cc3m"
    write_tar(root / "00000.tar", {**members("000000000", 0), **members("000000001", 1)})
    write_tar(root / "00001.tar", members("000010000", 2))
    for shard in ("00000", "00001"):
        # What img2dataset leaves beside a tar.
        write_parquet(root / f"{shard}.parquet", [{"url": URL, "caption": "x", "key": "0", "status": "success"}])
        write(root / f"{shard}_stats.json", json.dumps({"count": 2, "successes": 2}))
    return root


@pytest.mark.parametrize("name", ["conceptual_captions", "sbu"])
def test_tars_give_a_row_a_pair(tars, tmp_path, name: str) -> None:
    summary = prepare(name, root=tars, out=tmp_path / "out")
    rows = open_source(str(tmp_path / "out"))
    assert rows["captions"][:] == [["Caption 0."], ["Caption 1."], ["Caption 2."]]
    assert rows["image_id"][:] == [f"{name}/00000000{number}" for number in (0, 1)] + [f"{name}/000010000"]
    assert [decode_image(row["image"]).getpixel((0, 0))[0] for row in rows] == [0, 1, 2]
    assert rows["source"][0] == name
    assert not [line for line in summary.lines() if line.startswith("warning")]
    assert not summary.notes


def test_tars_are_not_copied(tars, tmp_path) -> None:
    prepare("sbu", root=tars, out=tmp_path / "out")
    cell = open_source(str(tmp_path / "out"))[0]["image"]
    assert cell["bytes"] is None
    assert cell["path"].startswith(f"{tars}/00000.tar#bytes=")


def test_tars_in_folders_keep_their_keys_apart(tmp_path) -> None:
    for folder in ("part1", "part2"):
        write_tar(tmp_path / "laion" / folder / "00000.tar", members("000000000", 0))
    prepare("conceptual_captions", root=tmp_path / "laion", out=tmp_path / "out")
    names = ["conceptual_captions/part1/000000000", "conceptual_captions/part2/000000000"]
    assert open_source(str(tmp_path / "out"))["image_id"][:] == names


def test_tar_captions_come_from_json_where_there_is_no_txt(tmp_path) -> None:
    write_tar(tmp_path / "in" / "0.tar", {**members("a", 1, without=".txt"), **members("b", 2, without=".json")})
    prepare("sbu", root=tmp_path / "in", out=tmp_path / "out")
    assert open_source(str(tmp_path / "out"))["captions"][:] == [["Caption 1."], ["Caption 2."]]


def test_tar_takes_other_formats_and_capitals(tmp_path) -> None:
    content = {"a.PNG": png(7), "a.txt": b"a", "sub/b.x.webp": jpeg(8), "sub/b.txt": b"b"}
    write_tar(tmp_path / "in" / "0.tar", content)
    prepare("sbu", root=tmp_path / "in", out=tmp_path / "out")
    assert open_source(str(tmp_path / "out"))["image_id"][:] == ["sbu/a"]
    assert "sub/b has no image, only .x.webp, .txt" in quarantined(tmp_path / "out")["sbu/sub/b"]


def test_tar_bad_records_are_quarantined(tmp_path) -> None:
    content = {
        **members("good", 1),
        **members("bare", 2, without=".jpg"),
        **members("mute", 3, caption=" "),
        **members("cut", 4),
        **members("latin", 5),
        **members("list", 6, without=".txt"),
        **members("zero", 7),
    }
    content |= {"cut.jpg": jpeg(4)[:-30], "latin.txt": "é".encode("latin-1"), "list.json": b"[1]", "zero.jpg": b""}
    write_tar(tmp_path / "in" / "0.tar", content)
    write_tar(tmp_path / "in" / "1.tar", members("good", 8))
    summary = prepare("sbu", root=tmp_path / "in", out=tmp_path / "out")
    assert open_source(str(tmp_path / "out"))["captions"][:] == [["Caption 1."]]
    reasons = quarantined(tmp_path / "out")
    assert "bare has no image, only .txt, .json" in reasons["sbu/bare"]
    assert reasons["sbu/mute"] == "the row has no caption"
    assert "0.tar#bytes=" in reasons["sbu/cut"]
    assert "cannot be decoded" in reasons["sbu/cut"]
    assert "the caption of latin cannot be read" in reasons["sbu/latin"]
    assert "the caption of list cannot be read" in reasons["sbu/list"]
    assert "empty file" in reasons["sbu/zero"]
    assert reasons["sbu/good"] == "image_id sbu/good repeats that of an earlier row"
    assert summary.splits["train"].quarantined == len(reasons) == 7


@pytest.mark.parametrize("kept", [0, 100, 612, 3072, 3584, 3684, 4784, 6344, 7168])
def test_tar_that_is_cut_off_is_named_wherever_it_ends(tmp_path, kept: int) -> None:
    whole = {**members("a", 1), **members("b", 2)}
    file = write_tar(tmp_path / "in" / "0.tar", whole)
    write_tar(tmp_path / "in" / "1.tar", members("c", 3))
    content = file.read_bytes()
    # Six members, each of a header and its data in blocks of 512 bytes, and zeros.
    assert sum(512 + -(-len(data) // 512) * 512 for data in whole.values()) == 7168
    file.write_bytes(content[:kept])
    prepare("sbu", root=tmp_path / "in", out=tmp_path / "out")
    rows = open_source(str(tmp_path / "out"))["image_id"][:]
    assert rows[-1] == "sbu/c"
    assert quarantined(tmp_path / "out")["sbu/0.tar"].startswith(f"{file}: it cannot be read")
    assert ("sbu/a" in rows) == (kept >= 3072)
    # The headers of its last member are not needed: the caption is in the one before.
    assert ("sbu/b" in rows) == (kept >= 6144)


def test_parquet_gives_a_row_a_pair(tmp_path) -> None:
    root = tmp_path / "in"
    write_parquet(root / "00000.parquet", [parquet_row("000000000", 0), parquet_row("000000001", 1)])
    write_parquet(root / "00001.parquet", [parquet_row("000010000", 2)])
    prepare("conceptual_captions", root=root, out=tmp_path / "out")
    rows = open_source(str(tmp_path / "out"))
    assert rows["captions"][:] == [["Caption 0."], ["Caption 1."], ["Caption 2."]]
    assert rows["image_id"][1] == "conceptual_captions/000000001"
    assert rows[1]["image"] == {"bytes": jpeg(1), "path": "00000.parquet/000000001"}


def test_parquet_counts_what_was_not_downloaded(tmp_path) -> None:
    failed = {"jpg": None, "status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
    rows = [parquet_row("0", 0), *(parquet_row(str(number), 0, **failed) for number in (1, 2)), parquet_row("3", 3)]
    rows.append(parquet_row("4", 0, jpg=jpeg(4)[:-30]))
    write_parquet(tmp_path / "in" / "0.parquet", rows)
    summary = prepare("sbu", root=tmp_path / "in", out=tmp_path / "out")
    assert open_source(str(tmp_path / "out"))["image_id"][:] == ["sbu/0", "sbu/3"]
    assert list(quarantined(tmp_path / "out")) == ["sbu/4"]
    assert "note: train: 2 records left out: failed_to_download" in summary.lines()
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["splits"]["train"]["absent"] == {
        "failed_to_download": 2
    }


def test_parquet_of_the_hubs_form_is_read(tmp_path) -> None:
    rows = [{"image": {"bytes": jpeg(number), "path": None}, "caption": f"c {number}"} for number in range(2)]
    write_parquet(tmp_path / "in" / "train-0.parquet", rows)
    prepare("sbu", root=tmp_path / "in", out=tmp_path / "out")
    assert open_source(str(tmp_path / "out"))["image_id"][:] == ["sbu/train-0/1", "sbu/train-0/2"]


def test_parquet_with_links_alone_is_an_error(tmp_path) -> None:
    file = write_parquet(tmp_path / "in" / "list.parquet", [{"url": URL, "caption": "x"}])
    with pytest.raises(ValueError, match=r"a file without images.*img2dataset first") as caught:
        prepare("sbu", root=tmp_path / "in", out=tmp_path / "out")
    assert str(file) in str(caught.value)
    write_parquet(file, [{"jpg": jpeg(0), "url": URL}])
    with pytest.raises(ValueError, match="none of the columns txt, caption, TEXT, text, so there are no captions"):
        prepare("sbu", root=tmp_path / "in", out=tmp_path / "out")


def test_list_of_links_beside_tars_is_noted(tars, tmp_path) -> None:
    write_parquet(tars / "list.parquet", [{"url": URL, "caption": "x"}])
    summary = prepare("sbu", root=tars, out=tmp_path / "out")
    assert summary.notes == [f"1 parquet files without images are left out, such as {tars / 'list.parquet'}"]


def test_folder_without_shards_says_what_is_expected(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no such folder; --root must be a folder with 00000\.tar"):
        prepare("sbu", root=tmp_path / "nowhere", out=tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=r"no \.tar and no \.parquet in it; --root must be"):
        prepare("sbu", root=tmp_path / "in", out=tmp_path / "out")
    write(tmp_path / "in" / "0.parquet", b"PAR1 cut off")
    with pytest.raises(ValueError, match="not a whole parquet file"):
        prepare("sbu", root=tmp_path / "in", out=tmp_path / "out")


def test_parquet_rows_of_other_types_are_quarantined(tmp_path) -> None:
    root = tmp_path / "odd"
    write_parquet(root / "a.parquet", [{"jpg": jpeg(1), "caption": 7}])
    write_parquet(root / "b.parquet", [{"image": {"path": "a.jpg"}, "caption": "a"}])
    write_parquet(root / "c.parquet", [{"jpg": "text", "caption": "a"}])
    write_parquet(root / "d.parquet", [{"jpg": jpeg(1), "caption": "a"}])
    write_tar(root / "e.tar", {"0.jpg": jpeg(2), "0.json": b'{"caption": 7}'})
    prepare("sbu", root=root, out=tmp_path / "out")
    found = quarantined(tmp_path / "out")
    assert found["sbu/a/1"].endswith("cannot be read: expected a text or a list of texts, found 7")
    assert found["sbu/b/1"] == found["sbu/c/1"] == "the row has no image"
    assert found["sbu/0"].endswith("the caption of 0 cannot be read: expected a text or a list of texts, found 7")
    assert len(found) == 4
    assert len(open_source(str(tmp_path / "out"))) == 1
