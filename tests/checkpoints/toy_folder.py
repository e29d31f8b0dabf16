"""Model folders with small random models, images for them, and a record of the errors that transformers logs."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tests.toy_model import shaken
from torch import nn

from vlmo import VLMoConfig, VLMoProcessor

CAPTIONS = ["a red square", "a green circle on white", "two blue squares"]
QUESTIONS = ["what color is it?", "is there a red square on the white circle?", "how many?"]


def drawings(count: int) -> list[Image.Image]:
    """Noise, of a different size each."""
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 256, (40 + 8 * number, 50, 3), dtype=np.uint8))
        for number in range(count)
    ]


def text_processor() -> VLMoProcessor:
    """Knows the words of captions and questions."""
    return VLMoProcessor.train(
        CAPTIONS + QUESTIONS, vocab_size=96, min_frequency=1, image_size=64, max_text_length=16
    )


def folder_writer(parent: Path, processor: VLMoProcessor) -> Callable[..., tuple[str, nn.Module]]:
    """A function that writes a model folder, and gives its path and the model."""

    def write(model_class: type[nn.Module], **changes) -> tuple[str, nn.Module]:
        torch.manual_seed(0)
        model = shaken(model_class(VLMoConfig.tiny(**changes)))
        path = parent / model_class.__name__
        model.save_pretrained(path)
        processor.save_pretrained(path)
        return str(path), model

    return write


@contextmanager
def logged_errors() -> Iterator[list[logging.LogRecord]]:
    """Errors that transformers logs meanwhile; pipelines do so where they take a model for unfit."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
