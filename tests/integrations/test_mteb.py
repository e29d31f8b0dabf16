"""A local retrieval task of mteb, in both directions, with and without reranking."""

from __future__ import annotations

import importlib
import sys

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol, SearchProtocol
from tests.checkpoints.toy_folder import folder_writer, text_processor
from tests.integrations.toy_gallery import CAPTIONS, drawings, retrieval_set, trained_folder

from vlmo import VLMoForImageTextRetrieval
from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.evaluation import Weights, evaluate_retrieval
from vlmo.integrations.mteb import VLMoSearch

RERANK = 6
IMAGES = {"id": [f"i{row}" for row in range(len(CAPTIONS))], "image": drawings()}
TEXTS = {
    "id": [f"t{row}" for row in range(2 * len(CAPTIONS))],
    "text": [caption for captions in CAPTIONS for caption in captions],
}
OWN = {f"t{row}": f"i{row // 2}" for row in range(2 * len(CAPTIONS))}


def task(category: str) -> AbsTaskRetrieval:
    """The gallery as a task of mteb that needs no network."""

    class Gallery(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Gallery{category.upper()}",
            description="Drawings and their captions.",
            dataset={"path": "none", "revision": "1"},
            type="Any2AnyRetrieval",
            category=category,
            modalities=["image", "text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="hit_rate_at_1",
            reference=None,
            date=None,
            domains=[],
            task_subtypes=[],
            license=None,
            annotations_creators=None,
            dialect=[],
            sample_creation=None,
            bibtex_citation="",
        )

        def load_data(self, **_) -> None:
            texts, images = Dataset.from_dict(TEXTS), Dataset.from_dict(IMAGES)
            by_text = category == "t2i"
            relevant: dict[str, dict[str, int]] = {}
            for text, image in OWN.items():
                query, document = (text, image) if by_text else (image, text)
                relevant.setdefault(query, {})[document] = 1
            self.dataset = {
                "default": {
                    "test": RetrievalSplitData(
                        queries=texts if by_text else images,
                        corpus=images if by_text else texts,
                        relevant_docs=relevant,
                        top_ranked=None,
                    )
                }
            }
            self.data_loaded = True

    return Gallery()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained_folder(tmp_path_factory.mktemp("trained") / "model", steps=30)


@pytest.fixture(scope="module")
def expected(folder):
    model, processor = load_retrieval_model(folder, device="cpu")
    weights = Weights(image_to_text=0.7, text_to_image=0.9)
    return evaluate_retrieval(model, retrieval_set(processor), rerank=RERANK, rerank_weight=weights).metrics


@pytest.mark.parametrize(
    ("category", "metric", "weight"), [("t2i", "ir", 0.9), ("t2i", "ir", None), ("i2t", "tr", None)]
)
def test_scores_are_those_of_our_evaluation(folder, expected, category, metric, weight):
    for rerank, prefix in ((0, ""), (RERANK, "rerank_")):
        model = VLMoSearch(folder, rerank=rerank, weight=weight, device="cpu")
        model.encoder.rerank_weight = 0.9 if weight is None else 0.0
        model.encoder.rerank_weight_image_to_text = 0.7
        result = mteb.evaluate(model, task(category), cache=None)
        scores = result.task_results[0].scores["test"][0]
        for k in (1, 5, 10):
            assert scores[f"hit_rate_at_{k}"] == pytest.approx(expected[f"{prefix}{metric}@{k}"], abs=1e-5)
    assert expected[f"{metric}@1"] != expected[f"rerank_{metric}@1"]


def test_vectors_are_normalised_and_those_of_both_kinds_are_summed(folder):
    model = VLMoSearch(folder, device="cpu")
    assert isinstance(model, EncoderProtocol)
    assert isinstance(model, SearchProtocol)
    texts, images = TEXTS["text"][:3], IMAGES["image"][:3]
    own = [model.encoder.embed_texts(texts), model.encoder.embed_images(images)]
    assert np.array_equal(model.encode([{"text": texts[:2]}, {"text": texts[2:]}]).round(5), own[0].round(5))
    both = model.encode([{"text": texts, "image": images}])
    np.testing.assert_allclose(both, (own[0] + own[1]) / np.linalg.norm(own[0] + own[1], axis=1)[:, None], atol=1e-5)
    np.testing.assert_allclose(model.similarity(*own), own[0] @ own[1].T, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(*own), (own[0] * own[1]).sum(axis=1), atol=1e-6)
    with pytest.raises(ValueError, match="the inputs are audio"):
        model.encode([{"audio": [0]}])
    with pytest.raises(ValueError, match="call index first"):
        model.search(Dataset.from_dict(TEXTS), task_metadata=None, top_k=3)


def test_wrong_settings_are_refused(folder, tmp_path):
    for options, words in (({"rerank": -1}, "rerank is -1"), ({"weight": 2.0}, "weight 2.0")):
        with pytest.raises(ValueError, match=words):
            VLMoSearch(folder, **options)
    dual, _ = folder_writer(tmp_path, text_processor())(VLMoForImageTextRetrieval, use_match_head=False)
    with pytest.raises(ValueError, match="no matching head; give rerank=0"):
        VLMoSearch(dual, device="cpu")
    assert VLMoSearch(dual, rerank=0, device="cpu").mteb_model_meta.experiment_kwargs == {"rerank": 0, "weight": None}


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    monkeypatch.delitem(sys.modules, "vlmo.integrations.mteb")
    with pytest.raises(ImportError, match=r"pip install .*\[mteb\]'"):
        importlib.import_module("vlmo.integrations.mteb")
