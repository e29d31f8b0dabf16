import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.integrations.toy_gallery import CAPTIONS, drawings

from vlmo import VLMoConfig, VLMoForImageTextRetrieval
from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.export.onnx import write_onnx
from vlmo.model.stages import start_from
from vlmo.retrieval import Encoder
from vlmo.serving.parts import load_parts

# Two ways to the same sums, in float32.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def plain(model):
    return load_retrieval_model(model)


def test_vectors_are_those_of_the_model(encoder, plain):
    own, processor = plain
    captions = [each[0] for each in CAPTIONS]
    inputs = processor(images=drawings(), text=captions, return_tensors="pt")
    with torch.inference_mode():
        images = own.get_image_features(inputs["pixel_values"]).numpy()
        texts = own.get_text_features(inputs["input_ids"], inputs["attention_mask"]).numpy()
    np.testing.assert_allclose(encoder.embed_images(drawings()), images, atol=CLOSE)
    np.testing.assert_allclose(encoder.embed_texts(captions), texts, atol=CLOSE)
    assert encoder.dim == images.shape[1]
    assert encoder.embed_images([]).shape == encoder.embed_texts([]).shape == (0, encoder.dim)


PREPARATION = [("image_mean", [0.4, 0.4, 0.4]), ("image_std", [0.2, 0.5, 0.5]), ("resample", 2)]
PREPARATION += [(f"do_{step}", False) for step in ("normalize", "resize", "rescale")]
PREPARATION += [("do_center_crop", True), ("rescale_factor", 1 / 127.5), ("size", 0)]
PREPARATION += [("size", {"height": "4", "width": "4"}), ("size", {"height": 8, "width": 4})]


@pytest.mark.parametrize(("setting", "value"), [*PREPARATION, ("size", {"shortest_edge": 8})])
def test_folder_whose_processor_prepares_other_pixels_is_refused(model, tmp_path, setting, value):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"][setting] = value
    file.write_text(json.dumps(settings))
    started = VLMoForImageTextRetrieval(VLMoConfig.from_pretrained(folder))
    for load in (
        lambda: Encoder(folder),
        lambda: Encoder(folder, engine="onnx"),
        lambda: write_onnx(folder, tmp_path / "graphs"),
        lambda: load_parts(folder),
        lambda: start_from(started, folder),
    ):
        with pytest.raises(ValueError, match=rf"config\.json: {setting} is .*(transform|pixels)"):
            load()


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
    counts = encoder.count_tokens(["red", "a red circle", "red " * 500])
    assert counts == [3, 5, processor.max_text_length]


def test_images_of_any_mode_are_embedded_on_white(encoder):
    clear = Image.new("RGBA", (30, 20), (255, 0, 0, 0))
    white = Image.new("RGB", (30, 20), "white")
    vectors = encoder.embed_images([clear, clear.convert("LA"), white, white.convert("L")])
    np.testing.assert_allclose(vectors, vectors[[2, 2, 2, 2]], atol=CLOSE)


def test_fingerprint_follows_content_and_not_place(encoder, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config |= {"rerank_weight": 0.1, "transformers_version": "9"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "README.md").write_text("another card")
    assert Encoder(copy).fingerprint == encoder.fingerprint
    assert Encoder(copy).rerank_weight == 0.1
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert Encoder(copy).fingerprint != encoder.fingerprint


@pytest.mark.parametrize(
    ("file", "settings", "is_same"),
    [
        ("tokenizer_config.json", {"do_lower_case": False}, False),
        ("tokenizer_config.json", {"truncation_side": "left"}, False),
        ("tokenizer_config.json", {"cls_token": "[SEP]"}, False),
        ("tokenizer_config.json", {"is_local": True, "strip_accents": None}, True),
        ("special_tokens_map.json", {"unk_token": "red"}, False),
    ],
)
def test_fingerprint_follows_settings_of_tokens(encoder, model, tmp_path, file, settings, is_same):
    path = shutil.copytree(model, tmp_path / "copy") / file
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | settings))
    other = Encoder(path.parent)
    assert (other.fingerprint == encoder.fingerprint) is is_same
    text = ["A red circle on the left of two blue squares, and a green star under all of it"]
    assert np.allclose(other.embed_texts(text), encoder.embed_texts(text), atol=CLOSE) is is_same


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_input_names": ["input_ids"]}, "lacks input_ids or attention_mask"),
        ({"extra_special_tokens": ["no word"]}, "its tokenizer has"),
        ([], "holds no JSON object"),
    ],
)
def test_tokenizer_that_does_not_fit_the_model_is_refused(model, tmp_path, settings, words):
    path = shutil.copytree(model, tmp_path / "copy") / "tokenizer_config.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | settings if settings else []))
    with pytest.raises(ValueError, match=words):
        Encoder(path.parent)
