import errno
import io
import json
import os
import struct
import tarfile
from unittest.mock import Mock

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Image
from tests.toy_shards import pack, tar_bytes, write_parquet

from vlmo.data.sources import open_source
from vlmo.data.stream import records
from vlmo.data.stream.records import BEGIN, Bad, Sample, read_saved, read_shard

# Longer than a plain header holds.
KEYS = [f"long/folder/{'name' * 40}{number}" for number in range(7)]


def read(shard, start=BEGIN, **settings):
    return [record for record, _ in read_shard(str(shard), start=start, **settings)]


@pytest.fixture(params=["tar", "parquet"])
def shard(request, tmp_path):
    if request.param == "parquet":
        return write_parquet(tmp_path / "0.parquet", KEYS)
    path = tmp_path / "0.tar"
    path.write_bytes(tar_bytes(KEYS))
    return path


def test_records_of_a_shard_are_read_in_order_from_any_offset_on(shard):
    whole = list(read_shard(str(shard)))
    found = [record for record, _ in whole]
    assert [(record.index, record.key) for record in found] == list(enumerate(KEYS))
    assert all(isinstance(record, Sample) and record.image for record in found)
    assert found[3].captions == (f"a picture of thing {KEYS[3]}",)
    assert len({record.sample_id for record in found}) == 7
    for number, (_, after) in enumerate(whole):
        assert read(shard, after) == found[number + 1 :]
    texts = read(shard, images=False)
    assert [record.captions for record in texts] == [record.captions for record in found]
    if shard.suffix == ".parquet":
        assert all(record.image is None for record in texts)
        return
    assert whole[2][1].byte > 0  # it is not read again from the start
    shard.write_bytes(shard.read_bytes()[: whole[-1][1].byte])  # without the blocks of its end
    assert read(shard, whole[-1][1]) == []


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_a_tar_that_is_cut_off_gives_what_is_whole_and_says_where_it_ends(tmp_path, share):
    keys = [str(number) for number in range(6)]
    content = tar_bytes(keys)
    path = tmp_path / "0.tar"
    path.write_bytes(content[: int(6 * 3 * 1024 * share) + 700])
    found = read(path)
    *samples, end = found
    assert 1 <= len(samples) < 6
    assert isinstance(end, Bad)
    assert (end.kind, end.shard, end.index) == ("shard", str(path), len(samples))
    assert "cannot be read any further than record" in end.reason
    pairs = list(read_shard(str(path)))
    for number, (_, after) in enumerate(pairs[:-1]):  # also where the cut begins
        indices = [record.index for record in read(path, after)]
        assert indices == [record.index for record in found[number + 1 :]]


def test_what_is_no_shard_or_not_there_is_one_bad_record(tmp_path):
    for name in ("0.tar", "0.parquet"):
        (tmp_path / name).write_bytes(b"<html>not found</html>" * 100)
    pq.write_table(pa.table({"caption": ["x"], "other": ["y"]}), tmp_path / "1.parquet")
    data = (tmp_path / "1.parquet").read_bytes().replace(b"other", b"\xffther")  # no text
    (tmp_path / "1.parquet").write_bytes(data)
    os.mkfifo(tmp_path / "pipe.tar")
    reasons = dict.fromkeys(("missing.tar", "missing.parquet"), "No such file")
    reasons["pipe.tar"] = "it is no regular file"
    for name in ("0.tar", "0.parquet", "1.parquet", *reasons):
        (bad,) = read(tmp_path / name, details=True)
        assert (bad.kind, bad.index) == ("shard", 0)
        assert f"it cannot be read: {reasons.get(name, '')}" in bad.reason


def test_a_damaged_row_group_ends_a_parquet_file_there(tmp_path):
    path = write_parquet(tmp_path / "0.parquet", [str(number) for number in range(12)])
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    start = start or pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 400] = b"\xff" * 400
    path.write_bytes(content)
    *samples, end = read(path)
    assert [record.key for record in samples] == ["0", "1", "2", "3"]
    assert (end.kind, end.index) == ("shard", 4)


