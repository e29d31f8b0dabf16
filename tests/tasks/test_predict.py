"""Own pictures and texts: each task asks for what it needs, and answers in rows, a table and a picture."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from tests.tasks.toy_folders import TASKS
from tests.tasks.toy_vision import NAMES, PIXELS
from tests.toy_questions import ANSWERS, COLORS

from vlmo.model import VLMoForImageTextRetrieval
from vlmo.processing import VLMoProcessor
from vlmo.tasks import Inputs, predict
from vlmo.tasks.registry import Predicted

ATOL = 1e-4  # rows are rounded to four decimals
SENTENCE = "both pictures are red"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, color in COLORS.items():
        Image.new("RGB", (40, 30), color).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in COLORS}


def inputs_for(task, files, **options) -> Inputs:
    images = (files["red"], files["blue"])
    inputs = {
        "retrieval": Inputs(images=images, texts=("is it red", "is it blue", "what color")),
        "vqa": Inputs(images=images[:1], question="what color is it?"),
        "nlvr2": Inputs(images=images, texts=(SENTENCE,)),
        "classification": Inputs(images=images[:1]),
        "segmentation": Inputs(images=images[:1]),
        "captioning": Inputs(images=images, caption=True),
    }[task]
    return replace(inputs, **options)


def ask(folder, images=(), **options) -> Predicted:
    return predict(folder, Inputs(tuple(images), **options), device="cpu")


KNOWN = {  # the first column of a task's rows, and its values
    "vqa": ("answer", ANSWERS),
    "nlvr2": ("prediction", [True, False]),
    "classification": ("class", NAMES),
    "segmentation": ("class", PIXELS),
    "retrieval": ("text", ["is it red", "is it blue", "what color"]),
}


@pytest.mark.parametrize("task", TASKS)
def test_each_task_answers(task, folders, files, tmp_path):
    drawn = tmp_path / "new" / "seen.png" if task in {"vqa", "segmentation"} else None
    answer = predict(folders[task], inputs_for(task, files, top=99, save=drawn), device="cpu")
    assert (answer.image, answer.task) == (drawn, task)
    first = answer.rows[0]
    name, values = KNOWN.get(task, ("caption", [first.get("caption")]))
    assert first[name] in values
    assert len(answer.rows) <= 6
    assert len(predict(folders[task], inputs_for(task, files, top=2), device="cpu").rows) <= 4
    if task == "vqa":
        with Image.open(drawn) as image:
            assert (image.format, image.size) == ("PNG", (384, 288))
    if task in {"vqa", "classification"}:
        assert {row[name] for row in answer.rows} == set(values)
        confidences = [row["confidence"] for row in answer.rows]
        assert confidences == sorted(confidences, reverse=True)
    shown = shown_table(answer)
    assert str(first[name])[:8] in shown  # longer captions are wrapped
    assert ("%" in shown) == (task != "captioning")


def shown_table(answer: Predicted) -> str:
    with (console := Console(width=100)).capture() as shown:
        console.print(answer.table())
    return shown.get()


def test_table_shows_no_control_characters_of_a_model() -> None:
    rows = [{"answer": "red\x1b]0;title\x07\x9b2J", "image": "a\x1b[2J.png"}]
    shown = shown_table(Predicted("vqa", rows=rows))
    assert "red" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)


def test_pairs_are_those_of_the_model(folders, files):
    images = (files["red"], files["blue"])
    texts = ("is it red", "is it blue", "what color")
    rows = ask(folders["retrieval"], images, texts=texts, top=3).rows
    model = VLMoForImageTextRetrieval.from_pretrained(folders["retrieval"]).eval()
    processor = VLMoProcessor.from_pretrained(folders["retrieval"])
    pictures = [Image.new("RGB", (40, 30), COLORS[file.stem]) for file in images]
    inputs = processor(images=pictures, text=list(texts), return_tensors="pt")
    words = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        output = model(**inputs)
        similarity = output.image_embeds @ output.text_embeds.T
        pixels = inputs["pixel_values"][:, None].expand(-1, 3, -1, -1, -1)
        match = torch.stack([model.match(image, *words).softmax(-1)[:, 1] for image in pixels])
    assert len(rows) == 6
    for image, image_rows in enumerate((rows[:3], rows[3:])):
        found = [row["similarity"] for row in image_rows]
        assert found == sorted(found, reverse=True)
        for row in image_rows:
            text = texts.index(row["text"])
            assert row["image"] == str(images[image])
            assert row["similarity"] == pytest.approx(similarity[image, text].item(), abs=ATOL)
            assert row["match"] == pytest.approx(match[image, text].item(), abs=ATOL)


def test_one_text_finds_the_best_pictures(folders, files):
    rows = ask(folders["dual"], files.values(), texts=("is it red",), top=3).rows
    similarities = [row["similarity"] for row in rows]
    assert len(rows) == 3
    assert similarities == sorted(similarities, reverse=True)
    assert "match" not in rows[0]


TWO_NEEDED = "needs two images after --image and one --text"


WRONG = [  # task, images, other inputs, and the refusal
    *[
        (task, 1, {"question": "why?"}, f"is for {task} and needs .* a question")
        for task in TASKS
        if task != "vqa"
    ],
    ("vqa", 1, {}, "needs one --image and a --question; given were 1 images, 0 texts and no"),
    ("vqa", 2, {"question": "why?"}, "given were 2 images"),
    ("vqa", 1, {"question": " "}, r"^the texts are \[' '\]; give words, and no empty texts"),
    ("vqa", 1, {"question": "why?", "top": 0}, "top is 0"),
    ("nlvr2", 1, {"texts": (SENTENCE,)}, TWO_NEEDED),
    ("classification", 0, {}, "needs images after --image; given were 0 images"),
    ("classification", 1, {"texts": ("red",)}, "given were 1 images, 1 texts"),
    ("classification", 1, {"caption": True}, "is for classification and needs images"),
    ("classification", 1, {"save": Path("x.png")}, "a PNG file of the tasks vqa and segmentation"),
    ("segmentation", 2, {}, "needs one --image"),
    ("captioning", 1, {"texts": ("red",)}, "needs images after --image"),
    ("retrieval", 1, {}, "needs images after --image and texts after --text"),
    ("retrieval", 1, {"texts": ("red", "")}, "no empty texts"),
]


def test_inputs_that_do_not_fit_are_refused(folders, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = (files["red"], files["blue"])
    for task, count, inputs, words in WRONG:
        with pytest.raises(ValueError, match=words):
            ask(folders[task], images[:count], **inputs)
    Path("broken.png").write_bytes(b"\x89PNG")
    for name in ("broken.png", "missing.png"):
        with pytest.raises(ValueError, match=name):
            ask(folders["classification"], [Path(name)])
    assert not Path("x.png").exists()
