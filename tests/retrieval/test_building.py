import io
import json
import os
import shutil
import tarfile
import tempfile
import threading
import weakref
from pathlib import Path

import fsspec
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from datasets import Image as Feature
from filelock import FileLock
from PIL import Image
from rich.console import Console
from tests.folder.test_atomic import full_disk
from tests.integrations.toy_gallery import CAPTIONS, drawings, trained_folder
from tests.retrieval.toy_index import (
    NAMES,
    NUM,
    build,
    encoded,
    nested_folders,
    rows,
    write_folder,
    write_parquet,
    write_table,
    write_tar,
)
from tests.rights import ordinary_rights
from tests.toy_shards import pack

from vlmo import progress
from vlmo.data import listing
from vlmo.data.decoding import EncodedImage
from vlmo.retrieval import Index, Searcher, build_index, building, embedding, store
from vlmo.retrieval.building import StoppedError
from vlmo.retrieval.index import IndexQuery
from vlmo.retrieval.sources import Record, image_id
from vlmo.retrieval.store import Store
from vlmo.serving.parts import load_parts

CLOSE = 1e-5  # batches of other sizes add up in another order
SCALED = 0.999  # cosine; a pixel of an eighth of a JPEG is the mean of 64


@pytest.fixture
def counted(monkeypatch):
    """Numbers of images that went through the model together."""
    counts, embed = [], embedding.embed_decoded

    def noted(*batch):
        counts.append(len(batch[-1]))
        return embed(*batch)

    monkeypatch.setattr(embedding, "embed_decoded", noted)
    return counts


def quarantine(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]


def test_index_of_a_folder_holds_what_is_there(encoder, gallery):
    folder, out = gallery
    found = rows(out)
    assert list(found) == sorted(found)
    assert found.keys() == {str(folder / name) for name in NAMES}
    vectors = encoder.embed_images(drawings())
    for number, name in enumerate(NAMES):
        row = found[str(folder / name)]
        np.testing.assert_allclose(row["vector"], vectors[number], atol=CLOSE)
        assert row["captions"] == CAPTIONS[number]
        assert (row["year"], row["kind"]) == (2000 + number, CAPTIONS[number][0].split()[-1])
        assert (row["width"], row["height"]) == drawings()[number].size
        assert row["bytes"] is None


def test_photographs_are_decoded_at_a_smaller_scale(encoder, tmp_path, monkeypatch):
    """The vectors are nearly those of the whole image; sizes are its own, and searches by the file read it alike."""
    (tmp_path / "images").mkdir()
    photo = drawings()[8].resize((2600, 2200), Image.Resampling.BICUBIC)
    photo.save(file := tmp_path / "images" / "photo.jpg", quality=90)
    decoded, decode = [], EncodedImage.decode

    def noted(self, *by):
        decoded.append(by)
        return decode(self, *by)

    monkeypatch.setattr(EncodedImage, "decode", noted)
    build(encoder, tmp_path / "images", out=tmp_path / "index")
    searcher = Searcher(encoder, tmp_path / "index")
    (hit,) = searcher.search(file).hits
    searcher.search("a red square", rerank=1)
    assert decoded == [(8,)] * 3
    assert hit.similarity == pytest.approx(1, abs=CLOSE)
    assert (hit.width, hit.height) == photo.size
    row = rows(tmp_path / "index")[str(file)]
    assert max(Image.open(io.BytesIO(row["thumbnail"])).size) == 256
    whole = encoder.embed_images([Image.open(file)])[0]
    assert np.dot(whole, row["vector"]) > SCALED


