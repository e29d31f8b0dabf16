"""Times, places and cameras are read from EXIF data, and times from XMP."""

from datetime import UTC, datetime

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.retrieval.toy_index import encoded
from tests.toy_heic import heic

from vlmo.data.capture import captured, dated, position
from vlmo.data.decoding import read_info

# Pillow's, of tags that it leaves out.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
MAKE, MODEL, CHANGED, MORE, GPS = 0x010F, 0x0110, 0x0132, 0x8769, 0x8825
NOWHERE, FAR = ({1: "N", 2: (north, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)} for north in (0.0, 99.0))
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
    main = {MAKE: "Canon", MODEL: "Canon EOS R5", CHANGED: "2022:01:02 03:04:05"}
    data = exif(main, {0x9003: "2021:06:14 10:33:00"}, PARIS)
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
        (exif({}, {0x9004: "2020:12:31 23:59:59"}), {"taken": "2020-12-31T23:59:59"}),
        (exif({CHANGED: "0000:00:00 00:00:00"}, None, NOWHERE), {}),
        (exif({CHANGED: "2022:13:02 03:04:05"}, None, FAR), {}),
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
    changed, made = (
        exif({CHANGED: "2022:01:02 03:04:05"}),
        exif({}, {0x9003: "2022:01:02 03:04:05"}),
    )
    for data, source in ((changed, "xmp"), (made, "exif")):
        assert read(kind, xmp=xmp, exif=data)["taken_from"] == source
    element = b"<photoshop:DateCreated>2019-08-07</photoshop:DateCreated>"
    assert captured({"xmp": element})["taken"] == "2019-08-07T00:00:00"


DATES = (
    b'exif:DateTimeOriginal="2011-01-01"',
    b"exif:DateTimeDigitized = '2012-01-01'",
    b'xmp:CreateDate= "2013-01-01"',
    b'xmp:ModifyDate ="2014-01-01"',
)


@pytest.mark.parametrize("first", range(4))
def test_original_date_comes_before_digitized_created_and_changed_in_any_order(first) -> None:
    dates = DATES[first:]
    for order in (dates, dates[::-1]):
        taken = captured({"xmp": XMP % b" ".join(order)})["taken"]
        assert taken == f"201{first + 1}-01-01T00:00:00"
    tags = {0: ({}, {0x9003: "2021:01:01"}), 1: ({}, {0x9004: "2022:01:01"})}
    tags[3] = ({CHANGED: "2024:01:01"}, {})
    if first in tags:  # as good as XMP's, EXIF's counts; a worse one does not
        data = exif(*tags[first])
        assert captured({"xmp": XMP % dates[0], "exif": data})["taken_from"] == "exif"
        for better in DATES[:first]:
            assert captured({"xmp": XMP % better, "exif": data})["taken_from"] == "xmp"


def test_damaged_fields_leave_the_others() -> None:
    good = {"camera": "Canon", "taken": "2021-06-14T10:33:00", "latitude": 48.856667}
    main = {MAKE: "Canon", CHANGED: "2022:01:02 03:04:05"}
    data = exif(main, {0x9003: "2021:06:14 10:33:00"}, PARIS)
    order = "little" if data[6:8] == b"II" else "big"

    def without(tag: int, *, kind: int | None = None, value: int | None = None) -> dict:
        """Read the data with another type or value of a tag."""
        at = data.index(tag.to_bytes(2, order))
        damaged = bytearray(data)
        if kind is not None:
            damaged[at + 2 : at + 4] = kind.to_bytes(2, order)
        if value is not None:
            damaged[at + 8 : at + 12] = value.to_bytes(4, order)
        found = captured({"exif": bytes(damaged)})
        return {name: found.get(name) for name in good}

    far = 1 << 30
    assert without(GPS, value=far) == good | {"latitude": None}
    assert without(MAKE, kind=4) == good | {"camera": None}
    assert without(MORE, value=far) == good | {"taken": "2022-01-02T03:04:05"}
    xmp = XMP % DATES[0]
    assert captured({"exif": data[:20], "xmp": xmp})["taken"] == "2011-01-01T00:00:00"


def test_lower_case_sides_and_texts_of_four_bytes() -> None:
    place = {1: "s", 2: (33.0, 0.0, 0.0), 3: "w", 4: (70.0, 0.0, 0.0)}
    south = captured({"exif": exif({MODEL: "R5m"}, None, place)})
    assert south == {"camera": "R5m", "latitude": -33.0, "longitude": -70.0}


def test_times_and_places_that_cannot_be() -> None:
    moment = datetime(2020, 2, 29, 12, tzinfo=UTC).timestamp()
    expected = {"taken": "2020-02-29T12:00:00", "taken_from": "takeout"}
    assert dated(moment, source="takeout", zone=UTC) == expected
    assert dated(1e20, source="file") == dated(float("nan"), source="file") == {}
    places = ((0.0, 0.0), (91.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0))
    assert [position(*place) for place in places] == [{}] * 4
