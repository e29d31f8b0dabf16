import base64
import importlib
import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import mine_hard_negatives, semantic_search
from tests.integrations.toy_gallery import CAPTIONS, NUM_IMAGES, drawings, trained_folder
from tests.toy_model import toy

from vlmo import VLMoForImageTextRetrieval, VLMoForMaskedLM, VLMoProcessor
from vlmo.integrations.sentence_transformers import (
    VLMoEmbedder,
    VLMoPairScorer,
    load_cross_encoder,
    load_sentence_transformer,
    open_image,
)
from vlmo.retrieval import Encoder, Searcher, build_index
from vlmo.tasks.calibration import write_settings

# Batches of other sizes and padding; sums come in another order. Measured: 1e-7 on vectors of length one,
# 4e-7 on log-odds of up to 3.5.
SAME, SAME_ODDS = 1e-6, 5e-6
TEXTS = [captions[0] for captions in CAPTIONS]
TRUSTED = {"device": "cpu", "trust_remote_code": True, "local_files_only": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained_folder(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def model(folder) -> SentenceTransformer:
    return load_sentence_transformer(folder, device="cpu")


@pytest.fixture(scope="module")
def scorer(folder) -> CrossEncoder:
    return load_cross_encoder(folder, device="cpu")


@pytest.fixture(scope="module")
def ours(folder) -> Encoder:
    return Encoder(folder, device="cpu")


def pair_scores(ours: Encoder, pictures, texts, *, weight: float = 0.5) -> np.ndarray:
    similarity = (ours.embed_images(pictures) * ours.embed_texts(texts)).sum(axis=1)
    odds = ours.match(pictures, texts)
    return (1 - weight) * ours.inverse_temperature * similarity + weight * odds


@pytest.mark.parametrize("batch_size", [1, 64])
def test_embeddings_are_our_features_at_every_batch_size(model, ours, batch_size):
    images = model.encode(drawings(), batch_size=batch_size)
    texts = model.encode(TEXTS, batch_size=batch_size)
    assert np.abs(images - ours.embed_images(drawings())).max() < SAME
    assert np.abs(texts - ours.embed_texts(TEXTS)).max() < SAME
    assert np.abs(np.linalg.norm(images, axis=1) - 1).max() < SAME


def test_mixed_lists_keep_their_order(model, ours):
    pictures = drawings()
    mixed = [TEXTS[0], pictures[3], pictures[1], TEXTS[7]]
    mixed += [{"image": pictures[2]}, {"text": TEXTS[5]}]
    images = ours.embed_images([pictures[number] for number in (3, 1, 2)])
    texts = ours.embed_texts([TEXTS[number] for number in (0, 7, 5)])
    expected = np.stack([texts[0], images[0], images[1], texts[1], images[2], texts[2]])
    for batch_size in (2, 6):
        assert np.abs(model.encode(mixed, batch_size=batch_size) - expected).max() < SAME
    # encode() sorts by length first: as they come, a text before two images.
    vectors = model(model.preprocess(mixed[:3]))["sentence_embedding"].numpy(force=True)
    assert np.abs(vectors - expected[:3]).max() < SAME
    # Tensors of one kind are rows alone: cached losses of the library cut them into pieces.
    assert {len(tensor) for tensor in model.preprocess(TEXTS[:3]).values()} == {3}
    assert "order" not in model.preprocess(TEXTS[:3])


def test_images_in_each_form(model, scorer, ours, tmp_path):
    path, picture = tmp_path / "red.png", drawings()[1]
    picture.save(path)
    array = np.array(picture)
    expected = ours.embed_images([picture])
    address = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for given in (picture, array, tensor, str(path), path, {"image": str(path)}, address):
        assert np.abs(model.encode([given]) - expected).max() < SAME
    assert np.abs(model.encode([{"text": str(path)}]) - ours.embed_texts([str(path)])).max() < SAME
    score = pair_scores(ours, [picture], TEXTS[:1])[0]
    for pair in ((TEXTS[0], picture), {"text": TEXTS[0], "image": str(path)}, (path, TEXTS[0])):
        assert scorer.predict(pair) == pytest.approx(score, abs=SAME_ODDS)


def test_model_says_what_it_is_and_finds_images(model, ours, folder):
    assert model.get_embedding_dimension() == ours.dim == model.encode("a red bar").shape[0]
    assert [model.supports(kind) for kind in ("text", "image", "audio")] == [True, True, False]
    assert model.max_seq_length == 16
    assert model.device.type == "cpu"
    tokenizer = VLMoProcessor.from_pretrained(folder).tokenizer
    assert model.tokenizer.get_vocab() == tokenizer.get_vocab()
    queries, documents = model.encode_query(TEXTS[::2]), model.encode_document(drawings()[::2])
    similarity = model.similarity(queries, documents)
    expected = ours.embed_texts(TEXTS[::2]) @ ours.embed_images(drawings()[::2]).T
    assert np.abs(similarity.numpy() - expected).max() < SAME
    found = similarity.argmax(dim=1)
    assert (found == torch.arange(len(found))).float().mean() > 0.8  # these pairs it has seen
    hits = semantic_search(queries, documents, top_k=1)
    assert [hit[0]["corpus_id"] for hit in hits] == found.tolist()


def test_prompt_is_put_before_texts_only(model, ours):
    prompted = model.encode(["red bar", drawings()[0]], prompt="a ")
    assert np.abs(prompted[0] - ours.embed_texts(["a red bar"])[0]).max() < SAME
    assert np.abs(prompted[1] - ours.embed_images(drawings()[:1])[0]).max() < SAME


MESSAGES = [[{"role": "user", "content": "hi"}]]
MIXED = [{"text": "a", "image": 1}, {"image": "nowhere.png"}]


@pytest.mark.parametrize("entry", [*MIXED, *MESSAGES, ("a", "b"), 3, "data:image/png;base64,AAAA"])
def test_other_inputs_are_refused(model, entry):
    reasons = r"expected a string|nsupported|Incorrect image|nowhere"
    with pytest.raises((ValueError, FileNotFoundError), match=reasons):
        model.encode([entry])


def test_options_of_other_processors_are_refused(model, folder):
    with pytest.raises(ValueError, match="processing_kwargs"):
        model.encode(["a"], processing_kwargs={"text": {"max_length": 4}})
    with pytest.raises(ValueError, match="backend 'torch'"):
        VLMoEmbedder.load(str(folder), backend="onnx")


def test_saved_folder_comes_back_and_is_a_model_folder(folder, tmp_path):
    model = load_sentence_transformer(folder, device="cpu")
    model.prompts["query"] = "a "
    model.similarity_fn_name = "dot"
    model.save(str(tmp_path), create_model_card=False)
    listing = json.loads((tmp_path / "modules.json").read_text())
    (module,) = [entry["type"] for entry in listing]
    assert module == "vlmo.integrations.sentence_transformers.VLMoEmbedder"

    inputs = [*TEXTS[:3], *drawings()[:3]]
    trusted = SentenceTransformer(str(tmp_path), **TRUSTED)
    for again in (load_sentence_transformer(tmp_path, device="cpu"), trusted):
        assert np.array_equal(again.encode(inputs), model.encode(inputs))
        assert again.similarity_fn_name == "dot"
        assert again.prompts["query"] == "a "
        assert np.array_equal(again.encode_query("red bar"), model.encode("a red bar"))

    after = VLMoForImageTextRetrieval.from_pretrained(tmp_path).state_dict()
    for name, tensor in VLMoForImageTextRetrieval.from_pretrained(folder).state_dict().items():
        assert torch.equal(tensor, after[name]), name


def test_model_folder_is_found_by_the_librarys_own_way_or_refused(model, folder):
    """Not the mean of the last states, which would be vectors without a word."""
    inputs = [*TEXTS[:3], *drawings()[:3]]
    plain = SentenceTransformer(str(folder), **TRUSTED)
    assert np.array_equal(plain.encode(inputs), model.encode(inputs))
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(folder), device="cpu")
    with pytest.raises(ValueError, match="VLMoConfig"):
        CrossEncoder(str(folder), device="cpu")


def test_modules_of_strangers_are_refused(folder, tmp_path):
    modules = [VLMoEmbedder.load(str(folder)), Dense(32, 8)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path), create_model_card=False)
    assert load_sentence_transformer(tmp_path).encode(["a", drawings()[0]]).shape == (2, 8)
    listing = tmp_path / "modules.json"
    listing.write_text(listing.read_text().replace(VLMoEmbedder.__module__, "modules_of_others"))
    with pytest.raises(ValueError, match="modules_of_others"):
        load_sentence_transformer(tmp_path)


