from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.integrations.toy_gallery import CAPTIONS, drawings
from tests.retrieval.toy_index import NAMES, write_folder, write_tar

from vlmo import VLMoConfig, VLMoForImageTextRetrieval
from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.model.stages import start_from
from vlmo.retrieval import Encoder
from vlmo.retrieval.vectors import embed_images, embed_texts

# Two ways to the same sums, in float32.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def plain(model):
    return load_retrieval_model(model)


def test_vectors_are_those_of_the_model(encoder, plain):
    own, processor = plain
    inputs = processor(images=drawings(), text=[captions[0] for captions in CAPTIONS], return_tensors="pt")
    with torch.inference_mode():
        images = own.get_image_features(inputs["pixel_values"]).numpy()
        texts = own.get_text_features(inputs["input_ids"], inputs["attention_mask"]).numpy()
    np.testing.assert_allclose(encoder.embed_images(drawings()), images, atol=CLOSE)
    np.testing.assert_allclose(encoder.embed_texts([captions[0] for captions in CAPTIONS]), texts, atol=CLOSE)
    assert encoder.dim == images.shape[1]
    assert encoder.embed_images([]).shape == encoder.embed_texts([]).shape == (0, encoder.dim)


def test_short_vectors_are_the_first_dimensions_normalised_again(encoder, model):
    short, texts = Encoder(model, dim=8), [captions[0] for captions in CAPTIONS]
    for cut, whole in (
        (short.embed_images(drawings()), encoder.embed_images(drawings())),
        (short.embed_texts(texts), encoder.embed_texts(texts)),
    ):
        assert cut.dtype == np.float32
        first = whole[:, :8]
        np.testing.assert_allclose(cut, first / np.sqrt((first**2).sum(1, keepdims=True)), atol=CLOSE)
    assert (short.dim, short.fingerprint) == (8, encoder.fingerprint)
    assert short.embed_images([]).shape == short.embed_texts([]).shape == (0, 8)
    np.testing.assert_array_equal(Encoder(model, dim=32).embed_texts(texts), encoder.embed_texts(texts))
    for wrong in (0, -8, 12, 40):
        with pytest.raises(ValueError, match=rf"dim is {wrong}, but .* 32 dimensions; give a multiple of 8"):
            Encoder(model, dim=wrong)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("image_mean", [0.485, 0.456, 0.406]), ("image_std", [0.2, 0.5, 0.5]), ("resample", 2), ("do_normalize", False)],
)
def test_folder_whose_processor_prepares_other_pixels_is_refused(model, tmp_path, setting, value):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"][setting] = value
    file.write_text(json.dumps(settings))
    started = VLMoForImageTextRetrieval(VLMoConfig.from_pretrained(folder))
    for load in (
        Encoder,
        lambda folder: Encoder(folder, engine="onnx"),
        load_retrieval_model,
        lambda folder: start_from(started, folder),
    ):
        with pytest.raises(ValueError, match=rf"processor_config\.json: {setting} is .*transformers"):
            load(folder)


def test_match_is_the_log_odds_of_the_head(encoder, plain):
    own, processor = plain
    texts = [CAPTIONS[number][0] for number in (0, 5, 9)]
    inputs = processor(images=drawings()[:3], text=texts, return_tensors="pt")
    with torch.inference_mode():
        logits = own.match(**inputs)
    expected = (logits[:, 1] - logits[:, 0]).numpy()
    np.testing.assert_allclose(encoder.match(drawings()[:3], texts), expected, atol=CLOSE)
    assert encoder.match([], []).shape == (0,)
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        encoder.match(drawings()[:2], texts[:1])


def test_tokens_are_counted_with_special_ones_and_as_far_as_they_are_read(encoder, plain):
    _, processor = plain
    assert encoder.count_tokens(["red", "a red circle", "red " * 500]) == [3, 5, processor.max_text_length]


def test_images_of_any_mode_are_embedded_on_white(encoder):
    clear = Image.new("RGBA", (30, 20), (255, 0, 0, 0))
    white = Image.new("RGB", (30, 20), "white")
    vectors = encoder.embed_images([clear, clear.convert("LA"), white, white.convert("L")])
    np.testing.assert_allclose(vectors, vectors[[2, 2, 2, 2]], atol=CLOSE)


def test_fingerprint_follows_content_and_not_place(encoder, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rerank_weight": 0.1, "transformers_version": "9"}))
    (copy / "README.md").write_text("another card")
    assert Encoder(copy).fingerprint == encoder.fingerprint
    assert Encoder(copy).rerank_weight == 0.1
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-4] + bytes(4 if weights[-4:] != bytes(4) else b"\0\0\0?"))
    assert Encoder(copy).fingerprint != encoder.fingerprint


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
