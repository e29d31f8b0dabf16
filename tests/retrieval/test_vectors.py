from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.integrations.toy_gallery import CAPTIONS, drawings
from tests.retrieval.toy_index import NAMES, write_folder, write_tar

from vlmo.retrieval.vectors import embed_images, embed_texts

# Batches of other sizes add up in another order.
CLOSE = 1e-5


def read(path, name):
    """Names and vectors of a file."""
    table = pq.read_table(path)
    return table[name].to_pylist(), np.array(table["vector"].to_pylist(), dtype=np.float32)


def test_images_become_vectors(encoder, tmp_path):
    folder = write_folder(tmp_path / "images", numbers=range(10))
    (folder / "bad.jpg").write_text("no image")
    write_tar(tmp_path / "x.tar", numbers=range(10, 14))
    out = tmp_path / "new" / "vectors.parquet"
    written = embed_images(encoder, [folder, tmp_path / "x.tar"], out=out, batch=4)
    names, vectors = read(out, "path")
    assert (written.rows, written.bad) == (14, 1)
    assert set(written.files) == set(out.parent.iterdir())
    expected = dict(zip([str(folder / name) for name in NAMES[:10]], encoder.embed_images(drawings()), strict=False))
    tar = [f"{tmp_path}/x.tar#{number:05d}" for number in range(10, 14)]
    expected |= dict(zip(tar, encoder.embed_images(drawings()[10:14]), strict=True))
    assert sorted(names) == sorted(expected)
    np.testing.assert_allclose(vectors, [expected[name] for name in names], atol=CLOSE)
    assert "bad.jpg" in json.loads((out.parent / f"{out.name}.quarantine.jsonl").read_text())["reason"]


def test_texts_become_vectors(encoder, tmp_path):
    texts = [caption for captions in CAPTIONS for caption in captions] * 3
    out = tmp_path / "vectors.parquet"
    assert embed_texts(encoder, iter(texts), out=out).rows == len(texts)
    names, vectors = read(out, "text")
    assert names == texts
    np.testing.assert_allclose(vectors, encoder.embed_texts(texts), atol=CLOSE)


def test_image_that_two_inputs_lead_to_is_written_once(encoder, tmp_path):
    folder = write_folder(tmp_path / "images", numbers=range(4))
    tar = write_tar(folder / "x.tar", numbers=range(4, 6))
    out = tmp_path / "vectors.parquet"
    assert embed_images(encoder, [folder, folder / NAMES[0], tar, f"{folder}/*.png"], out=out).rows == 6
    names, _ = read(out, "path")
    assert len(set(names)) == 6


def test_file_that_is_there_is_left_alone(encoder, tmp_path):
    folder = write_folder(tmp_path / "images", numbers=range(2))
    (folder / "bad.jpg").write_text("no image")
    out = tmp_path / "vectors.parquet"
    assert len(embed_images(encoder, [folder], out=out).files) == 2
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"vectors\.parquet exists already; name a new file"):
        embed_images(encoder, [folder], out=out)
    with pytest.raises(ValueError, match="exists already"):
        embed_texts(encoder, ["a"], out=out)
    assert out.read_bytes() == before
    out.unlink()
    (folder / "bad.jpg").unlink()
    assert embed_images(encoder, [folder], out=out).files == (out,)
    assert not (tmp_path / "vectors.parquet.quarantine.jsonl").exists()


def test_nothing_is_left_of_what_fails(encoder, tmp_path):
    with pytest.raises(ValueError, match=r"\.parquet"):
        embed_texts(encoder, ["a"], out=tmp_path / "out.csv")
    with pytest.raises(ValueError, match="no text to embed"):
        embed_texts(encoder, [], out=tmp_path / "out.parquet")
    with pytest.raises(ValueError, match="there is nothing at"):
        embed_images(encoder, [tmp_path / "nowhere"], out=tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())
