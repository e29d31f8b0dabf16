"""A gallery of drawings, and a model folder that has learnt half of it."""

import functools
from itertools import chain
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from vlmo import VLMoConfig, VLMoForImageTextRetrieval, VLMoProcessor
from vlmo.evaluation import RetrievalSet

COLORS = ("red", "green", "blue", "yellow", "black", "pink")
SHAPES = ("square", "circle", "bar", "cross")
NUM_IMAGES = len(COLORS) * len(SHAPES)
CAPTIONS = [[f"a {color} {shape}", f"{shape} in {color}"] for color in COLORS for shape in SHAPES]
# At the published scale of weights, a model this small takes hundreds of steps to leave its start.
LIVELY = {"initializer_range": 0.2, "layer_scale_init": None, "logit_scale_init": 2.0}
_BOXES = {
    "square": [(16, 16, 48, 48)],
    "bar": [(4, 26, 60, 38)],
    "cross": [(4, 28, 60, 36), (28, 4, 36, 60)],
}


def drawings() -> list[Image.Image]:
    """One of each color and shape, on white; of several sizes, so that resizing matters."""
    return [image.copy() for image in _drawings()]


@functools.cache  # tests ask for them thousands of times
def _drawings() -> list[Image.Image]:
    images = [_draw(color, shape) for color in COLORS for shape in SHAPES]
    return [image.resize((64 + 8 * (row % 5), 64)) for row, image in enumerate(images)]


def _draw(color: str, shape: str) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((12, 12, 52, 52), fill=color)
    for box in _BOXES.get(shape, []):
        pen.rectangle(box, fill=color)
    return image


def trained_folder(folder: Path, *, steps: int = 60) -> Path:
    """Write a tiny model that was trained on the first caption of every other drawing for `steps` steps."""
    for part in _trained(steps):
        part.save_pretrained(folder)
    return folder


@functools.cache  # several test modules of a process share it
def _trained(steps: int) -> tuple[VLMoForImageTextRetrieval, VLMoProcessor]:
    torch.manual_seed(0)
    words = list(chain.from_iterable(CAPTIONS))
    processor = VLMoProcessor.train(words * 2, vocab_size=90, image_size=64, max_text_length=16)
    model = VLMoForImageTextRetrieval(VLMoConfig.tiny(vocab_size=processor.vocab_size, **LIVELY))
    rows = range(0, NUM_IMAGES, 2)
    texts = [CAPTIONS[row][0] for row in rows]
    inputs = processor(images=drawings()[::2], text=texts, return_tensors="pt")
    pixel_values, tokens = inputs.pop("pixel_values"), dict(inputs)
    labels = torch.arange(len(rows))
    match_labels = torch.cat([torch.ones_like(labels), torch.zeros_like(labels)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        output = model(pixel_values=pixel_values, **tokens)
        others = pixel_values.roll(int(torch.randint(1, len(rows), ())), 0)
        twice = {name: torch.cat([part, part]) for name, part in tokens.items()}
        match_logits = model.match(torch.cat([pixel_values, others]), **twice)
        loss = F.cross_entropy(output.logits_per_image, labels)
        loss += F.cross_entropy(output.logits_per_text, labels)
        (loss + F.cross_entropy(match_logits, match_labels)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, processor


def retrieval_set(processor: VLMoProcessor) -> RetrievalSet:
    """The whole gallery, as our own evaluation reads it."""
    pixel_values = processor(images=drawings(), return_tensors="pt")["pixel_values"]
    tokens = processor(text=list(chain.from_iterable(CAPTIONS)), return_tensors="pt")

    def read_texts(numbers: range) -> tuple[torch.Tensor, torch.Tensor]:
        rows = slice(numbers.start, numbers.stop)
        return tokens["input_ids"][rows], tokens["attention_mask"][rows]

    return RetrievalSet(
        read_images=lambda numbers: pixel_values[numbers.start : numbers.stop],
        read_texts=read_texts,
        text_to_image=torch.arange(NUM_IMAGES).repeat_interleave(2),
    )