def test_layout_on_the_disk_is_that_of_version_3(encoder, gallery):
    """Indexes that exist stay readable, also by programs that know LanceDB only."""
    columns = "id path shard stamp hash bytes captions full_text thumbnail width height vector"
    columns += " album taken taken_from year kind"
    assert lancedb.connect(gallery[1]).open_table("images").schema.names == columns.split()
    facts = json.loads((gallery[1] / "index.json").read_text())
    assert facts.pop("folders").keys() == {str(gallery[0])}
    assert {facts.pop("created"), facts.pop("updated")}
    model = {"folder": str(encoder.folder), "fingerprint": encoder.fingerprint, "dim": encoder.dim}
    assert facts.pop("model") == model
    assert facts.pop("background").keys() == {"images", "mean", "spread"}
    found = {"inputs": [str(gallery[0])], "images": NUM, "complete": True, "bad": 0}
    found |= {"skipped": {}, "mounts": [], "approximate": None}
    settings = {"version": 3, "metric": "cosine", "metadata": None, "store_bytes": False}
    assert facts == found | settings | {"ocr": False}
    files = {".lock", "index.json", "images.lance", "quarantine.jsonl", "shards.json"}
    assert {path.name for path in gallery[1].iterdir()} == files


FORMS = ["tar", "parquet", "parquet with paths", "dataset", "dataset with splits", "split"]


@pytest.mark.parametrize("kind", FORMS)
def test_every_form_gives_the_same_vectors(kind, encoder, gallery, tmp_path):
    given = tmp_path / "given"
    if kind == "tar":
        write_tar(given / "00000.tar")
        write_parquet(given / "00000.parquet")  # tells of the tar, and is no shard of its own
    elif "parquet" in kind:
        write_parquet(given / "x.parquet", paths="paths" in kind)
    else:
        shard = str(write_parquet(tmp_path / "x.parquet"))
        whole = Dataset.from_parquet(shard, cache_dir=str(tmp_path / "cache"))
        whole = whole.cast_column("image", Feature())
        if kind == "dataset with splits":
            splits = {"train": whole.select(range(20)), "test": whole.select(range(20, NUM))}
        else:
            splits = {"train": whole, "test": whole.select(range(3))}
        (whole if kind == "dataset" else DatasetDict(splits)).save_to_disk(given)
    inputs = given / {"parquet": "x.parquet", "split": "train"}.get(kind.split()[0], "")
    report = build(encoder, inputs, out=tmp_path / "index")
    assert report.encoded == NUM
    expected = {row["hash"]: row["vector"] for row in rows(gallery[1]).values()}
    found = rows(tmp_path / "index")
    assert len(found) == NUM
    for path, row in found.items():
        np.testing.assert_allclose(row["vector"], expected[row["hash"]], atol=CLOSE)
        assert path.startswith(str(given))
        assert (row["bytes"] is None) == ("paths" in kind)
        assert row["captions"]
    expected = {("year" if kind == "tar" else "score"): "number"}
    expected |= {"tar": {"exif": "text"}, "dataset with splits": {"split": "text"}}.get(kind, {})
    assert Index(tmp_path / "index").columns.items() >= expected.items()
    again = build(encoder, inputs, out=tmp_path / "index")
    assert (again.encoded, again.reused, again.unchanged, again.deleted) == (0, 0, NUM, 0)


def test_uris_are_inputs(encoder, gallery, tmp_path):
    base, out = f"memory://{tmp_path.name}", tmp_path / "index"
    tar = write_tar(tmp_path / "0.tar", numbers=range(6, NUM))
    files = fsspec.filesystem("memory")
    files.pipe({f"{base}/images/{number}.png": encoded(drawings()[number]) for number in range(6)})
    files.pipe(f"{base}/tars/00000.tar", tar.read_bytes())
    assert build(encoder, f"{base}/images", f"{base}/tars/*.tar", out=out).encoded == NUM
    expected, index = {row["hash"]: row["vector"] for row in rows(gallery[1]).values()}, Index(out)
    for row in rows(out).values():
        np.testing.assert_allclose(row["vector"], expected[row["hash"]], atol=CLOSE)
        assert index.image(row["id"]).size == (row["width"], row["height"])
    files.rm(f"{base}/images/3.png")
    assert build(encoder, out=out).deleted == 1


