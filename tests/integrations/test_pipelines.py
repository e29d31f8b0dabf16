"""Our pipelines on model folders: each gives what the model gives when it is called directly."""

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.checkpoints.toy_folder import CAPTIONS, QUESTIONS, drawings
from torch import nn
from transformers import pipeline

from vlmo import (
    VLMoForImageTextRetrieval,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForVisualQuestionAnswering,
    VLMoProcessor,
)
from vlmo.integrations.pipelines import ImageTextMatchingPipeline, VisualQuestionAnsweringPipeline, open_image

ANSWERS = {0: "red", 1: "green", 2: "blue", 3: "yes", 4: "no", 5: "one", 6: "two"}

# Only the order of float32 sums differs: single images and batches, and padding to other lengths.
CLOSE = 1e-5
# bfloat16 keeps 8 bits: over 40 pairs of ten random models a score moved by 0.007 at most.
CLOSE_BFLOAT16 = 2e-2


# -------------------------------------------------------------------------------- visual question answering


def asked(model: nn.Module, processor: VLMoProcessor, image: Image.Image, question: str) -> list[tuple[str, float]]:
    """Answers and scores by a direct call, best first."""
    with torch.no_grad():
        scores = model(**processor(images=image, text=question, return_tensors="pt")).logits[0].sigmoid().tolist()
    return sorted(zip(ANSWERS.values(), scores, strict=True), key=lambda pair: -pair[1])


def check_answers(answers, expected: list[tuple[str, float]]) -> None:
    assert [entry["answer"] for entry in answers] == [answer for answer, _ in expected]
    assert [entry["score"] for entry in answers] == pytest.approx([score for _, score in expected], abs=CLOSE)


def test_questions_are_answered_as_by_the_model(make, processor, errors):
    folder, model = make(VLMoForVisualQuestionAnswering, id2label=ANSWERS)
    answer = pipeline("visual-question-answering", model=folder, device="cpu")
    assert type(answer) is VisualQuestionAnsweringPipeline
    image, question = drawings(1)[0], QUESTIONS[1]
    expected = asked(model, processor, image, question)
    assert expected != asked(model, processor, image, QUESTIONS[0])
    check_answers(answer(image, question=question), expected[:5])
    check_answers(answer(image=image, question=question, top_k=2), expected[:2])
    check_answers(answer({"image": image, "question": question}, top_k=100), expected)
    own = VisualQuestionAnsweringPipeline(model, processor=processor, device="cpu")
    check_answers(own(image, question=question), expected[:5])
    pairs = [{"image": image, "question": question} for image in drawings(2) for question in QUESTIONS]
    expected = [asked(model, processor, pair["image"], pair["question"])[:3] for pair in pairs]
    for batch_size in (1, 4):
        options = {"batch_size": batch_size, "top_k": 3}
        for answers in (answer(pairs, **options), list(answer((pair for pair in pairs), **options))):
            for given, wanted in zip(answers, expected, strict=True):
                check_answers(given, wanted)
    assert not errors


def test_question_pipeline_in_bfloat16(make, processor):
    folder, model = make(VLMoForVisualQuestionAnswering, id2label=ANSWERS)
    answer = pipeline("visual-question-answering", model=folder, device="cpu", dtype=torch.bfloat16)
    scores = {entry["answer"]: entry["score"] for entry in answer(drawings(1)[0], question=QUESTIONS[0], top_k=7)}
    expected = dict(asked(model, processor, drawings(1)[0], QUESTIONS[0]))
    assert scores == pytest.approx(expected, abs=CLOSE_BFLOAT16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipe: pipe(drawings(1)[0]), "expected an image with question"),
        (lambda pipe: pipe(question="what?"), "image is a NoneType: expected a PIL image"),
        (lambda pipe: pipe(drawings(1)), "expected an image with question"),
        (lambda pipe: pipe([{"image": drawings(1)[0]}]), "expected an image with question"),
        (lambda pipe: pipe(drawings(1)[0], question=["what?", "why?", 3]), "must be a string or list of strings"),
    ],
)
def test_bad_questions_are_refused(call, message, make):
    folder, _ = make(VLMoForVisualQuestionAnswering, id2label=ANSWERS)
    with pytest.raises(ValueError, match=message):
        call(pipeline("visual-question-answering", model=folder, device="cpu"))


# -------------------------------------------------------------------------------- matching


@torch.no_grad()
def matched(model: nn.Module, processor: VLMoProcessor, image: Image.Image, text: str) -> float:
    """Share of class 1 by a direct call."""
    return model.match(**processor(images=image, text=text, return_tensors="pt")).softmax(dim=-1)[0, 1].item()


