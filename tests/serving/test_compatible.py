import cohere
import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

from tests.integrations.toy_gallery import CAPTIONS, drawings
from tests.retrieval.toy_index import encoded
from tests.serving.toy_service import in_base64, post, served
from vlmo.retrieval import Searcher
from vlmo.serving.app import create_app
from vlmo.serving.schemas import MAX_RERANK
from vlmo.serving.settings import Settings

KEY = "a-secret"
TOLERANCE = 1e-5  # rows of one call and of several differ by the order of sums
MODEL = "model"  # the folder's name
TEXTS = ["a yellow bar", "a red circle", "two"]
IMAGES = [3, 14, 1, 8]  # a red cross, a yellow bar, a red circle and another
FILES = [in_base64(encoded(drawings()[number])) for number in IMAGES]
ADDRESSES = [f"data:image/png;base64,{file}" for file in FILES]
DOCUMENT = {"query": "a", "documents": ADDRESSES[:1]}


@pytest.fixture(scope="module")
def address(parts):
    with served(create_app(parts, Settings(api_key=KEY))) as address:
        yield address


@pytest.fixture(scope="module")
def openai_client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module", params=[cohere.Client, cohere.ClientV2], ids=["v1", "v2"])
def cohere_client(request, address):
    with request.param(api_key=KEY, base_url=address) as client:
        yield client