def test_update_embeds_what_is_new_and_removes_what_is_gone(indexed, encoder, counted):
    folder, out = indexed(range(12))
    counted.clear()

    (folder / NAMES[0]).unlink()
    (folder / NAMES[1]).write_bytes(encoded(drawings()[20]))  # other content
    (folder / NAMES[2]).rename(folder / "moved.png")
    (folder / NAMES[20]).write_bytes(encoded(drawings()[21]))  # new
    os.utime(folder / NAMES[3], (1, 1))  # looks changed, and is not
    report = build(encoder, out=out)
    assert (report.encoded, report.reused, report.unchanged, report.deleted) == (2, 2, 8, 2)
    assert sum(counted) == 2
    found = rows(out)
    names = [*NAMES[1:2], *NAMES[3:12], NAMES[20], "moved.png"]
    assert found.keys() == {str(folder / name) for name in names}
    expected = encoder.embed_images([drawings()[number] for number in (20, 21, 2)])
    actual = [found[str(folder / name)]["vector"] for name in (NAMES[1], NAMES[20], "moved.png")]
    np.testing.assert_allclose(actual, expected, atol=CLOSE)


def test_other_captions_and_columns_need_no_other_vector(indexed, encoder, counted):
    folder, out = indexed(range(8))
    counted.clear()
    write_table(folder / "captions.csv", numbers=range(4), year=1900)
    report = build(encoder, out=out)
    assert not sum(counted)
    assert (report.encoded, report.reused) == (0, 8)
    found = rows(out)
    assert sum(len(row["captions"]) for row in found.values()) == 8
    years = [found[str(folder / name)]["year"] for name in NAMES[:6]]
    assert years == [1900, 1901, 1902, 1903, None, None]


def test_later_runs_go_by_what_the_first_was_given(encoder, tmp_path):
    folder = write_folder(tmp_path / "images", table=False, numbers=range(3))
    out, table = tmp_path / "index", write_table(tmp_path / "about.csv", numbers=range(4))

    def captions() -> list[list[str]]:
        found = rows(out)
        return [found[str(folder / name)]["captions"] for name in NAMES[: len(found)]]

    build(encoder, folder, out=out, metadata=table, store_bytes=True)
    (folder / NAMES[3]).write_bytes(encoded(drawings()[3]))
    report = build(encoder, out=out)
    assert (report.unchanged, report.encoded) == (3, 1)
    assert captions() == CAPTIONS[:4]
    assert all(row["bytes"] for row in rows(out).values())

    other = write_table(tmp_path / "other.csv", numbers=range(1))
    build(encoder, out=out, metadata=other, store_bytes=False)
    assert build(encoder, out=out).unchanged == 4
    assert captions() == [CAPTIONS[0], [], [], []]
    assert not any(row["bytes"] for row in rows(out).values())
    other.unlink()
    with pytest.raises(ValueError, match=r"other.csv, this index's table .* is gone; .*--remove"):
        build(encoder, out=out)
    build_index(encoder, out=out, remove=[other])
    assert captions() == [[], [], [], []]


def test_value_that_does_not_fit_its_column_is_left_out(encoder, tmp_path, caplog):
    folder = write_folder(tmp_path / "images", table=False, numbers=range(1))
    out, table = tmp_path / "index", tmp_path / "about.jsonl"
    for value, stored in ((1, 1), (0.5, 0.5), ("many", None)):
        line = {"image": NAMES[0], "n": value, "t": str(value)}
        table.write_text(json.dumps(line), encoding="utf-8")
        build(encoder, folder, out=out, metadata=table)
        assert Index(out).columns.items() >= {"n": "number", "t": "text"}.items()
        row = rows(out)[str(folder / NAMES[0])]
        assert (row["n"], row["t"]) == (stored, str(value))
    assert caplog.messages == ["left out is n = 'many', and maybe more: its column holds number"]