def test_folder_without_contrast_is_refused(tmp_path):
    toy(VLMoForMaskedLM).save_pretrained(tmp_path)
    for load in (load_sentence_transformer, load_cross_encoder):
        with pytest.raises(ValueError, match="expected VLMoForImageTextRetrieval"):
            load(tmp_path)
        with pytest.raises(ValueError, match=r"no config\.json"):
            load(tmp_path / "nothing")


def test_mined_hard_negatives_are_the_best_wrong_images(model, scorer, ours, tmp_path):
    pictures = drawings()
    paths = [str(tmp_path / f"{row}.png") for row in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    pairs = Dataset.from_dict({"anchor": TEXTS, "positive": paths})
    # With a largest score, the fusion encoder scores the candidates: here all images, so that its order decides alone.
    options = {"cross_encoder": scorer, "range_max": len(pictures) - 1, "max_score": 1e9}
    options |= {"num_negatives": 1, "output_format": "triplet", "verbose": False}
    mined = mine_hard_negatives(pairs, model, **options)
    scores = np.stack([pair_scores(ours, pictures, [text] * len(pictures)) for text in TEXTS])
    np.fill_diagonal(scores, -np.inf)
    assert mined["anchor"][:] == TEXTS
    assert mined["negative"][:] == [paths[row] for row in scores.argmax(axis=1)]


def test_loss_of_sentence_transformers_trains_the_model(folder):
    model = load_sentence_transformer(folder, device="cpu")
    inputs = [model.preprocess(drawings()), model.preprocess(TEXTS)]
    MultipleNegativesRankingLoss(model)(inputs, None).backward()
    head = model[0].model.contrast_head
    for projection in (head.image_projection, head.text_projection):
        assert projection.weight.grad.abs().max() > 0


@pytest.mark.parametrize("batch_size", [1, 7])
def test_scores_mix_similarity_and_log_odds_of_a_match(scorer, ours, batch_size):
    pictures, shifted = drawings(), TEXTS[3:] + TEXTS[:3]
    expected = pair_scores(ours, pictures, shifted)
    scores = scorer.predict(list(zip(shifted, pictures, strict=True)), batch_size=batch_size)
    assert np.abs(scores - expected).max() < SAME_ODDS
    turned = scorer.predict(list(zip(pictures, shifted, strict=True)), batch_size=batch_size)
    assert np.abs(turned - expected).max() < SAME_ODDS


def test_order_is_that_of_a_search_that_reranks_and_of_its_weights(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "model")
    write_settings(other, rerank_weight=0.2, rerank_weight_image_to_text=0.9)
    for row, picture in enumerate(drawings()):
        picture.save(tmp_path / f"{row}.png")
    build_index(other, [f"{tmp_path}/*.png"], out=tmp_path / "index")
    searcher, scorer = Searcher(other, tmp_path / "index"), load_cross_encoder(other, device="cpu")
    alone = load_cross_encoder(other, rerank_weight=1, device="cpu")
    for text, (each, weight) in itertools.product(TEXTS[::5], ((scorer, None), (alone, 1))):
        hits = searcher.search(text, top=NUM_IMAGES, rerank=NUM_IMAGES, weight=weight).hits
        ranking = each.rank(text, drawings())
        order = [int(Path(hit.path).stem) for hit in hits]
        assert [entry["corpus_id"] for entry in ranking] == order
        scores = [entry["score"] for entry in ranking]
        np.testing.assert_allclose(scores, [hit.score for hit in hits], atol=1e-4)
    # Texts are ranked for an image.
    expected = pair_scores(searcher.encoder, drawings()[:1] * len(TEXTS), TEXTS, weight=0.9)
    scores = scorer.predict([(drawings()[0], text) for text in TEXTS])
    assert np.abs(scores - expected).max() < SAME_ODDS


def test_image_of_many_pairs_is_prepared_once(scorer, ours):
    picture = drawings()[4]
    assert scorer.preprocess([(text, picture) for text in TEXTS])["pixel_values"].shape[0] == 1
    ranking = scorer.rank(picture, TEXTS)
    expected = pair_scores(ours, [picture] * len(TEXTS), TEXTS)
    scores = {entry["corpus_id"]: entry["score"] for entry in ranking}
    assert max(abs(scores[row] - expected[row]) for row in range(len(TEXTS))) < SAME_ODDS


def test_saved_cross_encoder_comes_back(scorer, tmp_path):
    scorer.save(str(tmp_path), create_model_card=False)
    pairs = list(zip(TEXTS, drawings(), strict=True))
    trusted = CrossEncoder(str(tmp_path), **TRUSTED)
    for again in (load_cross_encoder(tmp_path, device="cpu"), trusted):
        assert np.array_equal(again.predict(pairs), scorer.predict(pairs))
        assert isinstance(again.activation_fn, torch.nn.Identity)
    # The other role of the same weights.
    assert load_sentence_transformer(tmp_path, device="cpu").encode(TEXTS).shape == (NUM_IMAGES, 32)


def test_saved_activation_is_kept_and_no_code_is_run_for_it(folder, tmp_path):
    scorer = load_cross_encoder(folder, device="cpu")
    scorer.activation_fn = torch.nn.Sigmoid()
    scorer.save(str(tmp_path), create_model_card=False)
    assert isinstance(load_cross_encoder(tmp_path, device="cpu").activation_fn, torch.nn.Sigmoid)
    settings = tmp_path / "config_sentence_transformers.json"
    text = settings.read_text()
    settings.write_text(text.replace("torch.nn.modules.activation.Sigmoid", "os.getcwd"))
    assert isinstance(load_cross_encoder(tmp_path, device="cpu").activation_fn, torch.nn.Sigmoid)


@pytest.mark.parametrize("pair", [("a", "b"), ("a",), ("a", 3), ("a", "b", "c")])
def test_other_pairs_are_refused(scorer, pair):
    reasons = r"one string and one image|expected a string|nsupported|not supported"
    with pytest.raises(ValueError, match=reasons):
        scorer.predict([pair])


def test_model_without_matching_head_scores_no_pairs(folder):
    model = toy(VLMoForImageTextRetrieval, use_match_head=False)
    with pytest.raises(ValueError, match="no matching head"):
        VLMoPairScorer(model, VLMoProcessor.from_pretrained(folder))
    with pytest.raises(ValueError, match="rerank_weight is 2"):
        load_cross_encoder(folder, rerank_weight=2)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.delitem(sys.modules, "vlmo.integrations.sentence_transformers")
    with pytest.raises(ImportError, match=r"pip install .*\[sentence-transformers\]'"):
        importlib.import_module("vlmo.integrations.sentence_transformers")


def test_images_come_upright_from_paths_and_strings(tmp_path):
    exif, path = Image.Exif(), tmp_path / "turned.png"
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    drawings()[0].save(path, exif=exif)
    expected = np.asarray(drawings()[0].transpose(Image.Transpose.ROTATE_270))
    text = base64.b64encode(path.read_bytes()).decode()
    for image in (path, str(path), f"data:image/png;base64,{text}"):
        assert np.array_equal(np.asarray(open_image(image)), expected)
    for missing in (Path("nowhere.png"), "nowhere.png"):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
            open_image(missing)
