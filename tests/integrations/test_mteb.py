"""mteb measures the models of sentence-transformers: a local retrieval task, in both directions, also reranked."""

from __future__ import annotations

import mteb
import pytest
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import CrossEncoderWrapper, SentenceTransformerEncoderWrapper
from tests.integrations.toy_gallery import CAPTIONS, drawings, retrieval_set, trained_folder

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.evaluation import evaluate_retrieval
from vlmo.integrations.sentence_transformers import load_cross_encoder, load_sentence_transformer

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
    return evaluate_retrieval(model, retrieval_set(processor), rerank=RERANK).metrics


@pytest.mark.filterwarnings("ignore::FutureWarning:mteb", "ignore::DeprecationWarning:mteb")
@pytest.mark.parametrize(("category", "metric"), [("t2i", "ir"), ("i2t", "tr")])
def test_scores_are_those_of_our_evaluation(folder, expected, category, metric, tmp_path):
    encoder = SentenceTransformerEncoderWrapper(load_sentence_transformer(folder, device="cpu"))
    scorer = CrossEncoderWrapper(load_cross_encoder(folder, device="cpu"))
    for each in (encoder, scorer):  # mteb reads them from the hub alone
        each.mteb_model_meta = each.mteb_model_meta.model_copy(update={"modalities": ["text", "image"]})
    found = mteb.evaluate(encoder, task(category), cache=None, prediction_folder=tmp_path)
    again = task(category)
    again.load_data()
    reranked = mteb.evaluate(scorer, again.convert_to_reranking(tmp_path, top_k=RERANK), cache=None)
    for result, prefix, cutoffs in ((found, "", (1, 5, 10)), (reranked, "rerank_", (1, 5))):
        scores = result.task_results[0].scores["test"][0]
        for k in cutoffs:
            assert scores[f"hit_rate_at_{k}"] == pytest.approx(expected[f"{prefix}{metric}@{k}"], abs=1e-5)
    assert expected["tr@1"] != expected["rerank_tr@1"]