class StoreError(Exception):
    """An error such as a store's client has."""


def test_remote_shards_are_opened_again_and_read_on_where_the_network_failed(monkeypatch):
    keys = [str(number) for number in range(200)]
    fsspec.filesystem("memory").pipe("/net/0.tar", tar_bytes(keys))
    waits, plain = [], fsspec.open
    breaks = [-1, 100_000, 250_000]  # bytes; the first one when it is opened
    monkeypatch.setattr(records, "_BUFFER", 20 * 512)
    monkeypatch.setattr(records.time, "sleep", waits.append)

    class Unsteady(io.BytesIO):
        def read(self, size=-1):
            if breaks and self.tell() > breaks[0]:
                breaks.pop(0)
                raise ConnectionResetError("reset by peer")
            return super().read(size)

    def unsteady(shard, mode):
        return Unsteady(plain(shard, mode).open().read())

    monkeypatch.setattr(records.fsspec, "open", unsteady)
    assert [record.key for record in read("memory://net/0.tar")] == keys
    assert (waits, breaks) == ([1.0, 4.0, 16.0], [])

    for error in (TimeoutError, StoreError):
        monkeypatch.setattr(records.fsspec, "open", Mock(side_effect=error("the network is away")))
        waits.clear()
        (bad,) = read("memory://net/0.tar")
        assert waits == [1.0, 4.0, 16.0]
        assert bad.reason == "it cannot be read: the network is away"

    full = Mock(side_effect=OSError(errno.EMFILE, "Too many open files"))
    monkeypatch.setattr(records.fsspec, "open", full)
    with pytest.raises(ValueError, match=r"too many open files; raise .* or lower streams.lanes"):
        read("memory://net/0.tar")


def test_details_are_what_else_a_record_says(tmp_path):
    facts = {"caption": "other", "key": "a", "status": "success", "url": "u", "size": {"w": 3}}
    members = {"a.png": b"picture", "a.txt": b"a caption", "a.json": json.dumps(facts).encode()}
    (tmp_path / "0.tar").write_bytes(pack(members | {"b.png": b"picture"}))
    first, second = read(tmp_path / "0.tar", details=True)
    assert (first.metadata, first.captions) == ({"url": "u", "size": {"w": 3}}, ("a caption",))
    assert second.metadata == read(tmp_path / "0.tar")[0].metadata == {}
    parquet = write_parquet(tmp_path / "0.parquet", KEYS)
    table = pq.read_table(parquet).append_column("year", pa.array(range(7)))
    pq.write_table(table.append_column("x", pa.array([None] * 7)), parquet)
    assert read(parquet, details=True)[3].metadata == {"year": 3, "x": None}
    assert read(parquet)[3].metadata == {}


OUTSIDE = ["/etc/passwd", "../secret.png", "a/../../b.png", "file:///etc/passwd", "zip::x"]
OUTSIDE += ["a\0b.png", "out.png", "out.png#bytes=0+3"]
INSIDE = ["in/here.png", "also.png"]


def test_parquet_may_name_images_in_its_folder_instead_of_holding_them(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "out.png").symlink_to(tmp_path / "secret.png")
    (shards / "also.png").symlink_to(shards / "in.png")
    paths = [*OUTSIDE, *INSIDE]
    mixed = [{"bytes": None, "path": path} for path in paths]
    mixed.append({"bytes": b"picture", "path": "b.png"})
    for cells in (paths, mixed):
        table = pa.table({"image": cells, "caption": ["x"] * len(cells)})
        pq.write_table(table, shards / "0.parquet")
        found = read(shards / "0.parquet")
        bad, good = found[: len(OUTSIDE)], found[len(OUTSIDE) :]
        expected = [(path, None) for path in INSIDE] + [(None, b"picture")] * (cells is mixed)
        assert [(record.path, record.image) for record in good] == expected
        assert [record.index for record in bad] == list(range(len(OUTSIDE)))
        assert all("lies outside the shard's folder" in record.reason for record in bad)


