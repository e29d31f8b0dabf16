"""Dates, places and albums of photographs: where they come from, and searches by them."""

import json
import math
import os
import unicodedata
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.data.test_capture import CHANGED, PARIS, SANTIAGO, exif
from tests.integrations.toy_gallery import CAPTIONS, drawings
from tests.retrieval.toy_index import NAMES, build, encoded, rows, write_folder, write_tar
from tests.toy_heic import heic

from vlmo.retrieval import Index, PhotoFilter, Searcher, metadata
from vlmo.retrieval import index as index_module
from vlmo.retrieval.filters import photos_passing
from vlmo.retrieval.index import MAX_BYTES

PHOTO = ("taken", "taken_from", "latitude", "longitude", "camera", "album", "title")
FILES = {  # by the number of a drawing: its path, and what it says
    0: ("loose.jpg", {}),
    1: ("Italy/Rome/1.jpg", {"exif": exif({CHANGED: "2021:06:14 10:33:00", 272: "X1"}, {}, PARIS)}),
    2: ("Italy/Rome/2.heic", {"exif": exif({CHANGED: "2021:06:30 23:59:59"})}),
    3: ("Italy/Florence/3.jpg", {"xmp": b'<a xmp:CreateDate="2021-07-01T00:00:00"/>'}),
    4: ("Chile/4.webp", {"exif": exif({CHANGED: "2019:01:02 03:04:05"}, None, SANTIAGO)}),
    5: ("Chile/5.jpg", {}),
    6: ("Chile/5(1).jpg", {"exif": exif({CHANGED: "2018:12:31 12:00:00"})}),
}
KINDS = {".jpg": "JPEG", ".webp": "WEBP"}
TAKEOUT = {
    "title": "5.jpg",
    "description": "a lake",
    "photoTakenTime": {"timestamp": "1577836800"},  # 2020-01-01T00:00:00 UTC
    "geoData": {"latitude": -33.45, "longitude": -70.66, "altitude": 0.0},
}


def write_photos(folder: Path) -> Path:
    for number, (name, options) in FILES.items():
        path, image = folder / name, drawings()[number].convert("RGB")
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = KINDS.get(path.suffix)
        data = heic(image, **options) if kind is None else encoded(image, kind, **options)
        path.write_bytes(data)
    moment = datetime(2022, 3, 4, 5, 6, 7).timestamp()
    os.utime(folder / "loose.jpg", (moment, moment))
    (folder / "Chile" / "5.jpg.supplemental-metadata.json").write_text(json.dumps(TAKEOUT))
    other = TAKEOUT | {"title": "other.jpg", "description": ""}
    other["geoData"] = {"latitude": 0.0, "longitude": 0.0}
    (folder / "Chile" / "5.jpg.supplemental-me(1).json").write_text(json.dumps(other))
    return folder


@pytest.fixture(scope="module")
def photos(encoder, tmp_path_factory):
    base = tmp_path_factory.mktemp("photos")
    folder = write_photos(base / "Pictures")
    build(encoder, folder, out=base / "index")
    return Searcher(encoder, base / "index"), folder


def numbers(result) -> list[int]:
    by_name = {f"Pictures/{name}": number for number, (name, _) in FILES.items()}
    return [by_name["Pictures/" + hit.path.rpartition("/Pictures/")[2]] for hit in result.hits]


