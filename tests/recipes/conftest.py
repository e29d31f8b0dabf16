"""Data and a visual tokenizer that are small enough to train on in a test."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tasks.toy_vision import write_class_set, write_segment_set
from tests.toy_questions import write_questions, write_sentences

from vlmo.model.visual_tokenizer import VQVisualTokenizer, VQVisualTokenizerConfig
from vlmo.tasks import ClassificationTask, NLVR2Task, SegmentationTask, VQATask

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of 32 coloured pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "caption", "split"])
        for number in range(32):
            colour = list(COLOURS)[number % 4]
            pixels = np.full((40, 40, 3), COLOURS[colour], dtype=np.uint8)
            pixels[number % 30 : number % 30 + 8] = 255
            Image.fromarray(pixels).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", f"a {colour} square, number {number}", "train"])
    return folder


@pytest.fixture(scope="module")
def visual_tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("visual_tokenizer")
    config = VQVisualTokenizerConfig(patch_size=16, hidden_size=16, intermediate_size=16, num_tokens=16, code_size=4)
    torch.manual_seed(0)
    model = VQVisualTokenizer(config).train()
    model(torch.rand(16, 3, 64, 64) * 2 - 1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def task_sets(tmp_path_factory) -> dict[type, Path]:
    """Data of the stages that need more than captions."""
    folder = tmp_path_factory.mktemp("task_sets")
    return {
        VQATask: write_questions(folder / "questions"),
        NLVR2Task: write_sentences(folder / "sentences"),
        ClassificationTask: write_class_set(folder / "classes"),
        SegmentationTask: write_segment_set(folder / "segments"),
    }