def test_rows_that_have_no_image_or_no_python_value_are_passed_over_or_bad(tmp_path):
    status = ["success", "failed_to_download", "success"]  # as img2dataset writes it
    table = pa.table({"jpg": [b"1", None, b"3"], "caption": ["a", "b", "c"], "status": status})
    pq.write_table(table, tmp_path / "0.parquet")
    found = read(tmp_path / "0.parquet")
    assert [(record.index, record.key) for record in found] == [(0, "0"), (2, "2")]
    own = table.set_column(2, "status", [["draft", "failed_to_download", "final"]])
    pq.write_table(own, tmp_path / "0.parquet")
    for images in (True, False):
        assert [record.index for record in read(tmp_path / "0.parquet", images=images)] == [0, 2]
    text = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    columns = {
        "date": pa.array([0, 2**31 - 1, 0], pa.int32()).cast(pa.date32()),
        "caption": pa.Array.from_buffers(pa.string(), 3, [None, text, pa.py_buffer(b"a\xffc")]),
    }
    for name, values in columns.items():
        pq.write_table(pa.table({"jpg": [b"1", b"2", b"3"], name: values}), tmp_path / "0.parquet")
        first, bad, last = read(tmp_path / "0.parquet", details=True)
        assert (bad.kind, bad.index, first.index, last.index) == ("row", 1, 0, 2)


def test_hidden_members_are_passed_over(tmp_path):
    members = {"d/._a.png": b"macOS", "d/a.png": b"picture", "d/._a.txt": b"\xff", "d/a.txt": b"a"}
    members |= {".DS_Store": b"", "b.png": b"last", "._b.png": b"macOS"}
    (tmp_path / "0.tar").write_bytes(pack(members))
    for images in (True, False, "ranges"):
        records = read(tmp_path / "0.tar", images=images)
        found = [(record.index, record.key, record.captions) for record in records]
        assert found == [(0, "d/a", ("a",)), (1, "b", ())]
    (_, after), *_ = read_shard(str(tmp_path / "0.tar"))
    assert [record.key for record in read(tmp_path / "0.tar", start=after)] == ["b"]


# What a tar holds of each record, and why it cannot be used; None where it can.
MEMBERS = {
    "deep.json": (b"[" * 100_000, "deep cannot be read"),
    "large.png": (bytes(300_001), "claims 300,001 bytes; at most 300,000 are read"),
    "mapping.json": (b'{"captions": {"x": 1}}', "mapping cannot be read"),
    "number.json": (b'{"caption": 3}', "number cannot be read"),
    "cut.json": (b"{", "cut cannot be read"),
    "latin.txt": (b"\xff\xfe", "latin cannot be read"),
    "list.json": (b"[1]", "list cannot be read"),
    "half.json": (b'{"caption": "\\ud800"}', "half cannot be read"),
    "fact.json": (b'{"caption": "x", "place": "\\ud800"}', "fact cannot be read"),
    "captions.json": (json.dumps({"captions": ["x"] * 1001}).encode(), "at most 1,000 and 500"),
    "facts.json": (json.dumps(dict.fromkeys(range(501), 1)).encode(), "at most 1,000 and 500"),
    "braces.json": (b'{"caption": "' + b"{" * 1000 + b'"}', None),
    "some.json": (b'{"captions": ["one", " ", "two"]}', None),
    "c\udcff.txt": (b"fine", None),
    "none.cls": (b"7", None),
}


def test_member_that_cannot_be_used_costs_its_record_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_MEMBER_BYTES", 300_000)
    members = {name: data for name, (data, _) in MEMBERS.items()}
    (tmp_path / "0.tar").write_bytes(pack(members, errors="surrogateescape"))
    found, good = read(tmp_path / "0.tar", details=True), {}
    for record, (_, reason) in zip(found, MEMBERS.values(), strict=True):
        if reason is None:
            good[record.key] = record.captions
        else:
            assert record.kind == "row"
            assert reason in record.reason
    captions = {"braces": ("{" * 1000,), "some": ("one", "two"), r"c\xff": ("fine",), "none": ()}
    assert good == captions