def test_columns_are_those_of_the_files(photos):
    searcher, folder = photos
    table = rows(searcher.index.folder)
    described = {number: table[str(folder / name)] for number, (name, _) in FILES.items()}
    assert {n: [row.get(column) for column in PHOTO] for n, row in described.items()} == {
        0: ["2022-03-04T05:06:07", "file", None, None, None, "Pictures", None],
        1: ["2021-06-14T10:33:00", "exif", 48.856667, 2.352222, "X1", "Italy/Rome", None],
        2: ["2021-06-30T23:59:59", "exif", None, None, None, "Italy/Rome", None],
        3: ["2021-07-01T00:00:00", "xmp", None, None, None, "Italy/Florence", None],
        4: ["2019-01-02T03:04:05", "exif", -33.441667, -70.65, None, "Chile", None],
        5: ["2020-01-01T00:00:00", "takeout", -33.45, -70.66, None, "Chile", "5.jpg"],
        6: ["2018-12-31T12:00:00", "exif", None, None, None, "Chile", "other.jpg"],
    }
    assert described[5]["captions"] == ["a lake"]
    for number, row in described.items():
        assert (row["width"], row["height"]) == drawings()[number].size


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"since": "2021", "until": "2021"}, {1, 2, 3}),
        ({"since": "2021-06", "until": "2021-06"}, {1, 2}),
        ({"since": "2021-06-30", "until": "2021-07-01"}, {2, 3}),
        ({"until": "2021-06-14T10:33"}, {1, 4, 5, 6}),
        ({"since": "2021-06-14T10:34"}, {0, 2, 3}),
        ({"near": "48.85,2.35,1km"}, {1}),
        ({"near": "-33.44, -70.65, 0.5 km"}, {4}),
        ({"near": "-33.44,-70.65,2km"}, {4, 5}),
        ({"near": "0,0,20016km"}, {1, 4, 5}),
        ({"album": "rome"}, {1, 2}),
        ({"album": "Italy"}, {1, 2, 3}),
        ({"album": "/ITALY//Rome/"}, {1, 2}),
        ({"album": "/"}, {0, 1, 2, 3, 4, 5, 6}),
        ({"album": "Rom"}, set()),
        ({"album": "o'clock"}, set()),
        ({"album": "chile", "since": "2019", "near": "-33,-70,200km"}, {4, 5}),
        ({"album": "chile", "where": "taken_from = 'exif'"}, {4, 6}),
    ],
)
def test_filters_give_exactly_what_passes_them(photos, asked, expected, monkeypatch):
    searcher, _ = photos
    asked = dict(asked)
    options = {"where": asked.pop("where", None), "photos": PhotoFilter(**asked)}
    for limit in (MAX_BYTES, 1):  # in memory, and while the table is read
        monkeypatch.setattr(index_module, "MAX_BYTES", limit)
        searcher = Searcher(searcher.encoder, Index(searcher.index.folder))
        assert set(numbers(searcher.search("a red circle", rerank=0, **options))) == expected
        by_date = numbers(searcher.search(sort="date", **options))
        # 0 has the date of its file alone.
        assert by_date == [number for number in (3, 2, 1, 5, 4, 6, 0) if number in expected]


def test_order_by_date_is_that_of_the_best(photos):
    searcher, _ = photos
    best = searcher.search(CAPTIONS[1][0], top=3)
    sorted_ = searcher.search(CAPTIONS[1][0], top=3, sort="date")
    assert {hit.id for hit in sorted_.hits} == {hit.id for hit in best.hits}
    times = [hit.metadata["taken"] for hit in sorted_.hits]
    assert times == [*sorted(times[:-1], reverse=True), "2022-03-04T05:06:07"]  # of the file alone
    assert numbers(searcher.search(sort="date", top=2)) == [3, 2]
    with pytest.raises(ValueError, match="there is no query"):
        searcher.search(photos=PhotoFilter(since="2021"))


def test_image_without_a_date_of_its_own_is_in_no_month_and_last_and_told(photos):
    searcher, _ = photos
    groups = searcher.index.groups()
    assert groups["num_undated"] == 1
    counts = {month["name"]: month["count"] for month in groups["months"]}
    assert counts == {"2021-07": 1, "2021-06": 2, "2020-01": 1, "2019-01": 1, "2018-12": 1}
    assert list(counts) == sorted(counts, reverse=True)
    assert numbers(searcher.search("a red circle", top=7, sort="date"))[-1] == 0
    late = searcher.search("a red circle", photos=PhotoFilter(since="2021-07"), rerank=0)
    assert set(numbers(late)) == {0, 3}
    assert (late.num_undated, "1 of 2 have no date of their own" in (late.note or "")) == (1, True)
    assert searcher.search("a red circle", photos=PhotoFilter(album="Rome"), rerank=0).note is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"since": "June"}, "the date is 'June'; give one"),
        ({"until": "2021-13"}, "the date is '2021-13'"),
        ({"until": "2021-06-14'09:30"}, "the date is"),
        ({"since": "2021-6"}, "the date is '2021-6'"),
        ({"near": "Paris"}, "near is 'Paris'; give degrees"),
        ({"near": "91,0,1km"}, "near is '91,0,1km'"),
        ({"near": "1,2,3"}, "near is '1,2,3'"),
    ],
)
def test_what_is_no_date_or_place_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        PhotoFilter(**asked)