def test_bad_files_are_told_and_the_rest_goes_on(encoder, tmp_path):
    folder = write_folder(tmp_path / "images", numbers=range(4))
    image, latin, out = encoded(drawings()[0]), b"latin \xfc.png", tmp_path / "index"
    cut = write_tar(folder / "x.tar", numbers=range(4, 8)).read_bytes()
    files = (
        ("text.jpg", b"no image", "in a known format"),
        ("twin.jpg", b"no image", "in a known format"),
        ("empty.png", b"", "empty file"),
        ("cut.png", image[:60], ""),
        ("bomb.png", encoded(Image.new("1", (9000, 9000))), "81,000,000 pixels"),
        (os.fsdecode(latin), image, "not UTF-8"),
        ("x.tar", cut[: len(cut) // 4], "cannot be read any further"),
        (os.fsdecode(b"latin \xfc.tar"), cut, "not UTF-8"),
    )
    for name, data, _ in files:
        (folder / name).write_bytes(data)
    report = build(encoder, folder, out=out)
    assert 4 < report.images < 8
    assert build(encoder, folder, out=out).bad == report.bad
    reasons = {Path(line["path"]).name: line["reason"] for line in quarantine(out)}
    assert len(reasons) == report.bad == len(files)
    for name, _, reason in files:
        assert reason in reasons[name.encode(errors="backslashreplace").decode()]
    assert reasons["twin.jpg"] == reasons["text.jpg"].replace("text.jpg", "twin.jpg")
    (folder / "twin.jpg").unlink()
    for name in (b"latin \xfc.png", b"latin \xfc.tar"):
        (folder / os.fsdecode(name)).unlink()

    (folder / "text.jpg").write_bytes(encoded(drawings()[8], "JPEG"))
    (folder / "x.tar").write_bytes(cut)
    (folder / NAMES[0]).write_bytes(b"now it is bad")
    report = build(encoder, out=out)
    names = {Path(line["path"]).name for line in quarantine(out)}
    assert names == {"empty.png", "cut.png", "bomb.png", NAMES[0]}
    assert report.images == 3 + 1 + 4
    # What is said of a shard stays while the shard is not read again.
    write_tar(folder / "y.tar", numbers=range(9, 11))
    data = bytearray((folder / "y.tar").read_bytes())
    data[512 + 20 : 512 + 40] = bytes(20)
    (folder / "y.tar").write_bytes(data)
    build(encoder, out=out)
    before = quarantine(out)
    assert any(line["path"].endswith("y.tar") for line in before)
    build(encoder, out=out)
    assert quarantine(out) == before


def test_log_gets_lines_of_progress(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(building, "_LISTED_EVERY", 5)
    folder = write_folder(tmp_path / "images")
    console = Console(file=io.StringIO(), force_terminal=False, width=60)
    build_index(encoder, [folder], out=tmp_path / "index", batch=8, console=console)
    lines = console.file.getvalue().splitlines()
    size = f"{sum((folder / name).stat().st_size for name in NAMES) / 1000:.1f} kB"
    assert f"listing {folder}: 20" in lines
    assert [line for line in lines if line.startswith(f"indexing: {size} of {size}, {NUM} images")]


def test_unreadable_subfolders_and_saved_sets_are_told_and_known_images_stay(encoder, tmp_path):
    folder, out = write_folder(tmp_path / "images", numbers=range(2)), tmp_path / "index"
    write_folder(folder / "lost+found", numbers=range(2, 4))
    (folder / "endless").mkdir()
    with (folder / "endless" / "state.json").open("wb") as file:
        file.truncate(1 << 40)
    assert build(encoder, folder, out=out).images == 4
    assert [Path(line["path"]).name for line in quarantine(out)] == ["endless"]
    shutil.rmtree(folder / "endless")
    (folder / "lost+found").chmod(0)
    (folder / NAMES[0]).unlink()
    with ordinary_rights():
        report = build(encoder, folder, out=out)
        assert (report.images, report.deleted, report.bad) == (3, 1, 1)
        with pytest.raises(PermissionError):
            build(encoder, folder / "lost+found", out=tmp_path / "other")
    (line,) = quarantine(out)
    assert line["path"] == str(folder / "lost+found")
    assert "the folder cannot be listed" in line["reason"]
    (folder / "lost+found").chmod(0o755)
    assert build(encoder, folder, out=out).bad == 0


def test_index_keeps_a_number_of_columns(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(store, "_MAX_COLUMNS", 3)
    table = store.Store(tmp_path / "index", dim=8)
    metadata = [{"a": 1, "b": 2}, {"c": "x", "d": "y"}, {"a": 5, "d": 6}]
    empty = {"shard": "", "captions": [], "thumbnail": b"", "vector": [1.0] * 8}
    for row, columns in enumerate(metadata):
        table.write([{"id": str(row), "path": f"/{row}.png", "metadata": columns, **empty}])
    assert table.rows("id", ["0", "1", "2"], columns=["a", "b", "c"]) == [
        {"a": 1, "b": 2, "c": None},
        {"a": None, "b": None, "c": "x"},
        {"a": 5, "b": None, "c": None},
    ]
    assert table.columns().keys() == {"a", "b", "c"}
    assert "left out is d = 'y', and maybe more: its column holds nothing" in caplog.messages[0]


def test_stored_bytes_outlive_the_files(indexed):
    folder, out = indexed(range(1), table=False, store_bytes=True)
    (folder / NAMES[0]).unlink()
    assert Index(out).image(image_id(str(folder / NAMES[0]))).size == drawings()[0].size


def test_input_that_is_taken_out_leaves_the_index_and_can_come_back(encoder, tmp_path):
    folder, out = write_folder(tmp_path / "images", numbers=range(3)), tmp_path / "index"
    tar = write_tar(tmp_path / "x.tar", numbers=range(3, 8))
    assert build(encoder, folder, tar, out=out).images == 8
    with pytest.raises(ValueError, match="third is no input of this index"):
        build_index(encoder, out=out, remove=[tmp_path / "third"])
    for given, other, left in ((folder, tar, 5), (tar, folder, 3)):
        report = build_index(encoder, out=out, remove=[given])
        assert (report.images, report.deleted) == (left, 8 - left)
        assert json.loads((out / "index.json").read_text())["inputs"] == [str(other)]
        assert build(encoder, given, out=out).images == 8


def test_input_that_is_empty_or_gone_empties_nothing(indexed, encoder, tmp_path):
    folder, out = indexed(range(3), table=False)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"there is nothing at .*--remove .* takes them out"):
        build(encoder, out=out)
    folder.mkdir()
    with pytest.raises(ValueError, match=r"holds no image.*--remove"):
        build(encoder, out=out)
    assert len(rows(out)) == 3


def test_folder_that_was_emptied_is_forgotten(indexed, encoder):
    folder, out = indexed(range(3), table=False)
    for file in [*folder.rglob("*.png")]:
        file.unlink()
    (folder / "raw.dng").touch()
    report = build(encoder, out=out)
    assert (report.images, report.deleted) == (0, 3)
    assert Index(out, in_memory=True).num_images == 0
    assert Index(out).rank(IndexQuery(None, top=1)).places.size == 0
    (folder / "new.png").write_bytes(encoded(drawings()[4]))
    assert build(encoder, out=out).images == 1


def test_images_of_a_disk_that_was_taken_out_stay(encoder, tmp_path):
    """`/dev/shm` is another disk; a link to an empty folder here is what its mount point is without it."""
    folder = write_folder(tmp_path / "images", table=False, numbers=range(2))
    out = tmp_path / "index"
    mount_point = tmp_path / "mount point"
    mount_point.mkdir()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        write_folder(Path(disk) / "photos", table=False, numbers=range(2, 5))
        (folder / "disk").symlink_to(disk)
        assert build(encoder, folder, out=out).images == 5
        for name in ("disk", "nowhere", "mount point"):
            (folder / "disk").unlink()
            (folder / "disk").symlink_to(disk if name == "disk" else tmp_path / name)
            report = build(encoder, out=out)
            assert (report.images, report.deleted, report.bad) == (5, 0, name != "disk")
        assert "a disk of its own, which is not here" in quarantine(out)[0]["reason"]
        (folder / "disk").unlink()
        (folder / "disk").symlink_to(disk)
        shutil.rmtree(f"{disk}/photos")  # which its owner deleted
        assert (build(encoder, out=out).images, quarantine(out)) == (2, [])


def test_folder_whose_disk_leaves_while_listed_loses_nothing(
    indexed, encoder, tmp_path, monkeypatch
):
    folder, out = indexed(range(3), table=False)
    walk = listing.walk

    def walk_and_leave(*given, **settings):
        files = [*walk(*given, **settings)]
        folder.rename(tmp_path / "elsewhere")
        write_folder(folder, numbers=range(1))
        yield from files

    monkeypatch.setattr(listing, "walk", walk_and_leave)
    with pytest.raises(ValueError, match="replaced while it was listed"):
        build(encoder, out=out)
    assert len(rows(out)) == 3


class EndlessFiles:
    """Files whose folders never end, whatever limit of recursion the process has."""

    def glob(self, pattern: str) -> list[str]:
        return self.glob(f"{pattern}/*")


def test_folder_nested_a_thousand_deep_is_listed_to_a_bound(encoder, tmp_path, monkeypatch):
    folder, out = write_folder(tmp_path / "images", numbers=range(3)), tmp_path / "index"
    with nested_folders(folder / "sub", image=encoded(drawings()[5]), at=(97, 98, 99, 1199)):
        report = build(encoder, folder, out=out)
        monkeypatch.setattr(listing, "open_file_system", lambda origin: (EndlessFiles(), origin))
        with pytest.raises(ValueError, match="cannot be listed: folders are nested too deeply"):
            build(encoder, f"{folder}/**/*.png", out=tmp_path / "other")
    assert (report.images, report.bad) == (3 + 2, 1)  # below sub, which is one of the hundred
    (told,) = Index(out).skipped(most=10)["files"]
    assert told["name"] == "/".join(["sub", *["d"] * 100])
    assert "nested more than 100 deep" in told["reason"]


def test_what_is_left_out_is_counted_by_names_below_the_inputs(encoder, tmp_path):
    folder, out = write_folder(tmp_path / "images", numbers=range(2)), tmp_path / "index"
    for name in ("a.dng", "sub/b.DNG", "c.cr2"):
        (folder / name).touch()
    (folder / "sub" / "bad.png").write_bytes(b"no image")
    tar = write_tar(tmp_path / "shards" / "x.tar", numbers=range(2))
    tar.write_bytes(pack({"one.png": b"no image"}))
    build(encoder, folder, tar, out=out)
    index = Index(out)
    told = index.skipped(most=10)
    assert told["formats"] == {".dng": 2, ".cr2": 1}
    assert {each["name"] for each in told["files"]} == {"sub/bad.png", "x.tar#one"}
    assert not any(str(tmp_path) in each["reason"] for each in told["files"])
    assert all("not an image" in each["reason"] for each in told["files"])
    assert index.num_skipped == 5
    assert len(index.skipped(most=1)["files"]) == 1
    with (out / "quarantine.jsonl").open("a") as file:
        file.write('{"kind": "ro')  # which a run is writing
    assert index.skipped(most=10) == told


def test_single_file_that_is_gone_leaves_the_index(encoder, tmp_path):
    folder = write_folder(tmp_path / "images", table=False, numbers=range(6))
    files, out = [folder / NAMES[number] for number in (0, 2, 4)], tmp_path / "index"
    build(encoder, *files, out=out)
    files[1].unlink()
    report = build(encoder, files[0], files[2], out=out)
    assert (report.images, report.deleted) == (2, 1)
    files[1].write_bytes(encoded(drawings()[8]))
    assert build(encoder, out=out).images == 3
    with pytest.raises(ValueError, match=r"there is nothing at .*typo\.png"):
        build(encoder, folder / "typo.png", out=out)


def test_index_of_another_model_is_refused(gallery, encoder, tmp_path):
    other = trained_folder(tmp_path / "other", steps=1)
    with pytest.raises(ValueError, match=r"was made with another model .* name a new folder"):
        build(other, gallery[0], out=gallery[1])
    with pytest.raises(ValueError, match=r"another model .* their vectors cannot be compared"):
        Searcher(other, gallery[1])
    with pytest.raises(ValueError, match=r"another model .* their vectors cannot be compared"):
        load_parts(other, index=gallery[1])


@pytest.mark.parametrize("kind", ["files", "tar"])
def test_images_go_through_a_few_at_a_time(kind, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_WRITTEN_ROWS", 10)
    given = write_folder(tmp_path / "images", table=False)
    for number in range(60):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(given / f"plain {number}.png")
    if kind == "tar":
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            tar.add(given, arcname="x")
        given = tmp_path / "x.tar"
    read, alive, written = [], [], []
    make, embed, write = Record.__init__, embedding.embed_decoded, Store.write

    def note(self, *arguments, **fields):
        make(self, *arguments, **fields)
        read.append(weakref.ref(self))

    def count(encoder, *batch):
        alive.append(sum(each() is not None for each in read))
        return embed(encoder, *batch)

    monkeypatch.setattr(Record, "__init__", note)
    monkeypatch.setattr(embedding, "embed_decoded", count)

    def noted(self, rows):
        written.append(len(rows))
        return write(self, rows)

    monkeypatch.setattr(Store, "write", noted)
    report = build_index(encoder, [given], out=tmp_path / "index", batch=2)
    assert report.images == NUM + 60
    assert max(alive) <= 4 * 2  # batches that are embedded, decoded and read; never all of them
    assert max(written) == 10


def test_run_over_images_that_have_not_changed_can_be_stopped_and_loses_none(indexed, encoder):
    folder, out = indexed(range(3))
    with pytest.raises(StoppedError):
        build_index(encoder, [folder], out=out, stop=lambda: True)
    assert len(rows(out)) == 3
    assert build_index(encoder, [folder], out=out).unchanged == 3


def test_table_that_a_full_disk_left_half_made_is_made_again(tmp_path):
    line = r"the disk is full, or that of temporary files, /.* free some space and run again"
    with full_disk(0), pytest.raises(ValueError, match=line):
        Store(tmp_path / "index", dim=8)
    assert [path.stem for path in sorted((tmp_path / "index").iterdir())] == ["images"]
    assert Store(tmp_path / "index", dim=8).table.count_rows() == 0


def test_index_that_is_locked_or_damaged_is_not_written(indexed, encoder):
    folder, out = indexed(range(2))
    with FileLock(out / ".lock"), pytest.raises(ValueError, match="another process is writing"):
        build(encoder, folder, out=out)
    shutil.rmtree(out / "images.lance" / "_versions")
    with pytest.raises(ValueError, match="the index is damaged"):
        build(encoder, out=out)
    assert any((out / "images.lance" / "data").iterdir())


@pytest.mark.parametrize("is_first", [True, False])
def test_run_beside_another_one_undoes_nothing(is_first, indexed, encoder, tmp_path, monkeypatch):
    folder, out = indexed(range(2))
    out = tmp_path / "first" if is_first else out
    other, list_files = write_folder(tmp_path / "other", numbers=range(2, 4)), building._list_input

    def list_late(*given, **settings):
        monkeypatch.undo()
        build(encoder, other, out=out)
        return list_files(*given, **settings)

    monkeypatch.setattr(building, "_list_input", list_late)
    with pytest.raises(ValueError, match="another process has changed it meanwhile; run again"):
        build(encoder, folder, out=out)
    assert build(encoder, folder, out=out).images == 4


def test_folder_of_something_else_is_left_alone(encoder, tmp_path):
    folder = write_folder(tmp_path / "images", numbers=range(2))
    with pytest.raises(ValueError, match="something else than an index"):
        build(encoder, folder, out=folder)
    with pytest.raises(ValueError, match="nothing to index"):
        build(encoder, out=tmp_path / "index")
    assert not (tmp_path / "index").exists()
    for options in ({"batch": 0}, {"approximate_from": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is 0"):
            build_index(encoder, [folder], out=tmp_path / "index", **options)


def test_index_that_is_not_finished_says_so(encoder, tmp_path, monkeypatch, caplog):
    folder, out = write_folder(tmp_path / "images"), tmp_path / "index"
    embed, batches = embedding.embed_decoded, []

    def cut_off(encoder, read, *batch):
        batches.append(len(read.records))
        if len(batches) != 2:
            raise KeyboardInterrupt
        return embed(encoder, read, *batch)

    monkeypatch.setattr(building, "_WRITTEN_EVERY_S", 0)
    monkeypatch.setattr(embedding, "embed_decoded", cut_off)
    with pytest.raises(KeyboardInterrupt):
        build(encoder, folder, out=out)
    with pytest.raises(ValueError, match=r"not finished: its first run was cut off.*run vlmo inde"):
        Index(out)
    with pytest.raises(KeyboardInterrupt):
        build(encoder, folder, out=out)
    assert Index(out).num_images == 8  # it answers while the rest is indexed
    assert "has not ended, so that new images may be missing" in caplog.messages.pop()
    caplog.clear()
    monkeypatch.undo()
    assert build(encoder, out=out).encoded == NUM - 8
    assert Index(out).num_images == NUM
    assert not caplog.messages

    Image.new("RGB", (20, 20)).save(folder / "new.png")
    monkeypatch.setattr(embedding, "embed_decoded", cut_off)
    with pytest.raises(KeyboardInterrupt):
        build(encoder, out=out)
    assert Index(out).num_images == NUM
    assert "has not ended, so that new images may be missing" in caplog.messages[0]


def test_keys_that_repeat_after_numbering_leave_one_row(encoder, tmp_path) -> None:
    """A shard's second `a` becomes `a#INDEX`, which a hostile shard holds as a key of its own."""
    images = [encoded(drawings()[number]) for number in range(3)]
    for turn in range(2):
        captions = ["one", "two", f"three {turn}"]
        table = pa.table({"key": ["a#2", "a", "a"], "image": images, "caption": captions})
        pq.write_table(table, tmp_path / "s.parquet")
        build_index(encoder, [tmp_path / "s.parquet"], out=tmp_path / "index")
    ids = Store(tmp_path / "index", dim=encoder.dim).table.to_arrow()["id"].to_pylist()
    assert len(ids) == len(set(ids)) == 2


def test_new_images_start_no_threads_of_their_own_and_ask_the_table_for_no_bytes(
    encoder, tmp_path, monkeypatch
):
    asked, started, select, start = [], [], Store.select, threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda self: (started.append(self.name), start(self))[1]
    )
    monkeypatch.setattr(
        Store,
        "select",
        lambda self, column, *by, **how: (asked.append(column), select(self, column, *by, **how))[
            1
        ],
    )
    images = write_folder(tmp_path / "images")
    assert build_index(encoder, [images], out=tmp_path / "index", batch=1).encoded == NUM
    assert asked == ["id"]
    assert len([name for name in started if name.startswith("ThreadPoolExecutor")]) < NUM