def mixed(parts, images: list[int], texts: list[str]) -> np.ndarray:
    """Scores of a search, of pairs; one of either goes with each of the others."""
    encoder, chosen = parts.encoder, [drawings()[number] for number in images]
    number = max(len(images), len(texts))
    odds = encoder.match(chosen * (number // len(images)), texts * (number // len(texts)))
    similarity = (encoder.embed_images(chosen) @ encoder.embed_texts(texts).T).ravel()
    return (encoder.inverse_temperature * (similarity - 1) + odds) / 2  # the default weight


@pytest.fixture(scope="module")
def scores(parts) -> np.ndarray:
    """Of the first of the texts with each image."""
    return mixed(parts, IMAGES, TEXTS[:1])


def assert_scores(given: list[float], scores: np.ndarray) -> None:
    """Those of the API are sigmoids, from the best on."""
    expected = 1 / (1 + np.exp(-np.sort(scores)[::-1].astype(float)))
    np.testing.assert_allclose(given, expected, atol=TOLERANCE)


def rerank(client: TestClient, **body) -> dict:
    return post(client, "/v1/rerank", **body)


def embed(client: TestClient, **body) -> list:
    data = post(client, "/v1/embeddings", **body)["data"]
    assert [each["index"] for each in data] == list(range(len(data)))
    return [each["embedding"] for each in data]


def test_openai_client_lists_the_models(openai_client, gallery) -> None:
    first, *others = openai_client.models.list().data
    assert (first.id, first.object, first.owned_by) == (MODEL, "model", "vlmo")
    assert first.created == int((gallery.model / "config.json").stat().st_mtime)
    assert [each.id for each in others] == [gallery.vqa.name, gallery.captioning.name]


def test_openai_client_gets_vectors_of_texts_and_of_images_by_address(openai_client, parts) -> None:
    encoder, create = parts.encoder, openai_client.embeddings.create
    (image,) = encoder.embed_images([drawings()[IMAGES[0]]])
    expected = [*encoder.embed_texts(TEXTS), image]
    # It asks for base64.
    answer = create(model=MODEL, input=[*TEXTS, ADDRESSES[0]], dimensions=encoder.dim)
    np.testing.assert_allclose([each.embedding for each in answer.data], expected, atol=TOLERANCE)
    assert [each.index for each in answer.data] == [0, 1, 2, 3]
    assert (answer.object, answer.data[0].object, answer.model) == ("list", "embedding", MODEL)
    usage = create(model=MODEL, input=TEXTS).usage
    assert usage.prompt_tokens == usage.total_tokens == sum(encoder.count_tokens(TEXTS))
    for alone, wanted in ((TEXTS[0], expected[0]), (ADDRESSES[0], expected[-1])):
        (one,) = create(model=MODEL, input=alone).data
        np.testing.assert_allclose(one.embedding, wanted, atol=TOLERANCE)


def test_texts_and_images_in_jinas_form_come_back_in_their_order(client, parts) -> None:
    image, other = parts.encoder.embed_images([drawings()[number] for number in IMAGES[:2]])
    text, *words = parts.encoder.embed_texts(["two", "see https://a.example", "https://a.example"])
    sent = [{"image": FILES[0]}, {"text": "two"}, {"image": ADDRESSES[1]}, "two"]
    # Texts, although they contain or are addresses.
    sent += ["see https://a.example", {"text": "https://a.example"}]
    found = embed(client, model=MODEL, input=sent, task="retrieval.query", normalized=True)
    np.testing.assert_allclose(found, [image, text, other, text, *words], atol=TOLERANCE)


def test_cohere_clients_get_images_in_the_models_order(cohere_client, parts, scores) -> None:
    answer = cohere_client.rerank(model=MODEL, query=TEXTS[0], documents=ADDRESSES)
    assert [each.index for each in answer.results] == list(np.argsort(-scores))
    assert_scores([each.relevance_score for each in answer.results], scores)
    best = cohere_client.rerank(model=MODEL, query=TEXTS[0], documents=ADDRESSES, top_n=1).results
    assert [each.index for each in best] == [int(np.argmax(scores))]


def test_cohere_client_gets_texts_for_an_image_with_the_documents(address, parts) -> None:
    body = {"query": ADDRESSES[1], "documents": TEXTS, "return_documents": True}
    with cohere.Client(api_key=KEY, base_url=address) as client:
        found = client.rerank(model=MODEL, **body).results
    scores = mixed(parts, IMAGES[1:2], TEXTS)
    assert [each.document.text for each in found] == [TEXTS[row] for row in np.argsort(-scores)]
    assert_scores([each.relevance_score for each in found], scores)


def test_texts_for_an_image_have_a_weight_of_their_own(client, parts, monkeypatch) -> None:
    def scores(**body) -> list[list[float]]:
        asked = ((TEXTS[0], ADDRESSES), (ADDRESSES[1], TEXTS))
        found = [rerank(client, query=query, documents=each, **body) for query, each in asked]
        return [[each["relevance_score"] for each in answer["results"]] for answer in found]

    images, texts = scores()
    monkeypatch.setattr(parts.encoder, "rerank_weight_image_to_text", 1.0)
    same, other = scores()
    assert same == images
    assert other != texts
    alone, again = scores(weight=1)  # of the request
    assert again == other
    odds = parts.encoder.match([drawings()[number] for number in IMAGES], TEXTS[:1] * len(IMAGES))
    assert_scores(alone, odds)


@pytest.mark.parametrize("query", [TEXTS[0], {"text": TEXTS[0]}])
def test_images_are_ranked_in_jinas_form(client, parts, scores, query) -> None:
    body = {"documents": [{"image": file} for file in FILES], "max_chunks_per_doc": None}
    found = rerank(client, model=MODEL, query=query, top_n=3, **body)
    assert [each["index"] for each in found["results"]] == list(np.argsort(-scores))[:3]
    assert all(each.keys() == {"index", "relevance_score"} for each in found["results"])
    assert found["model"] == MODEL
    assert found["usage"]["total_tokens"] == parts.encoder.count_tokens(TEXTS[:1])[0]


VIDEO = {"type": "video_url", "video_url": {"url": "data:"}}


@pytest.mark.parametrize("document", [{"text": "a", "image": FILES[0]}, {}, VIDEO])
def test_documents_that_cannot_be_ranked_are_refused(client, document) -> None:
    response = client.post("/v1/rerank", json={"query": "a", "documents": [document]})
    assert response.status_code == 422


def test_order_is_that_of_a_search_that_reranks_the_same_images(client, parts) -> None:
    searcher = Searcher(parts.encoder, parts.index)
    everything = [f"data:image/png;base64,{in_base64(encoded(drawing))}" for drawing in drawings()]
    filters = ("number < 12", "even", "number >= 0") * 2
    for (query, _), where in zip(CAPTIONS[::4], filters, strict=True):
        hits = searcher.search(query, top=24, rerank=24, where=where, mode="vectors").hits
        order = [hit.metadata["number"] for hit in hits]
        numbers = sorted(order)
        documents = [everything[number] for number in numbers]
        found = rerank(client, query=query, documents=documents)["results"]
        assert [numbers[each["index"]] for each in found] == order


def test_order_of_sure_matches_is_that_of_their_log_odds(client, parts, monkeypatch) -> None:
    odds = np.asarray([40, 50, 45, 50], dtype=np.float32)
    monkeypatch.setattr(parts.encoder._engine, "match", lambda *_: odds)
    monkeypatch.setattr(parts.encoder, "rerank_weight", 1.0)
    found = rerank(client, query=TEXTS[0], documents=ADDRESSES)["results"]
    assert [each["index"] for each in found] == [1, 3, 2, 0]
    assert {each["relevance_score"] for each in found} == {1.0}


def test_images_are_sent_back_as_they_came(client) -> None:
    documents = [{"image": FILES[0]}, ADDRESSES[1]]
    found = rerank(client, query=TEXTS[0], documents=documents, return_documents=True)
    sent_back = {each["index"]: each["document"] for each in found["results"]}
    assert sent_back == {number: {"image": FILES[number]} for number in range(2)}


def test_rerank_takes_as_many_documents_as_search_reranks(client) -> None:
    found = rerank(client, query="two", documents=ADDRESSES[:1] * MAX_RERANK)
    assert len(found["results"]) == MAX_RERANK


def test_clients_raise_their_own_errors(openai_client, cohere_client) -> None:
    refused = openai.UnprocessableEntityError
    with pytest.raises(refused, match="token ids are not accepted") as raised:
        openai_client.embeddings.create(model=MODEL, input=[[1, 2]])
    assert (raised.value.type, raised.value.code) == ("invalid_request_error", "422")
    with pytest.raises(cohere.UnprocessableEntityError) as refusal:
        cohere_client.rerank(model=MODEL, query="a", documents=["a dog"])
    assert "are both texts" in refusal.value.body["error"]["message"]


@pytest.mark.parametrize("name", ["text-embedding-3-small", "vqa", "", "a" * 10_000])
def test_another_model_is_not_found(openai_client, cohere_client, client, name) -> None:
    facts = {"type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    for path, body in (("embeddings", {"input": "a"}), ("rerank", DOCUMENT)):
        response = client.post(f"/v1/{path}", json=body | {"model": name})
        error = response.json()["error"]
        assert (response.status_code, len(error.pop("message")) < 200) == (404, True)
        assert error == facts
        assert MODEL in response.json()["detail"]
    with pytest.raises(openai.NotFoundError) as raised:
        openai_client.embeddings.create(model=name, input="a")
    assert (raised.value.param, raised.value.code) == ("model", "model_not_found")
    with pytest.raises(cohere.NotFoundError):
        cohere_client.rerank(model=name, **DOCUMENT)


def test_key_is_required(address) -> None:
    refused = pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong")
    with openai.OpenAI(base_url=f"{address}/v1", api_key="wrong") as client, refused:
        client.embeddings.create(model=MODEL, input="a")
    refused = pytest.raises(cohere.UnauthorizedError)
    with cohere.ClientV2(api_key="wrong", base_url=address) as client, refused:
        client.rerank(model=MODEL, **DOCUMENT)


def test_full_queue_and_stopping_server_are_busy_to_clients(parts) -> None:
    app = create_app(parts, Settings(queue=1))
    with (
        served(app) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as openai_client,
        cohere.ClientV2(api_key="any", base_url=address, max_retries=0) as cohere_client,
    ):
        app.state.vlmo.admitted = 1
        with pytest.raises(openai.InternalServerError, match="the queue is full") as raised:
            openai_client.embeddings.create(model=MODEL, input="a")
        app.state.vlmo.admitted, app.state.vlmo.stopping = 0, True
        with pytest.raises(cohere.ServiceUnavailableError):
            cohere_client.rerank(model=MODEL, **DOCUMENT)
    assert (raised.value.status_code, raised.value.type) == (503, "server_error")
    assert int(raised.value.response.headers["retry-after"]) >= 1


def test_model_without_matching_head_says_so(client, parts, monkeypatch) -> None:
    monkeypatch.setattr(parts.encoder, "can_match", False)
    response = client.post("/v1/rerank", json=DOCUMENT)
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "this model has no matching head"
    assert embed(client, input="a")