@pytest.mark.parametrize("model_class", [VLMoForImageTextRetrieval, VLMoForPreTraining])
def test_texts_are_matched_as_by_the_model(model_class, make, processor, errors):
    folder, model = make(model_class)
    match = pipeline("image-text-matching", model=folder, device="cpu")
    assert type(match) is ImageTextMatchingPipeline
    # Batches cross the borders of images.
    texts = [CAPTIONS, CAPTIONS[0], CAPTIONS[1:]]
    pairs = [{"image": image, "text": text} for image, text in zip(drawings(3), texts, strict=True)]
    lists = [[text] if isinstance(text, str) else text for text in texts]
    expected = [
        {text: matched(model, processor, pair["image"], text) for text in wanted}
        for pair, wanted in zip(pairs, lists, strict=True)
    ]
    assert max(expected[0].values()) - min(expected[0].values()) > 100 * CLOSE
    for answers in (match(pairs, batch_size=2), list(match((pair for pair in pairs), batch_size=8))):
        for scores, answer in zip(expected, answers, strict=True):
            assert {entry["text"]: entry["score"] for entry in answer} == pytest.approx(scores, abs=CLOSE)
            assert [entry["text"] for entry in answer] == sorted(scores, key=lambda text: -scores[text])
    assert match(image=drawings(1)[0], text=CAPTIONS[1])[0]["score"] == pytest.approx(
        expected[0][CAPTIONS[1]], abs=CLOSE
    )
    assert not errors


def test_image_without_texts_and_model_without_matching_head_are_refused(make):
    folder, _ = make(VLMoForImageTextRetrieval)
    for text in ([], None):
        with pytest.raises(ValueError, match="text"):
            pipeline("image-text-matching", model=folder, device="cpu")(drawings(1)[0], text=text)
    folder, _ = make(VLMoForImageTextRetrieval, use_match_head=False)
    with pytest.raises(ValueError, match="no matching head"):
        pipeline("image-text-matching", model=folder, device="cpu")(drawings(1)[0], text="a")


# -------------------------------------------------------------------------------- what both share


@pytest.mark.parametrize("task", ["visual-question-answering", "image-text-matching"])
def test_model_of_another_class_and_head_that_was_never_trained_are_refused(task, make):
    folder, _ = make(VLMoForMaskedLM)
    with pytest.raises(ValueError, match="got VLMoForMaskedLM: expected VLMoFor"):
        pipeline(task, model=folder, device="cpu")


@pytest.mark.parametrize("task", ["visual-question-answering", "image-text-matching"])
def test_saved_pipeline_needs_no_remote_code(task, make, tmp_path):
    model_class = VLMoForVisualQuestionAnswering if task.startswith("visual") else VLMoForPreTraining
    folder, _ = make(model_class, id2label=ANSWERS)
    pipe = pipeline(task, model=folder, device="cpu")
    pipe.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.py"))
    loaded = pipeline(task, model=str(tmp_path / "saved"), device="cpu")
    pair = {"image": drawings(1)[0], pipe.text_key: CAPTIONS[0]}
    for again, before in zip(loaded(pair), pipe(pair), strict=True):
        assert again == before | {"score": pytest.approx(before["score"], abs=1e-6)}


def test_images_come_from_objects_paths_and_strings(tmp_path):
    picture = drawings(1)[0]
    path = tmp_path / "picture.png"
    picture.save(path)
    text = base64.b64encode(path.read_bytes()).decode()
    for given in (picture, path, str(path), f"data:image/png;base64,{text}"):
        assert np.array_equal(np.asarray(open_image(given)), np.asarray(picture))
    for missing in (Path("nowhere.png"), "nowhere.png"):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
            open_image(missing)
    with pytest.raises(ValueError, match="image is a int"):
        open_image(3)


def test_images_are_turned_upright(tmp_path):
    picture = drawings(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    expected = np.asarray(picture.transpose(Image.Transpose.ROTATE_270))
    for given in (str(tmp_path / "turned.png"), Image.open(tmp_path / "turned.png")):
        assert np.array_equal(np.asarray(open_image(given)), expected)


def test_transparency_becomes_white(make, processor, tmp_path):
    folder, model = make(VLMoForImageTextRetrieval)
    match = pipeline("image-text-matching", model=folder, device="cpu")
    drawing = drawings(1)[0].convert("RGBA")
    drawing.putalpha(Image.linear_gradient("L").resize(drawing.size))
    drawing.save(tmp_path / "drawing.png")
    on_white = Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing).convert("RGB")
    expected = matched(model, processor, on_white, CAPTIONS[0])
    assert abs(expected - matched(model, processor, drawing.convert("RGB"), CAPTIONS[0])) > 100 * CLOSE
    for given in (drawing, str(tmp_path / "drawing.png"), tmp_path / "drawing.png"):
        assert match(given, text=CAPTIONS[0])[0]["score"] == pytest.approx(expected, abs=CLOSE)