def test_saved_set_whose_texts_lie_outside_the_file_is_refused(tmp_path):
    rows = [{"captions": ["abcdefgh"], "image_id": number, "image": None} for number in "1234"]
    Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    (file,) = (tmp_path / "set").glob("*.arrow")
    whole, offsets = file.read_bytes(), struct.pack("<5i", 0, 8, 16, 24, 32)
    assert whole.count(offsets) == 1
    damaged = struct.pack("<5i", 0, 8, 900_000_000, 900_000_008, 900_000_016)
    file.write_bytes(whole.replace(offsets, damaged))
    (bad,) = read_saved(tmp_path / "set")
    assert (bad.kind, bad.index) == ("shard", 0)
    with pytest.raises(ValueError, match="set is damaged"):
        open_source(str(tmp_path / "set"))


def gnu_sparse(*, size: int, is_extended: bool = False) -> bytes:
    """Return the header of a sparse member in GNU's old form, whose data have 512 bytes."""
    member = tarfile.TarInfo("a.txt")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)  # one piece at the start
    header[482] = is_extended
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    return bytes(header)


def pax_sparse(pieces: str) -> bytes:
    """Return a sparse member of PAX, version 1.0: a map of pieces stands before its data."""
    facts = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "4096"}
    member = tarfile.TarInfo("a.txt")
    member.size = len(data := pieces.encode())
    header = tarfile.TarInfo._create_pax_generic_header(facts, tarfile.XHDTYPE, "utf-8")
    return header + member.tobuf() + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def long_name(size: int) -> bytes:
    member = tarfile.TarInfo("@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, size
    return member.tobuf()


def facts(times: int = 1, **named: str) -> bytes:
    """Return an image whose header of facts is there so many times."""
    named = {name.replace("_", "."): value for name, value in named.items()}
    header = tarfile.TarInfo._create_pax_generic_header(named, tarfile.XHDTYPE, "utf-8")
    return times * header + tarfile.TarInfo("b.png").tobuf() + tar_bytes(["c"])


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"x" * 512 + tar_bytes(["c"]), "not a tar file, cut off or damaged"),
        (long_name(6 << 30), "claims 6,442,450,944 bytes"),
        (facts(GNU_sparse_map="a,b", GNU_sparse_size="9"), "invalid literal"),
        (facts(GNU_sparse_size="zz"), "invalid literal"),
        (facts(size="9" * 30), "claims 999,999"),
        (facts(3000, comment="a"), "recursion"),
        (facts(path="1" * 50_000), "claims 50,"),
        (gnu_sparse(size=4096, is_extended=True), "cannot be read any further"),  # cut off
    ],
)
def test_header_that_makes_no_sense_ends_the_shard_there(tmp_path, header, reason):
    whole = tar_bytes(["a"]).rstrip(b"\0")
    (tmp_path / "0.tar").write_bytes(whole + bytes(-len(whole) % tarfile.BLOCKSIZE) + header)
    first, end = read(tmp_path / "0.tar")
    assert first.key == "a"
    assert (end.kind, end.index) == ("shard", 1)
    assert reason in end.reason


@pytest.mark.parametrize("images", [True, "ranges"])
@pytest.mark.parametrize(
    "member",
    [
        gnu_sparse(size=6 << 30) + bytes(512),
        gnu_sparse(size=4096) + bytes(512),
        pax_sparse("2\n0\n0\n512\n0\n"),  # thousands of these take quadratic time
        pax_sparse("many"),
    ],
)
def test_sparse_member_costs_its_record_and_is_not_read(tmp_path, member, images):
    path = tmp_path / "0.tar"
    path.write_bytes(member + tar_bytes(["b"]))
    sparse, fine = read(path, images=images)
    assert (sparse.kind, sparse.key) == ("row", "a")
    assert "a.txt is a sparse file" in sparse.reason
    assert fine.key == "b"


