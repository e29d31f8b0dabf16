"""Zero-shot classification beside open_clip's, on the same vectors."""

import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tests.integrations.toy_gallery import COLORS, drawings
from tests.retrieval.toy_dual_encoders import MODEL_TYPES, write_dual_encoder
from tests.tasks.toy_folders import write_folders
from tests.test_cli import refused

from vlmo.cli import main
from vlmo.retrieval import Encoder
from vlmo.zero_shot import build_classifier, evaluate_zero_shot
from vlmo.zero_shot.classification import ZeroShotSet

TEMPLATES = ("a {}.", "a drawing of a {}, on white", "{}")
# Float32 sums in another order.
CLOSE = 1e-6


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    folders = {name: write_dual_encoder(name, root / name) for name in MODEL_TYPES}
    return folders | {"vlmo": write_folders(root / "tasks")["retrieval"]}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder for each of six colors, with four drawings, and three in one."""
    root = tmp_path_factory.mktemp("colors")
    for number, image in enumerate(drawings()[:-1]):
        folder = root / f"light_{COLORS[number // 4]}"
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{number}.png")
    return root


class Peer:
    """What open_clip asks of a model, with the vectors of an encoder; a token is a whole text."""

    def __init__(self, encoder):
        self.encoder = encoder
        self.texts = []

    def tokenizer(self, texts):
        self.texts = list(texts)
        return torch.arange(len(texts))

    def encode_text(self, tokens, *, normalize):
        assert normalize
        return torch.from_numpy(self.encoder.embed_texts([self.texts[row] for row in tokens]))


@pytest.mark.parametrize("name", [*MODEL_TYPES, "vlmo"])
def test_classifier_and_logits_are_those_of_open_clip(models, images, name, tmp_path):
    encoder = Encoder(models[name], device="cpu")
    names = [f"light {color}" for color in sorted(COLORS)]
    peer = Peer(encoder)
    expected = open_clip.build_zero_shot_classifier(
        peer, peer.tokenizer, names, TEMPLATES, num_classes_per_batch=4
    )
    classifier = build_classifier(encoder, names, TEMPLATES)
    np.testing.assert_allclose(classifier, expected.numpy(), atol=CLOSE)
    assert (classifier.T @ classifier)[0, 1] < 0.9999
    rows = ZeroShotSet.read(source=str(images), split="test", notes=tmp_path)
    assert len(rows.rows) == 23
    files = [images / image_id for image_id in rows.rows["image_id"]]
    vectors = torch.from_numpy(encoder.embed_images([Image.open(file) for file in files]))
    cosines = vectors @ expected
    logits = replace(rows, texts=names).logits(encoder, TEMPLATES)
    scale = encoder.inverse_temperature
    np.testing.assert_allclose(logits / scale, cosines, atol=CLOSE)

    result = evaluate_zero_shot(encoder, str(images), templates=TEMPLATES)
    labels = torch.tensor([names.index(file.parent.name.replace("_", " ")) for file in files])
    # A tie counts against the model: the toy vocabularies read some names alike.
    ranks = (cosines > cosines.gather(1, labels[:, None]) - CLOSE).sum(dim=1)
    right = (ranks == 1).double()
    assert result.metrics["top1"] == pytest.approx(right.mean().item())
    assert result.metrics["top5"] == pytest.approx((ranks <= 5).double().mean().item())
    by_class = [right[labels == number].mean().item() for number in range(6)]
    assert result.metrics["mean_per_class_recall"] == pytest.approx(np.mean(by_class))
    assert result.chance == {"top1": 1 / 6, "top5": 5 / 6, "mean_per_class_recall": 1 / 6}
    shares = (scale * cosines).softmax(dim=1).amax(dim=1)
    confidences = [row["confidence"] for row in result.predictions]
    # They are rounded to four digits.
    assert confidences == pytest.approx(shares.tolist(), abs=1e-4)


def test_command_reads_names_and_templates_from_files(models, images, tmp_path, capsys):
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(["black", "blue", "green", "pink", "red", "yellow"]))
    templates = tmp_path / "templates.txt"
    templates.write_text("a {}\n\nthe {} one\n")
    out = tmp_path / "out.json"
    line = ["evaluate", str(models["clip"]), "--zero-shot", str(images), "--device", "cpu"]
    files = ["--classes", str(classes), "--templates", str(templates), "--out", str(out)]
    main([*line, *files])
    shown = capsys.readouterr().out
    assert "zero-shot" in shown
    assert "mean_per_class_recall" in shown
    read = json.loads(out.read_text())
    assert read["settings"] == {"templates": ["a {}", "the {} one"]}
    assert read["num_predictions"] == 23
    assert {row["label"] for row in read["predictions"]} == set(classes.read_text().split())
    assert all(low < high for low, high in read["intervals"].values())


def test_names_templates_and_options_that_do_not_fit_are_refused(models, images, tmp_path, capsys):
    line = ["evaluate", str(models["clip"]), "--zero-shot", str(images), "--device", "cpu"]
    classes = tmp_path / "classes.txt"
    classes.write_text("red\nblue\n")
    assert "2 class names" in refused([*line, "--classes", str(classes)], capsys)
    templates = tmp_path / "templates.txt"
    templates.write_text("a photo\n")
    assert "'a photo'" in refused([*line, "--templates", str(templates)], capsys)
    templates.write_text("\n")
    assert "is empty" in refused([*line, "--templates", str(templates)], capsys)
    assert "--data does not go with --zero-shot" in refused([*line, "--data", "shapes"], capsys)
