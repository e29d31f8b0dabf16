import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.prepare.toy_task_files import jpeg, quarantined, write
from tests.toy_shards import pack

from vlmo.data.decoding import decode_image
from vlmo.data.prepare import prepare
from vlmo.data.sources import open_source

URL = "https://example.org/a.jpg"


def members(key: str, shade: int, *, caption: str | None = None) -> dict[str, bytes]:
    """What img2dataset writes for one pair (output_format="webdataset")."""
    caption = f"Caption {shade}." if caption is None else caption
    facts = {"url": URL, "caption": caption, "key": key, "status": "success", "error_message": None}
    members = {"jpg": jpeg(shade), "txt": caption.encode(), "json": json.dumps(facts).encode()}
    return {f"{key}.{kind}": data for kind, data in members.items()}


def write_tar(file: Path, content: dict[str, bytes]) -> Path:
    return write(file, pack(content))


def parquet_bytes(*rows: dict) -> bytes:
    pq.write_table(pa.Table.from_pylist(rows), buffer := io.BytesIO())
    return buffer.getvalue()


def parquet_row(key: str, shade: int, **changes) -> dict:
    """What img2dataset writes for one pair (output_format="parquet"); without a picture where it could not get it."""
    caption = f"Caption {shade}."
    row = {"key": key, "jpg": jpeg(shade), "txt": caption, "url": URL, "caption": caption}
    return row | {"status": "success", "error_message": None} | changes


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    root = tmp_path / "cc3m"
    write_tar(root / "00000.tar", {**members("000000000", 0), **members("000000001", 1)})
    write_tar(root / "00001.tar", members("000010000", 2))
    for shard in ("00000", "00001"):
        # What img2dataset leaves beside a tar.
        facts = {"url": URL, "caption": "x", "key": "0", "status": "success"}
        write(root / f"{shard}.parquet", parquet_bytes(facts))
        write(root / f"{shard}_stats.json", json.dumps({"count": 2, "successes": 2}))
    return root


@pytest.mark.parametrize("name", ["conceptual_captions", "sbu"])
def test_tars_give_a_row_a_pair(tars, tmp_path, name: str) -> None:
    summary = prepare(name, root=tars, out=tmp_path / "out")
    rows = open_source(str(tmp_path / "out"))
    assert rows["captions"][:] == [["Caption 0."], ["Caption 1."], ["Caption 2."]]
    ids = [f"{name}/{key}" for key in ("000000000", "000000001", "000010000")]
    assert rows["image_id"][:] == ids
    assert [decode_image(row["image"]).getpixel((0, 0))[0] for row in rows] == [0, 1, 2]
    assert rows["source"][0] == name
    assert rows[0]["image"]["bytes"] is None  # it is not copied
    assert rows[0]["image"]["path"].startswith(f"{tars}/00000.tar#bytes=")
    assert not [line for line in summary.lines() if line.startswith("warning")]
    write(tars / "list.parquet", parquet_bytes({"url": URL, "caption": "x"}))  # is passed over
    (tars / "part2").mkdir()
    (tars / "00001.tar").rename(tars / "part2" / "00000.tar")
    prepare(name, root=tars, out=tmp_path / "again")
    assert open_source(str(tmp_path / "again"))["image_id"][2] == f"{name}/part2/000010000"


def test_tar_bad_records_are_quarantined(tmp_path) -> None:
    content = members("good", 1) | members("bare", 2) | members("cut", 4) | members("latin", 5)
    content |= {"cut.jpg": jpeg(4)[:-30], "latin.txt": "é".encode("latin-1")}
    del content["bare.jpg"]
    write_tar(tmp_path / "in" / "0.tar", content)
    write_tar(tmp_path / "in" / "1.tar", members("good", 8))
    summary = prepare("sbu", root=tmp_path / "in", out=tmp_path / "out")
    assert open_source(str(tmp_path / "out"))["captions"][:] == [["Caption 1."]]
    reasons = quarantined(tmp_path / "out")
    assert "it has no image, only .txt, .json" in reasons["sbu/bare"]
    assert "0.tar#bytes=" in reasons["sbu/cut"]
    assert "cannot be decoded" in reasons["sbu/cut"]
    assert "latin cannot be read" in reasons["sbu/latin"]
    assert reasons["sbu/good"] == "image_id sbu/good repeats that of an earlier row"
    assert summary.splits["train"]["quarantined"] == len(reasons) == 4


def test_parquet_gives_a_row_a_pair_that_was_downloaded(tmp_path) -> None:
    failed = {"jpg": None, "status": "failed_to_download", "error_message": "HTTP Error 404"}
    rows = [parquet_row("0", 0), parquet_row("1", 0, **failed), parquet_row("2", 1)]
    root = tmp_path / "in"
    write(root / "00000.parquet", parquet_bytes(*rows, parquet_row("3", 0, jpg=jpeg(4)[:-30])))
    write(root / "00001.parquet", parquet_bytes(parquet_row("000010000", 2)))
    hub = {"image": {"bytes": jpeg(3), "path": None}, "caption": "c"}
    write(root / "hub.parquet", parquet_bytes(hub))
    prepare("sbu", root=root, out=tmp_path / "out")
    rows = open_source(str(tmp_path / "out"))
    assert rows["captions"][:] == [["Caption 0."], ["Caption 1."], ["Caption 2."], ["c"]]
    assert rows["image_id"][:] == ["sbu/0", "sbu/2", "sbu/000010000", "sbu/hub/1"]
    assert rows[1]["image"] == {"bytes": jpeg(1), "path": "00000.parquet/2"}
    assert list(quarantined(tmp_path / "out")) == ["sbu/3"]
