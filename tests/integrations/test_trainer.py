import ast
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tests.few_rows import few_rows
from tests.tasks.toy_vision import write_class_set, write_segment_set
from tests.toy_questions import processor, question_rows
from torch.utils.data import DataLoader
from transformers import AutoConfig, Trainer, TrainingArguments

import vlmo
from vlmo.data.examples import Contents, RowExamples
from vlmo.data.masking import WordMaskConfig
from vlmo.integrations.trainer import TrainerExamples
from vlmo.processing import TrainTransform, TransformConfig
from vlmo.tasks import TASKS, SegmentationTask

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_with_transformers.py"
CLASSES = {
    "classification": "VLMoForImageClassification",
    "language": "VLMoForMaskedLM",
    "nlvr2": "VLMoForVisualReasoning",
    "retrieval": "VLMoForImageTextRetrieval",
    "segmentation": "VLMoForSemanticSegmentation",
    "vqa": "VLMoForVisualQuestionAnswering",
}
DATA = {
    "language": "shapes",
    "nlvr2": "shapes-statements",
    "retrieval": "emoji-pairs",
    "vqa": "shapes-questions",
}
FOLDERS = {"classification": write_class_set, "segmentation": write_segment_set}
SHORT = ["--max-steps=2", "--per-device-train-batch-size=4", "--use-cpu", "--disable-tqdm=true"]


@pytest.mark.parametrize("task", CLASSES)
def test_example_trains_evaluates_and_writes_a_model_folder(task, tmp_path, capsys, monkeypatch):
    main = runpy.run_path(str(EXAMPLE))["main"]
    data = DATA.get(task) or str(FOLDERS[task](tmp_path / "data"))
    # The segmentation head of 512 channels is slow.
    monkeypatch.setitem(TASKS, "segmentation", partial(SegmentationTask, channels=8))
    with few_rows(64):
        main([*SHORT, "--task", task, "--data", data, "--output-dir", str(tmp_path)])
    assert ast.literal_eval(capsys.readouterr().out.splitlines()[-1])["eval_loss"] > 0
    assert AutoConfig.from_pretrained(tmp_path).architectures == [CLASSES[task]]
    _, report = getattr(vlmo, CLASSES[task]).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert (tmp_path / "processor_config.json").is_file()


STEPS, SAVED = 8, 5  # an epoch has three steps: the saved one lies within an epoch
CAPTIONS = ["is it red and round?", "is it blue and square?"]


def masked_words(rows: Dataset) -> TrainerExamples:
    transform = TrainTransform(TransformConfig(image_size=64))
    words = WordMaskConfig(probability=0.4)
    contents = Contents(0, transform=transform, tokenizer=processor().tokenizer, words=words)
    return TrainerExamples(RowExamples(rows, contents, texts=[CAPTIONS] * len(rows)))


def trainer(folder: Path, *, rows: int = 12, batch: int = 4, workers: int = 0) -> Trainer:
    torch.manual_seed(1)
    # Dropped paths and embeddings need the random state that a checkpoint keeps.
    config = vlmo.VLMoConfig.tiny(drop_path_rate=0.1, hidden_dropout_prob=0.1)
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        save_steps=SAVED,
        learning_rate=5e-3,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=5,  # the last batch has fewer rows
        dataloader_num_workers=workers,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    examples = masked_words(question_rows(rows))
    data = {"train_dataset": examples, "eval_dataset": examples}
    return Trainer(vlmo.VLMoForMaskedLM(config), arguments, data_collator=examples.collate, **data)


def test_trainer_fine_tunes_evaluates_and_resumes(tmp_path):
    whole = trainer(tmp_path)
    before = whole.evaluate()["eval_loss"]
    whole.train()
    after = whole.evaluate()["eval_loss"]
    assert after < before
    assert after == whole.evaluate()["eval_loss"]
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED}"))
    assert resumed.state.global_step == STEPS
    state, expected = resumed.model.state_dict(), whole.model.state_dict()
    saved = load_file(tmp_path / f"checkpoint-{SAVED}" / "model.safetensors")
    assert any(not torch.equal(saved[key], expected[key]) for key in saved)
    differing = [key for key, value in expected.items() if not torch.equal(state[key], value)]
    assert not differing


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_has_other_captions_and_masks_in_each_epoch(workers, tmp_path):
    trains = trainer(tmp_path, rows=1, batch=1, workers=workers)
    loaders = [trains.get_train_dataloader(), trains.get_train_dataloader()]
    first, again = (
        [str(rows["labels"]) for _ in range(6) for rows in loader] for loader in loaders
    )
    assert first == again
    assert len(set(first)) > 1
    measured = [next(iter(trains.get_eval_dataloader()))["labels"] for _ in range(2)]
    assert torch.equal(*measured)


def test_pairs_are_contrasted_and_masked_words_are_the_labels():
    rows = question_rows(8)
    words = masked_words(rows)
    batch = next(iter(DataLoader(words, batch_size=8, collate_fn=words.collate)))
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    masked = batch["labels"] != -100
    assert masked.any()
    plain = words.examples.collate([words[number] for number in range(8)])["input_ids"]
    assert torch.equal(batch["labels"][masked], plain[masked])
    assert torch.equal(batch["input_ids"][~masked], plain[~masked])
    contents = Contents(seed=0, tokenizer=processor().tokenizer)
    pairs = TrainerExamples(RowExamples(rows, contents, texts=[CAPTIONS] * 8))
    assert pairs.collate([pairs[0]])["return_loss"] is True
