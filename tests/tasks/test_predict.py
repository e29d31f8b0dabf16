"""Own pictures and texts: each task asks for what it needs, and answers in rows, a table and a picture."""

import re
from dataclasses import replace

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


@pytest.mark.parametrize("task", TASKS)
def test_each_task_answers(task, folders, files, tmp_path):
    drawn = tmp_path / "new" / "seen.png" if task in {"vqa", "segmentation"} else None
    found = predict(folders[task], inputs_for(task, files, top=99, save=drawn), device="cpu")
    assert found.image == drawn
    assert found.task == task
    first = found.rows[0]
    known = {
        "vqa": ("answer", ANSWERS),
        "nlvr2": ("prediction", [True, False]),
        "classification": ("class", NAMES),
        "segmentation": ("class", PIXELS),
        "retrieval": ("text", ["is it red", "is it blue", "what color"]),
    }
    name, values = known.get(task, ("caption", [first.get("caption")]))
    assert first[name] in values
    assert len(found.rows) <= 6
    assert len(predict(folders[task], inputs_for(task, files, top=2), device="cpu").rows) <= 4
    if task == "vqa":
        with Image.open(drawn) as image:
            assert (image.format, image.size) == ("PNG", (384, 288))
    if task in {"vqa", "classification"}:
        assert {row[name] for row in found.rows} == set(values)
        assert [row["confidence"] for row in found.rows] == sorted(
            (r["confidence"] for r in found.rows), reverse=True
        )
    with (console := Console(width=100)).capture() as shown:
        console.print(found.table())
    assert str(first[name])[:8] in shown.get()  # longer captions are wrapped
    assert ("%" in shown.get()) == (task != "captioning")


def test_table_shows_no_control_characters_of_a_model() -> None:
    with (console := Console(width=100)).capture() as shown:
        console.print(
            Predicted(
                "vqa", rows=[{"answer": "red\x1b]0;title\x07\x9b2J", "image": "a\x1b[2J.png"}]
            ).table()
        )
    assert "red" in shown.get()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown.get())


def test_pairs_are_those_of_the_model(folders, files):
    given = inputs_for("retrieval", files, top=3)
    rows = predict(folders["retrieval"], given, device="cpu").rows
    model = VLMoForImageTextRetrieval.from_pretrained(folders["retrieval"]).eval()
    processor = VLMoProcessor.from_pretrained(folders["retrieval"])
    pictures = [Image.new("RGB", (40, 30), COLORS[file.stem]) for file in given.images]
    inputs = processor(images=pictures, text=list(given.texts), return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
        similarity = output.image_embeds @ output.text_embeds.T
    assert len(rows) == 6
    for image, of_image in enumerate((rows[:3], rows[3:])):
        assert [row["similarity"] for row in of_image] == sorted(
            (r["similarity"] for r in of_image), reverse=True
        )
        for row in of_image:
            text = given.texts.index(row["text"])
            assert row["image"] == str(given.images[image])
            assert row["similarity"] == pytest.approx(similarity[image, text].item(), abs=ATOL)
            with torch.no_grad():
                logits = model.match(
                    inputs["pixel_values"][[image]],
                    inputs["input_ids"][[text]],
                    inputs["attention_mask"][[text]],
                )
            assert row["match"] == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=ATOL)


def test_one_text_finds_the_best_pictures(folders, files):
    rows = predict(
        folders["dual"], Inputs(tuple(files.values()), texts=("is it red",), top=3), device="cpu"
    ).rows
    assert len(rows) == 3
    assert [row["similarity"] for row in rows] == sorted(
        (row["similarity"] for row in rows), reverse=True
    )
    assert "match" not in rows[0]


WRONG = [  # task, images, other inputs, and the refusal
    *(
        (task, 1, {"question": "why?"}, f"is for {task} and needs .* a question")
        for task in TASKS
        if task != "vqa"
    ),
    (
        "vqa",
        1,
        {},
        "is for vqa and needs one --image and a --question; given were 1 images, 0 texts and no",
    ),
    ("vqa", 2, {"question": "why?"}, "given were 2 images"),
    ("vqa", 1, {"question": " "}, "no empty texts"),
    ("nlvr2", 1, {"texts": (SENTENCE,)}, "needs two images after --image and one --text"),
    ("classification", 0, {}, "needs images after --image; given were 0 images"),
    (
        "classification",
        1,
        {"texts": ("red",)},
        "needs images after --image; given were 1 images, 1 texts",
    ),
    ("segmentation", 2, {}, "needs one --image"),
    ("captioning", 1, {"texts": ("red",)}, "needs images after --image"),
    ("classification", 1, {"caption": True}, "is for classification and needs images"),
    ("retrieval", 1, {}, "needs images after --image and texts after --text"),
    ("retrieval", 1, {"texts": ("red", "")}, "no empty texts"),
]


def test_inputs_that_do_not_fit_are_refused(folders, files):
    images = (files["red"], files["blue"])
    for task, count, inputs, words in WRONG:
        with pytest.raises(ValueError, match=words):
            predict(folders[task], Inputs(images[:count], **inputs), device="cpu")


def test_other_mistakes_are_told(folders, files, tmp_path):
    with pytest.raises(
        ValueError, match=r"a PNG file of the tasks vqa and segmentation; .* is for classification"
    ):
        predict(
            folders["classification"], inputs_for("classification", files, save=tmp_path / "x.png")
        )
    with pytest.raises(ValueError, match="top is 0"):
        predict(folders["vqa"], inputs_for("vqa", files, top=0))
    with pytest.raises(ValueError, match=r"^the texts are \[' '\]; give words, and no empty texts"):
        predict(folders["vqa"], inputs_for("vqa", files, question=" "))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    for name in ("broken.png", "missing.png"):
        with pytest.raises(ValueError, match=name):
            predict(folders["classification"], Inputs((tmp_path / name,)), device="cpu")
    assert not (tmp_path / "x.png").exists()
