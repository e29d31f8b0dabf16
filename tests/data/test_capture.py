"""Times, places and cameras are read from EXIF data, and times from XMP."""

from datetime import UTC, datetime

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.retrieval.toy_index import encoded
from tests.toy_heic import heic

from vlmo.data.capture import captured, dated, position
from vlmo.data.decoding import read_info

MAKE, MODEL, CHANGED, MORE, GPS = 0x010F, 0x0110, 0x0132, 0x8769, 0x8825
PARIS = {1: "N", 2: (48.0, 51.0, 24.0), 3: "E", 4: (2.0, 21.0, 8.0)}
SANTIAGO = {1: "S", 2: (33.0, 26.5, 0.0), 3: "W", 4: (70.0, 39.0, 0.0)}
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description %b/></rdf:RDF></x:xmpmeta>'


def exif(main: dict, more: dict | None = None, gps: dict | None = None) -> bytes:
    made = Image.Exif()
    made.update(main)
    made.get_ifd(MORE).update(more or {})
    made.get_ifd(GPS).update(gps or {})
    return made.tobytes()


def read(kind: str, **options) -> dict:
    if kind == "PNG" and "xmp" in options:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", options.pop("xmp").decode())
    image = Image.new("RGB", (16, 16))
    data = heic(image, **options) if kind == "HEIF" else encoded(image, kind, **options)
    return captured(read_info(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
def test_exif_of_each_format_is_read(kind) -> None:
    data = exif(
        {MAKE: "Canon", MODEL: "Canon EOS R5", CHANGED: "2022:01:02 03:04:05"}, {0x9003: "2021:06:14 10:33:00"}, PARIS
    )
    assert read(kind, exif=data) == {
        "taken": "2021-06-14T10:33:00",
        "taken_from": "exif",
        "camera": "Canon EOS R5",
        "latitude": 48.856667,  # 48 + 51 / 60 + 24 / 3600
        "longitude": 2.352222,
    }


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (exif({MAKE: "Apple", MODEL: "iPhone 15"}, None, SANTIAGO), {"camera": "Apple iPhone 15"}),
        (exif({CHANGED: "2022:01:02 03:04:05"}), {"taken": "2022-01-02T03:04:05"}),
        (exif({CHANGED: "2022:01:02 03:04:05"}, {0x9004: "2020:12:31 23:59:59"}), {"taken": "2020-12-31T23:59:59"}),
        (exif({CHANGED: "0000:00:00 00:00:00"}, None, {1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}), {}),
        (exif({CHANGED: "2022:13:02 03:04:05"}, None, {1: "N", 2: (99.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}), {}),
        (exif({MODEL: "x" * 9, CHANGED: "2022:01:02 03:04:05"})[:40], {}),
        (b"Exif\0\0" + b"\xff" * 200, {}),
        (b"Exif\0\0II*\0\x08\0\0\0\xff\xff", {}),
    ],
)
def test_places_in_the_south_other_dates_and_damaged_data(data, expected) -> None:
    found = captured({"exif": data})
    assert {name: found.get(name) for name in expected} == expected
    if "Apple" in str(found):
        assert (found["latitude"], found["longitude"]) == (-33.441667, -70.65)
    elif not expected:
        assert found == {}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_xmp_is_read_where_exif_says_no_time(kind) -> None:
    xmp = XMP % b'exif:DateTimeOriginal="2019-08-07T06:05:04+02:00"'
    assert read(kind, xmp=xmp) == {"taken": "2019-08-07T06:05:04", "taken_from": "xmp"}
    assert read(kind, xmp=xmp, exif=exif({CHANGED: "2022:01:02 03:04:05"}))["taken_from"] == "exif"
    assert (
        captured({"xmp": b"<photoshop:DateCreated>2019-08-07</photoshop:DateCreated>"})["taken"]
        == "2019-08-07T00:00:00"
    )


def test_times_and_places_that_cannot_be() -> None:
    moment = datetime(2020, 2, 29, 12, tzinfo=UTC).timestamp()
    assert dated(moment, source="takeout", zone=UTC) == {"taken": "2020-02-29T12:00:00", "taken_from": "takeout"}
    assert dated(1e20, source="file") == dated(float("nan"), source="file") == {}
    assert position(0.0, 0.0) == position(91.0, 0.0) == position(0.0, float("inf")) == position(float("nan"), 1.0) == {}
