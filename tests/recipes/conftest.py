"""Data and a visual tokenizer that are small enough to train on in a test."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tasks.toy_vision import write_class_set, write_segment_set
from tests.toy_questions import COLORS, write_questions, write_sentences

from vlmo.model.visual_tokenizer import VQVisualTokenizer, VQVisualTokenizerConfig


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of 32 colored pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "caption", "split"])
        for number in range(32):
            color = list(COLORS)[number % 4]
            pixels = np.full((40, 40, 3), COLORS[color], dtype=np.uint8)
            pixels[number % 30 : number % 30 + 8] = 255
            Image.fromarray(pixels).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", f"a {color} square, number {number}", "train"])
    return folder


@pytest.fixture(scope="module")
def visual_tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("visual_tokenizer")
    config = VQVisualTokenizerConfig(
        patch_size=16, hidden_size=16, intermediate_size=16, num_tokens=16, code_size=4
    )
    torch.manual_seed(0)
    model = VQVisualTokenizer(config).train()
    model(torch.rand(16, 3, 64, 64) * 2 - 1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> dict[str, Path]:
    """Prepared data of the tasks that need more than captions."""
    root = tmp_path_factory.mktemp("sets")
    return {
        "vqa": write_questions(root / "questions"),
        "nlvr2": write_sentences(root / "sentences"),
        "classification": write_class_set(root / "classes"),
        "segmentation": write_segment_set(root / "segments"),
    }
