import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from tests.integrations.toy_gallery import drawings
from tests.retrieval.toy_dual_encoders import MODEL_TYPES, write_dual_encoder
from tests.retrieval.toy_index import NAMES, write_folder
from tests.serving.toy_service import in_base64
from tests.test_cli_tasks import refused
from transformers import AutoModel, AutoProcessor

from vlmo.cli import main
from vlmo.retrieval import Encoder, Searcher, build_index
from vlmo.serving import photos
from vlmo.serving.app import create_app
from vlmo.serving.parts import load_parts

# Two ways to the same sums, in float32.
CLOSE = 1e-5
TEXTS = ["a red circle", "Blue SQUARES", "a green star " * 20]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("dual-encoders")
    return {name: write_dual_encoder(name, base / name) for name in MODEL_TYPES}


@pytest.fixture
def clip(folders, tmp_path) -> Path:
    """A copy of the toy CLIP, which the test may change."""
    return Path(shutil.copytree(folders["clip"], tmp_path / "clip"))


def change(file: Path, **settings: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_vectors_are_those_of_the_library(folders, name):
    encoder = Encoder(folders[name])
    model = AutoModel.from_pretrained(folders[name]).eval()
    processor = AutoProcessor.from_pretrained(folders[name])
    # Wide and high images, so that a crop, a stretch or a mask shows.
    images = [drawings()[0].resize((60, 30)), drawings()[5].resize((20, 50)), drawings()[9]]
    padding = {"clip": True}.get(name, "max_length")
    length = {"clip": 20}.get(name, 64)
    tokens = processor.tokenizer(
        TEXTS, padding=padding, max_length=length, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        expected_images = model.get_image_features(
            **processor.image_processor(images, return_tensors="pt")
        ).pooler_output
        expected_texts = model.get_text_features(**tokens).pooler_output
        scale = model.logit_scale.exp().item()
    for vectors, expected in (
        (encoder.embed_images(images), expected_images),
        (encoder.embed_texts(TEXTS), expected_texts),
    ):
        expected = torch.nn.functional.normalize(expected, dim=-1).numpy()
        np.testing.assert_allclose(vectors, expected, atol=CLOSE)
        # Vectors that differ, so that the comparison says something.
        assert (vectors @ vectors.T)[0, 1] < 0.999
        assert vectors.shape[1] == encoder.dim
    assert encoder.inverse_temperature == pytest.approx(scale)
    np.testing.assert_allclose(
        encoder.embed_texts(["blue squares"])[0], encoder.embed_texts(TEXTS)[1], atol=CLOSE
    )


def test_tokens_are_counted_without_padding(folders):
    counts = Encoder(folders["siglip"]).count_tokens(["red", "red square " * 20])
    assert counts[0] < 6
    assert counts[1] == 64


@pytest.mark.parametrize(
    ("file", "settings", "is_same"),
    [
        ("config.json", {"transformers_version": "9"}, True),
        ("tokenizer_config.json", {"model_max_length": 10}, False),
        ("processor_config.json", {"image_processor": {"do_center_crop": False}}, False),
    ],
)
def test_fingerprint_follows_weights_and_processor(folders, clip, file, settings, is_same):
    before = Encoder(folders["clip"]).fingerprint
    assert Encoder(clip).fingerprint == before
    if "image_processor" in settings:
        image = json.loads((clip / file).read_text())["image_processor"]
        settings = {"image_processor": image | settings["image_processor"]}
    change(clip / file, **settings)
    assert (Encoder(clip).fingerprint == before) is is_same
    weights = bytearray((clip / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (clip / "model.safetensors").write_bytes(weights)
    assert Encoder(clip).fingerprint != before


def test_damaged_folders_and_other_models_are_refused(clip):
    for engine in ("onnx", "openvino"):
        with pytest.raises(ValueError, match="engine torch"):
            Encoder(clip, engine=engine)
    weights = clip / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be loaded"):
        Encoder(clip)
    weights.unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        Encoder(clip)
    weights.write_bytes(whole)
    change(clip / "config.json", model_type="bert", architectures=["BertModel"])
    with pytest.raises(ValueError, match=r"holds a bert; expected .* clip, siglip, siglip2"):
        Encoder(clip)


def test_code_of_a_folder_is_refused_and_not_run(clip):
    (clip / "code.py").write_text("raise SystemExit('it ran')")
    names = {"auto_map": {"AutoProcessor": "code.Processor"}, "processor_class": "Processor"}
    change(clip / "processor_config.json", **names)
    with pytest.raises(ValueError, match="cannot be loaded"):
        Encoder(clip)


def test_vectors_are_written_by_the_command(folders, tmp_path):
    images = write_folder(tmp_path / "images", numbers=range(2), table=False)
    main(["embed", str(folders["siglip"]), str(images), "--out", str(tmp_path / "v.parquet")])
    vectors = np.stack(pq.read_table(tmp_path / "v.parquet")["vector"].to_pylist())
    expected = Encoder(folders["siglip"]).embed_images(drawings()[:2])
    order = [0, 1] if np.allclose(vectors, expected, atol=CLOSE) else [1, 0]
    np.testing.assert_allclose(vectors, expected[order], atol=CLOSE)


def test_folder_that_lacks_tensors_is_refused(clip):
    model = AutoModel.from_pretrained(clip)
    state = model.state_dict()
    del state["text_projection.weight"]
    model.save_pretrained(clip, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks 1 tensors, such as text_projection\.weight"):
        Encoder(clip)


def test_index_search_and_service_work_and_reranking_is_refused(folders, tmp_path, capsys):
    images, index = (
        write_folder(tmp_path / "images", numbers=range(6), table=False),
        tmp_path / "index",
    )
    main(["index", str(folders["clip"]), str(images), "--out", str(index)])
    capsys.readouterr()
    main(["search", str(index), "a red circle", "--json", "--top", "6"])
    hits = json.loads(capsys.readouterr().out)["hits"]
    encoder = Encoder(folders["clip"])
    scores = encoder.embed_images(drawings()[:6]) @ encoder.embed_texts(["a red circle"])[0]
    np.testing.assert_allclose(
        [hit["similarity"] for hit in hits], sorted(scores, reverse=True), atol=1e-3
    )
    message = refused(["search", str(index), "a red circle", "--rerank", "4"], capsys)
    assert "no fusion encoder; leave rerank at 0" in message
    with pytest.raises(ValueError, match="no fusion encoder"):
        encoder.match(drawings()[:1], ["red"])
    with pytest.raises(ValueError, match="made with another model"):
        Searcher(Encoder(folders["siglip"]), index)
    with TestClient(create_app(load_parts(folders["clip"], index=index))) as client:
        answer = client.post("/v1/search", json={"text": "a red circle", "top": 6})
        assert [hit["id"] for hit in answer.json()["hits"]] == [hit["id"] for hit in hits]
        image = in_base64((images / NAMES[3]).read_bytes())
        answer = client.post("/v1/search", json={"image": image, "top": 1})
        assert answer.json()["hits"][0]["similarity"] == pytest.approx(1, abs=1e-3)
        answer = client.post("/v1/search", json={"text": "a red circle", "rerank": 4})
        assert answer.status_code == 422
        assert "no fusion encoder" in answer.json()["error"]["message"]
        assert client.get("/v1/about").json()["can_rerank"] is False


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_images_of_the_other_models_are_found_by_themselves(folders, tmp_path, name):
    images, index = write_folder(tmp_path / "images", numbers=range(4)), tmp_path / "index"
    build_index(folders[name], [images], out=index)
    hits = Searcher(folders[name], index).search(drawings()[2], top=1).hits
    assert hits[0].similarity == pytest.approx(1, abs=1e-3)


def test_photos_takes_a_folder_of_transformers(folders, tmp_path, monkeypatch):
    images = write_folder(tmp_path / "images", numbers=range(2), table=False)
    given = []
    monkeypatch.setattr(photos, "serve_photos", lambda *args, **_: given.extend(args))
    index = tmp_path / "index"
    main(["photos", str(images), "--model", str(folders["clip"]), "--index", str(index)])
    assert given[0].fingerprint == Encoder(folders["clip"]).fingerprint


def test_a_vlmo_reranks_what_another_model_found(folders, model, encoder, tmp_path, capsys):
    images = write_folder(tmp_path / "images", numbers=range(6), table=False)
    index = tmp_path / "index"
    build_index(folders["clip"], [images], out=index)
    both = Encoder(folders["clip"], reranker=encoder)
    text = "a red circle"
    np.testing.assert_allclose(
        both.match(drawings()[:2], [text] * 2),
        encoder.match(drawings()[:2], [text] * 2),
        atol=CLOSE,
    )
    hits = Searcher(both, index).search(text, top=6, rerank=6, weight=1).hits
    paths = [Path(hit.path).relative_to(images) for hit in hits]
    matches = encoder.match([drawings()[NAMES.index(str(path))] for path in paths], [text] * 6)
    np.testing.assert_allclose([hit.match for hit in hits], matches, atol=CLOSE)
    assert sorted(matches, reverse=True) == list(matches)
    words = ["--reranker", str(model), "--rerank", "6", "--rerank-weight", "1", "--top", "6"]
    main(["search", str(index), text, "--json", *words])
    shown = json.loads(capsys.readouterr().out)
    assert [hit["id"] for hit in shown["hits"]] == [hit.id for hit in hits]
    with TestClient(create_app(load_parts(folders["clip"], index=index, reranker=model))) as client:
        body = {"text": text, "top": 6, "rerank": 6, "weight": 1}
        answer = client.post("/v1/search", json=body).json()
        assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in hits]
        documents = [in_base64((images / name).read_bytes()) for name in NAMES[:3]]
        body = {"query": text, "documents": [{"image": image} for image in documents]}
        answer = client.post("/v1/rerank", json=body | {"weight": 1})
        order = [result["index"] for result in answer.json()["results"]]
        assert order == np.argsort(-encoder.match(drawings()[:3], [text] * 3)).tolist()
    with pytest.raises(ValueError, match="no fusion encoder; rerank with another VLMo"):
        Encoder(model, reranker=folders["siglip"])
