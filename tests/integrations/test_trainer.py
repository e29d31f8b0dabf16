import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from tests.tasks.toy_vision import NAMES, PIXELS, class_rows, png, segment_rows
from tests.toy_questions import ANSWERS, COLORS, processor, question_rows, reasoning_rows
from transformers import Trainer, TrainingArguments

import vlmo
from vlmo.data.masking import WordMaskConfig
from vlmo.data.schema import SEGMENT_FEATURES
from vlmo.integrations import collators

STEPS, SAVED = 8, 5  # an epoch has three steps: the saved one lies within an epoch
WORDS = processor()
NUMBERS = {name: number for number, name in enumerate(ANSWERS)}


def captioned(count: int = 12) -> list[dict[str, Any]]:
    """Decoded images, as a data set with the feature `Image()` gives them."""
    names = list(COLORS)
    colors = [names[number % len(names)] for number in range(count)]
    return [
        {"image": Image.new("RGB", (24, 20), COLORS[color]), "text": f"is it {color}?"}
        for color in colors
    ]


COLLATORS = {
    "retrieval": collators.DataCollatorForRetrieval(WORDS),
    "vqa": collators.DataCollatorForVisualQuestionAnswering(WORDS, label2id=NUMBERS),
    "nlvr2": collators.DataCollatorForVisualReasoning(WORDS),
    "classification": collators.DataCollatorForImageClassification(WORDS.image_processor),
    "segmentation": collators.DataCollatorForSemanticSegmentation(WORDS.image_processor),
    "mlm": collators.DataCollatorForMaskedLM(WORDS),
}
PAIRS = [row | {"label": int(number > 1)} for number, row in enumerate(reasoning_rows(12))]
SEGMENTS = Dataset.from_list(segment_rows("train", 12), features=SEGMENT_FEATURES)
CASES = {
    "retrieval": (vlmo.VLMoForImageTextRetrieval, {}, captioned()),
    "vqa": (vlmo.VLMoForVisualQuestionAnswering, {"num_labels": len(ANSWERS)}, question_rows(12)),
    "nlvr2": (vlmo.VLMoForVisualReasoning, {"num_labels": 2, "num_modality_types": 3}, PAIRS),
    "classification": (
        vlmo.VLMoForImageClassification,
        {"num_labels": len(NAMES)},
        class_rows("train", 12),
    ),
    "segmentation": (
        vlmo.VLMoForSemanticSegmentation,
        {"num_labels": 4, "segmentation_channels": 16},
        SEGMENTS,
    ),
    "mlm": (vlmo.VLMoForMaskedLM, {}, captioned()),
}
SIZES = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 5,
}  # the last one has fewer rows
OPTIONS = {
    "remove_unused_columns": False,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def trainer(name: str, folder: Path) -> Trainer:
    model_class, settings, rows = CASES[name]
    torch.manual_seed(1)
    # Dropped paths and embeddings need the random state that a checkpoint keeps.
    model = model_class(
        vlmo.VLMoConfig.tiny(drop_path_rate=0.1, hidden_dropout_prob=0.1, **settings)
    )
    steps = {"max_steps": STEPS, "save_steps": SAVED, "logging_steps": 1, "learning_rate": 5e-3}
    arguments = TrainingArguments(str(folder), **steps, **SIZES, **OPTIONS)
    return Trainer(
        model, arguments, data_collator=COLLATORS[name], train_dataset=rows, eval_dataset=rows
    )


@pytest.mark.parametrize("name", CASES)
def test_trainer_fine_tunes_evaluates_and_resumes(name, tmp_path):
    whole = trainer(name, tmp_path)
    before = whole.evaluate()["eval_loss"]
    whole.train()
    after = whole.evaluate()["eval_loss"]
    assert after < before
    assert after == whole.evaluate()["eval_loss"]
    resumed = trainer(name, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED}"))
    assert resumed.state.global_step == STEPS
    state, expected = resumed.model.state_dict(), whole.model.state_dict()
    saved = load_file(tmp_path / f"checkpoint-{SAVED}" / "model.safetensors")
    assert any(not torch.equal(saved[key], expected[key]) for key in saved)
    differing = [key for key, value in expected.items() if not torch.equal(state[key], value)]
    assert not differing


def test_answers_are_words_of_one_or_ten_annotators_or_scores():
    rows, answering = question_rows(4), COLLATORS["vqa"]
    scores = answering(list(rows))["labels"]
    assert scores[0].tolist() == pytest.approx([1, 0, 0, 0, 0, 0.6])
    words = [dict(row) for row in rows.remove_columns(["answer_labels", "answer_scores"])]
    assert torch.equal(answering(words)["labels"], scores)
    one = [row | {"answers": row["answers"][:1]} for row in words]
    assert torch.equal(answering(one)["labels"], scores.eq(1).float())
    one[1]["answers"] = ["a zebra"]
    assert answering(one)["labels"].sum(dim=1).tolist() == [1, 0, 1, 1]


def test_pixel_classes_keep_their_numbers(tmp_path):
    rows = [dict(row) for row in segment_rows("train", 2)]
    collate = COLLATORS["segmentation"]
    labels = collate(rows)["labels"]
    assert labels.shape == (2, 64, 64)
    assert set(labels[0].unique().tolist()) == {0, PIXELS.index(NAMES[0]), 255}
    (tmp_path / "mask.png").write_bytes(rows[0]["mask"]["bytes"])
    opened = Image.open(tmp_path / "mask.png")
    for mask in (str(tmp_path / "mask.png"), opened):
        assert torch.equal(collate([rows[0] | {"mask": mask}])["labels"], labels[:1])
    with pytest.raises(
        ValueError, match=r"mask has shape \(8, 8\); expected that of its image, \(64, 80\)"
    ):
        collate([rows[0] | {"mask": png(np.zeros((8, 8), dtype=np.uint8))}])


@pytest.mark.parametrize("kind", [np.int64, list, torch.tensor])
def test_pixel_classes_may_be_numbers_of_any_type(kind):
    numbers = np.array([[0, 1], [2, 255]])
    mask = numbers.tolist() if kind is list else kind(numbers)
    collate = collators.DataCollatorForSemanticSegmentation(WORDS.image_processor)
    labels = collate([{"image": Image.new("RGB", (2, 2)), "mask": mask}])["labels"]
    assert labels[0, 0, 0] == 0
    assert labels.unique().tolist() == [0, 1, 2, 255]


def test_masks_of_captions_are_refused_for_texts_alone():
    collate = collators.DataCollatorForMaskedLM(WORDS, WordMaskConfig(of_captions=True))
    with pytest.raises(ValueError, match="of_captions"):
        collate([{"text": "a red car"}])


def test_masks_depend_on_the_batch_and_the_seed_alone():
    rows = captioned(8)
    words = dataclasses.replace(COLLATORS["mlm"], words=WordMaskConfig(probability=0.4))
    first = words(rows)["labels"]
    torch.rand(3)  # no generator of others is used
    for again in (words, pickle.loads(pickle.dumps(words))):
        assert torch.equal(again(rows)["labels"], first)
    for other in (dataclasses.replace(words, seed=1)(rows), words(rows[::-1])):
        assert not torch.equal(other["labels"], first)
    batch = words(rows)
    plain = WORDS(text=[row["text"] for row in rows], return_tensors="pt")["input_ids"]
    chosen = batch["labels"] != -100
    assert torch.equal(batch["labels"][chosen], plain[chosen])
    assert torch.equal(batch["input_ids"][~chosen], plain[~chosen])
    assert batch["pixel_values"].shape == (8, 3, 64, 64)
    assert "pixel_values" not in words([{"text": "is it red?"}])


@pytest.mark.parametrize(
    ("name", "sampled", "workers"), [("retrieval", "input_ids", 0), ("mlm", "labels", 1)]
)
def test_one_row_a_batch_has_other_captions_and_masks_in_each_epoch(
    name, sampled, workers, tmp_path
):
    model_class, settings, _ = CASES[name]
    row = captioned(1)[0] | {"text": ["is it red and round?", "is it blue and square?"]}
    arguments = TrainingArguments(
        str(tmp_path), dataloader_num_workers=workers, **dict.fromkeys(SIZES, 1), **OPTIONS
    )
    model, rows = (
        model_class(vlmo.VLMoConfig.tiny(**settings)),
        {"train_dataset": [row], "eval_dataset": [row]},
    )
    trains = Trainer(model, arguments, data_collator=COLLATORS[name], **rows)
    loaders = [trains.get_train_dataloader(), trains.get_train_dataloader()]
    first, again = (
        [str(batch[sampled]) for _ in range(6) for batch in loader] for loader in loaders
    )
    assert first == again
    assert len(set(first)) > 1
    measured = [next(iter(trains.get_eval_dataloader()))[sampled] for _ in range(2)]
    assert torch.equal(*measured)


def test_each_caption_of_an_image_has_its_turn():
    captions = ["is it red?", "is it blue?"]
    rows = [captioned(1)[0] | {"text": np.array(captions)}] * 6
    collate = COLLATORS["retrieval"]
    found = {tuple(ids) for ids in collate(rows)["input_ids"].tolist()}
    assert len(found) == 2
    assert torch.equal(collate(rows)["input_ids"], collate(rows)["input_ids"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"img": 1, "text": "a"}, "the rows have img, text; expected image in each"),
        ({"image": None, "text": "a"}, "a row has no image; expected image in each"),
        (
            {"image": png(np.zeros((9, 9, 3), dtype=np.uint8)), "label": 3},
            "expected text or captions",
        ),
        ({"image": "no/such.png", "text": "a"}, "no/such.png: cannot be read"),
        (
            {"image": png(np.zeros((9, 9, 3), dtype=np.uint8)), "captions": []},
            "an empty list of captions",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_told(row, message):
    with pytest.raises(ValueError, match=message):
        COLLATORS["retrieval"]([row])
