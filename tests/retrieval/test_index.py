import io
import shutil

import numpy as np
import pytest
from PIL import Image
from tests.integrations.toy_gallery import CAPTIONS, drawings
from tests.retrieval.toy_index import NAMES, NUM, rows

from vlmo.retrieval import Encoder, Index


@pytest.fixture(scope="module")
def index(gallery):
    return Index(gallery[1])


def test_hit_holds_everything_of_an_image(index, gallery):
    row = rows(gallery[1])[str(gallery[0] / NAMES[3])]
    (hit,) = index.nearest(np.array(row["vector"]), top=1)
    assert (hit.id, hit.path) == (row["id"], row["path"])
    assert hit.captions == tuple(CAPTIONS[3])
    assert hit.metadata == {"year": 2003, "kind": "cross"}
    assert (hit.width, hit.height) == drawings()[3].size
    assert hit.similarity == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(index.vector(row["id"]), np.array(row["vector"], dtype=np.float32))
    np.testing.assert_array_equal(np.asarray(index.image(row["id"])), np.asarray(drawings()[3]))
    thumbnail = Image.open(io.BytesIO(index.thumbnail(row["id"])))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", drawings()[3].size)


def test_nearest_is_in_the_order_of_the_cosine(index, gallery):
    query = Encoder(index.model_folder).embed_texts(["a green circle"])[0]
    found = rows(gallery[1])
    cosines = {row["id"]: float(query @ np.array(row["vector"])) for row in found.values()}
    hits = index.nearest(query, top=NUM)
    assert [hit.id for hit in hits] == sorted(cosines, key=cosines.__getitem__, reverse=True)
    np.testing.assert_allclose([hit.similarity for hit in hits], sorted(cosines.values(), reverse=True), atol=1e-6)
    assert len(index.nearest(query, top=10_000)) == NUM


@pytest.mark.parametrize("unknown", ["", "nobody", "' or 1=1 --", "\n"])
def test_unknown_id_is_one_line(unknown, index):
    for ask in (index.thumbnail, index.image, index.vector):
        with pytest.raises(ValueError, match="no image has the id"):
            ask(unknown)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("year > 2000; drop table x", "';' at character 12"),
        ("year in (" + "1, " * 7000 + "2)", "at most 20000"),
        ("year" + "-1" * 9000 + " = 2", "too many operators"),
        ("(" * 21 + "year = 1" + ")" * 21, "nested too deeply"),
        ("year > ", "sql parser error"),
        ("year", "cannot be used"),
        ("kind = 3", "cannot be used"),
        ("", "cannot be used"),
        ("yeer > 3", "names yeer, which is no column"),
        ("array_has(year, 1)", "cannot be used"),
    ],
)
def test_filter_that_is_no_condition_is_one_line(where, words, index):
    with pytest.raises(ValueError, match=words) as caught:
        index.nearest(np.ones(32, dtype=np.float32), top=1, where=where)
    assert "Columns: captions, hash, height, id, kind" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_long_lists_and_quoted_signs_pass(index):
    for where in ("year in (" + "1, " * 6000 + "2000)", "`kind` != ';)repeat(' and \"kind\" != 'it''s ('"):
        assert index.nearest(np.ones(32, dtype=np.float32), top=NUM, where=where)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("index.json", None, "is no index"),
        ("index.json", "{", r"index\.json is no JSON .*build the index anew"),
        ("index.json", "[" * 100_000, r"index\.json is no JSON .*build the index anew"),
        ("index.json", '{"version": 2}', "has version 2; this program reads version 3. Index the images again"),
        ("index.json", '{"version": 3}', "the index is damaged"),
        ("images.lance", None, "the index is damaged"),
        ("images.lance/_versions", None, "the index is damaged"),
    ],
)
def test_damaged_index_is_one_line(file, content, words, gallery, tmp_path):
    path = shutil.copytree(gallery[1], tmp_path / "index") / file
    if content is not None:
        path.write_text(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(ValueError, match=words) as caught:
        Index(tmp_path / "index")
    assert "\n" not in str(caught.value)


def test_damaged_data_is_one_line(gallery, tmp_path):
    copy = shutil.copytree(gallery[1], tmp_path / "index")
    for file in (copy / "images.lance" / "data").rglob("*.lance"):
        file.write_bytes(file.read_bytes()[:100])
    index = Index(copy)
    with pytest.raises(ValueError, match="the index is damaged") as caught:
        index.nearest(np.ones(32, dtype=np.float32), top=1)
    assert "\n" not in str(caught.value)
    assert ".rs" not in str(caught.value)
