import numpy as np
import pytest
import torch
from tests.checkpoints.toy_folder import (
    CAPTIONS,
    drawings,
    folder_writer,
    logged_errors,
    text_processor,
)
from torch import nn
from transformers import BeitImageProcessor, pipeline

import vlmo

PROCESSOR = text_processor()
CLASSES = {0: "wall", 1: "floor", 2: "sky", 3: "cat"}
# Other orders of float32 sums: single images and batches, and padding to other lengths.
CLOSE = 1e-5


@pytest.fixture
def make(tmp_path):
    return folder_writer(tmp_path, PROCESSOR)


@pytest.fixture
def no_errors():
    """The library logs one where it takes a model for unfit."""
    with logged_errors() as records:
        yield
    assert not records


@pytest.mark.parametrize("name", ["zero-shot-image-classification", "image-classification"])
@torch.no_grad()
def test_classes_of_images(name, make, no_errors):
    if name == "image-classification":
        folder, model = make(vlmo.VLMoForImageClassification, id2label=CLASSES)
        labels, options = list(CLASSES.values()), {}
        logits = model(**PROCESSOR(images=drawings(3), return_tensors="pt")).logits
    else:
        folder, model = make(vlmo.VLMoForImageTextRetrieval)
        labels, options = CAPTIONS, {"candidate_labels": CAPTIONS, "hypothesis_template": "{}"}
        inputs = PROCESSOR(images=drawings(3), text=CAPTIONS, return_tensors="pt")
        logits = model(**inputs).logits_per_image
    classify = pipeline(name, model=folder, device="cpu")
    for batch_size in (1, 2):
        answers = classify(drawings(3), batch_size=batch_size, **options)
        for answer, shares in zip(answers, logits.softmax(dim=-1), strict=True):
            scores = {entry["label"]: entry["score"] for entry in answer}
            expected = dict(zip(labels, shares.tolist(), strict=True))
            assert scores == pytest.approx(expected, abs=CLOSE)
            assert answer[0]["score"] == max(scores.values())


@torch.no_grad()
def test_image_feature_extraction(make, no_errors):
    folder, model = make(vlmo.VLMoModel)
    extract = pipeline("image-feature-extraction", model=folder, device="cpu")
    expected = model(**PROCESSOR(images=drawings(3), return_tensors="pt"))
    for batch_size in (1, 2):
        options = {"return_tensors": True, "batch_size": batch_size}
        states = torch.cat(extract(drawings(3), **options))
        assert states.shape == (3, 17, 32)
        torch.testing.assert_close(states, expected.last_hidden_state, rtol=0, atol=CLOSE)
        pooled = torch.cat(extract(drawings(3), pool=True, **options))
        torch.testing.assert_close(pooled, expected.pooler_output, rtol=0, atol=CLOSE)


@torch.no_grad()
def test_feature_extraction_of_texts(make, no_errors):
    folder, model = make(vlmo.VLMoModel)
    extract = pipeline("feature-extraction", model=folder, device="cpu")
    for batch_size in (1, 2):
        answers = extract(CAPTIONS, return_tensors=True, batch_size=batch_size)
        for caption, states in zip(CAPTIONS, answers, strict=True):
            encoded = PROCESSOR(text=caption, return_tensors="pt")
            length = int(encoded["attention_mask"].sum())
            expected = model(**encoded).last_hidden_state[0, :length]
            torch.testing.assert_close(states[0, :length], expected, rtol=0, atol=CLOSE)


@torch.no_grad()
def test_fill_mask(make, no_errors):
    folder, model = make(vlmo.VLMoForMaskedLM)
    fill = pipeline("fill-mask", model=folder, device="cpu")
    texts = ["a red [MASK]", "a [MASK] circle on white", "[MASK] blue squares"]
    for batch_size in (1, 2):
        for text, answers in zip(texts, fill(texts, top_k=4, batch_size=batch_size), strict=True):
            encoded = PROCESSOR(text=text, return_tensors="pt")
            masked = encoded["input_ids"][0] == PROCESSOR.tokenizer.mask_token_id
            best = model(**encoded).logits[0, masked][0].softmax(dim=-1).topk(4)
            assert [answer["token"] for answer in answers] == best.indices.tolist()
            scores = [answer["score"] for answer in answers]
            assert scores == pytest.approx(best.values.tolist(), abs=CLOSE)
            token = PROCESSOR.tokenizer.decode(best.indices[0])
            assert answers[0]["token_str"] == token.replace(" ", "")


@torch.no_grad()
def test_image_segmentation(make, no_errors):
    """The image processor must know how to make a segmentation map of logits: BEiT's does."""
    folder, model = make(vlmo.VLMoForSemanticSegmentation, id2label=CLASSES)
    beit = BeitImageProcessor.from_dict(PROCESSOR.image_processor.to_dict())
    vlmo.VLMoProcessor(beit, PROCESSOR.tokenizer).save_pretrained(folder)
    segment = pipeline("image-segmentation", model=folder, device="cpu")
    pixel_values = PROCESSOR(images=drawings(3), return_tensors="pt")["pixel_values"]
    assert torch.equal(beit(images=drawings(3), return_tensors="pt")["pixel_values"], pixel_values)
    logits = model(pixel_values=pixel_values).logits
    seen = set()
    for batch_size in (1, 2):
        for number, answer in enumerate(segment(drawings(3), batch_size=batch_size)):
            size = drawings(3)[number].size[::-1]
            resized = nn.functional.interpolate(logits[number][None], size=size, mode="bilinear")
            expected = resized[0].argmax(dim=0).numpy()
            masks = {entry["label"]: np.asarray(entry["mask"]) == 255 for entry in answer}
            assert masks.keys() == {CLASSES[label] for label in np.unique(expected)}
            for label, name in CLASSES.items():
                assert np.array_equal(masks.get(name, np.zeros_like(expected)), expected == label)
            seen |= masks.keys()
    assert len(seen) > 1
