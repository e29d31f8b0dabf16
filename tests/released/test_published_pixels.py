"""Published classifiers on the pixels of their publication, on toy files of a server on loopback."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tests.parity.test_beit import published_keys, random_beit
from tests.tasks.toy_vision import NAMES, png
from tests.toy_questions import write_prepared
from torchvision import transforms
from transformers import BeitForImageClassification

from vlmo.data.schema import class_features
from vlmo.tasks import evaluate

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_classes_are_predicted_on_the_pixels_of_the_publication(site, cache, tmp_path):
    """Short side to 8/7 of the size, central square, ImageNet's mean: else other classes come out."""
    torch.manual_seed(0)
    theirs = random_beit(BeitForImageClassification, num_labels=3, use_mean_pooling=True)
    size, file = theirs.config.image_size, tmp_path / "file.pth"
    torch.save({"model": published_keys(theirs)}, file)
    site.files["beitv2_base_patch16_224_pt1k_ft1k.pth"] = file.read_bytes()
    noise = np.random.default_rng(0)
    images, rows = [], []
    for number in range(6):
        images.append(noise.integers(0, 256, (30 + 4 * number, 70, 3), dtype=np.uint8))
        row = {"image": png(images[-1]), "image_id": str(number), "label": 0}
        rows.append(row | {"captions": [], "source": "toy", "licence": "CC0-1.0"})
    parts = {"validation": Dataset.from_list(rows, features=class_features(NAMES))}
    data = write_prepared(tmp_path / "imagenet", parts, labels=NAMES)
    resize = transforms.Resize(int(size / (224 / 256)), interpolation=3)
    steps = [resize, transforms.CenterCrop(size), transforms.ToTensor()]
    prepare = transforms.Compose([*steps, transforms.Normalize(*IMAGENET)])
    with torch.no_grad():
        logits = theirs(torch.stack([prepare(Image.fromarray(each)) for each in images])).logits
    result = evaluate("beitv2-base-pt1k-ft1k", source=str(data), split="validation", device="cpu")
    best = logits.softmax(dim=-1).max(dim=-1)
    found = [(row["prediction"], row["confidence"]) for row in result.predictions]
    names, shares = zip(*found, strict=True)
    assert names == tuple(NAMES[number] for number in best.indices)
    assert shares == pytest.approx(best.values.tolist(), abs=0.02)
    assert result.settings == {"center_crop": 0.875}