def saved_rows(*numbers: int) -> Dataset:
    image = {"bytes": b"not decoded", "path": None}
    facts = {"image": image, "captions": ["one", " "], "mask": image}
    rows = Dataset.from_list([facts | {"image_id": f"id {n}", "year": n} for n in numbers])
    return rows.cast_column("image", Image()).cast_column("mask", Image())


def test_saved_rows_are_read_with_everything_but_other_images(tmp_path):
    saved_rows(1, 2).save_to_disk(tmp_path / "set")
    first, second = read_saved(tmp_path / "set")
    assert (first.key, first.image, first.captions) == ("id 1", b"not decoded", ("one",))
    assert second.metadata == {"image_id": "id 2", "year": 2}
    assert (second.index, second.shard) == (1, str(tmp_path / "set"))
    splits = {"train": saved_rows(1, 2), "val": saved_rows(1).select([]), "test": saved_rows(3)}
    DatasetDict(splits).save_to_disk(tmp_path / "sets")
    found = list(read_saved(tmp_path / "sets"))
    assert [each.index for each in found] == [0, 1, 2]
    assert [each.metadata["split"] for each in found] == ["train", "train", "test"]


def test_saved_paths_other_names_and_sounds_are_understood(tmp_path):
    def saved(name: str, **columns) -> list:
        Dataset.from_dict(columns).save_to_disk(tmp_path / name)
        return list(read_saved(tmp_path / name))

    (found,) = saved("set", image=["a.png"], text=["one"], id=[7])
    assert (found.path, found.image, found.captions, found.key) == ("a.png", None, ("one",), "7")
    (found,) = saved("long", image=["a.png"], text=["one"], id=["7" * 2000])
    assert found.key == "7" * 1000
    (bad,) = saved("wrong", image=["a.png"], captions=[[1, 2]])
    assert "expected a text or a list of texts" in bad.reason
    sound = {"bytes": b"not decoded", "path": "a.mp3"}
    saved("sound", image=[sound], caption=["one"], sound=[sound])
    about = tmp_path / "sound" / "dataset_info.json"
    facts = json.loads(about.read_text())
    facts["features"] |= {"image": {"_type": "Image"}, "sound": {"_type": "Audio"}}
    about.write_text(json.dumps(facts))
    (found,) = read_saved(tmp_path / "sound")
    assert (found.image, found.captions, found.metadata) == (b"not decoded", ("one",), {})


def test_damaged_set_or_one_that_names_files_elsewhere_is_refused(tmp_path):
    folder = tmp_path / "set"
    saved_rows(1).save_to_disk(folder)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    state = json.loads(whole["state.json"])
    elsewhere = ["../set/data-00000-of-00001.arrow", "/dev/zero", "gone.arrow"]
    damages = {"state.json": ["{}", '{"_data_files": 7}'], "data-00000-of-00001.arrow": ["{}"]}
    for file in elsewhere:
        damages["state.json"] += [json.dumps(state | {"_data_files": [{"filename": file}]})]
    for name, contents in damages.items():
        for content in contents:
            (folder / name).write_text(content)
            assert [bad.kind for bad in read_saved(folder)] == ["shard"], content
            (folder / name).write_bytes(whole[name])
    (tmp_path / "sets").mkdir()
    for split in ("../set", str(folder), ".."):
        (tmp_path / "sets" / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
        (bad,) = read_saved(tmp_path / "sets")
        assert "is no folder in it" in bad.reason


def test_saved_record_names_no_file_system_but_stores(tmp_path):
    systems = ("file:///etc", "reference:/", "github:/", "memory:/", "s3://bucket")
    paths = [f"{system}/a.png" for system in systems]
    Dataset.from_dict({"image": paths, "text": [*"abcde"]}).save_to_disk(tmp_path / "set")
    *bad, good = read_saved(tmp_path / "set")
    assert all(each.kind == "row" and "is in no store" in each.reason for each in bad)
    assert good.path == "s3://bucket/a.png"