def test_distances_are_those_between_vectors_of_the_sphere():
    """Beside a formula that shares nothing with that of the filter, also around poles and the date line."""
    draw = np.random.default_rng(0)
    latitudes = np.degrees(np.arcsin(draw.uniform(-1, 1, 2000))).round(6)
    longitudes = draw.uniform(-180, 180, 2000).round(6)
    table = pa.table({"latitude": [*latitudes, None], "longitude": [*longitudes, None]})

    def on_sphere(latitude, longitude) -> np.ndarray:
        north, east = np.radians(latitude), np.radians(longitude)
        return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)])

    places = [(48.85, 2.35, 500), (-89.5, 10, 2000), (90, 0, 1500), (12.5, 179.9, 3000)]
    for north, east, km in [*places, (0, 0, 12_000)]:
        found = photos_passing(PhotoFilter(near=f"{north},{east},{km}km"), table)
        cosine = on_sphere(north, east) @ on_sphere(latitudes, longitudes)
        assert found.tolist() == [*(cosine >= math.cos(km / 6371.0088)), False]


def test_albums_match_however_their_accents_are_written():
    forms = ("NFC", "NFD")
    albums = [unicodedata.normalize(form, "Café/Été") for form in forms]
    table = pa.table({"album": [*albums, None]})
    for form in forms:
        passing = photos_passing(PhotoFilter(album=unicodedata.normalize(form, "été")), table)
        assert passing.tolist() == [True, True, False]


def test_json_that_changes_changes_the_row_and_nothing_is_embedded_again(encoder, tmp_path):
    folder, out = write_photos(tmp_path / "Pictures"), tmp_path / "index"
    build(encoder, folder, out=out)
    assert build(encoder, out=out).unchanged == len(FILES)
    image = str(folder / "Chile" / "5.jpg")
    sidecar = Path(f"{image}.supplemental-metadata.json")
    changes = {"title": "\ud800", "photoTakenTime": {"timestamp": "1000000000"}}
    sidecar.write_text(json.dumps(TAKEOUT | changes))
    report = build(encoder, out=out)
    assert (report.encoded, report.reused, report.unchanged) == (0, 1, len(FILES) - 1)
    assert rows(out)[image]["taken"] == "2001-09-09T01:46:40"
    assert rows(out)[str(folder / FILES[1][0])]["camera"] == "X1"
    for damage in (b"{", b"[" * 100_000, b"[]", b'{"photoTakenTime": 7}', b"\xff", b"{}"):
        sidecar.write_bytes(damage)
        assert build(encoder, out=out).bad == 0
        assert rows(out)[image]["taken_from"] == "file", damage[:30]
    sidecar.unlink()
    os.mkfifo(sidecar)  # which would never end
    assert build(encoder, out=out).bad == 0


def test_index_without_these_columns_says_so(encoder, tmp_path, monkeypatch):
    build(encoder, write_tar(tmp_path / "a.tar"), out=tmp_path / "index")
    searcher = Searcher(encoder, tmp_path / "index")
    with pytest.raises(ValueError, match="has no column taken"):
        searcher.search("a red circle", photos=PhotoFilter(since="2021"))
    with pytest.raises(ValueError, match="has no column taken"):
        searcher.search(sort="date")
    monkeypatch.setattr(metadata, "_TEXTS", frozenset())  # an index of an earlier version
    folder = write_folder(tmp_path / "images", table=False, numbers=range(1))
    (folder / "metadata.csv").write_text(f"image,taken\n{NAMES[0]},1999\n")
    build(encoder, folder, out=tmp_path / "numbers")
    with pytest.raises(ValueError, match="no column taken of a text"):
        Searcher(encoder, tmp_path / "numbers").search(sort="date")
    assert Index(tmp_path / "numbers").groups() == {"albums": [], "months": [], "num_undated": 0}


def test_table_of_the_user_comes_first(encoder, tmp_path):
    folder = write_photos(tmp_path / "Pictures")
    (folder / "metadata.csv").write_text("image,taken,album\nItaly/Rome/1.jpg,1999-12-31,Home\n")
    build(encoder, folder, out=tmp_path / "index")
    row = rows(tmp_path / "index")[str(folder / "Italy/Rome/1.jpg")]
    columns = ("taken", "taken_from", "album", "camera")
    assert [row[name] for name in columns] == ["1999-12-31", "table", "Home", "X1"]
