"""`vlmo verify` from the download to the report, on toy files of a server on loopback."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tests.integrations.toy_gallery import CAPTIONS, drawings
from tests.parity.test_beit import published_keys, random_beit
from tests.released.toy_server import COCO
from tests.tasks.toy_vision import NAMES, png
from tests.test_cli_tasks import refused
from tests.toy_questions import question_rows, write_prepared
from torchvision import transforms
from transformers import BeitForImageClassification

from vlmo.cli import main
from vlmo.data.schema import class_features
from vlmo.released.download import read_sums
from vlmo.released.published import MODELS
from vlmo.tasks import evaluate

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pairs(folder: Path) -> Path:
    rows = []
    for number, image in enumerate(drawings()[:12]):
        row = {"image": png(np.asarray(image)), "captions": CAPTIONS[number]}
        rows.append(row | {"image_id": str(number), "source": "toy", "licence": "CC0-1.0"})
    return write_prepared(folder, {"test": Dataset.from_list(rows)}, labels=None)


def test_report_has_all_results_and_what_they_depend_on(site, cache, tmp_path, capsys):
    data = pairs(tmp_path / "coco")
    main(["verify", "vlmo-base-coco", "--data", str(data), "--device", "cpu", "--batch-size", "5"])
    shown = capsys.readouterr().out
    read = json.loads(Path("verify_vlmo-base-coco.json").read_text())
    direct = evaluate("vlmo-base-coco", source=str(data), split="test", rerank=0)
    rows = read["results"]
    published = [(row["split"], row["metric"], row["published"]) for row in rows]
    assert published == list(MODELS["vlmo-base-coco"].reported)
    for row in rows:
        measured = 100 * direct.metrics[row["metric"]]
        assert row["measured"] == pytest.approx(measured)
        assert row["difference"] == pytest.approx(measured - row["published"])
        assert row["samples"] == 12 + sum(map(len, CAPTIONS[:12]))
        assert row["interval"][0] <= measured <= row["interval"][1]
        assert f"{measured:.2f}" in shown
        assert f"{row['difference']:+.2f}" in shown
    assert read["file"] == {"name": COCO, **read_sums()[COCO]}
    folder = cache / "models" / "vlmo-base-coco"
    for name in ("config.json", "model.safetensors"):
        digits = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert read["measured"][name] == digits
    assert (read["device"], read["dtype"], read["data"]) == ("cpu", "float32", "coco")
    assert {"torch", "transformers", "vlmo", "python"} <= read["versions"].keys()
    assert (cache / "models" / "vlmo-base-coco" / "config.json").is_file()


def test_split_of_a_server_gets_its_file(site, cache, tmp_path):
    answers = [f"answer {number}" for number in range(17)]
    rows = question_rows(6, known=False)
    data = write_prepared(tmp_path / "vqav2", {"test_dev": rows, "test_std": rows}, labels=answers)
    main(f"verify vlmo-base-vqa --data {data} --device cpu --out out/report.json".split())
    found = json.loads(Path("out/report.json").read_text())["results"]
    assert [row["submission"] for row in found] == ["report_test_dev.json", "report_test_std.json"]
    assert all("measured" not in row and row["samples"] == 6 for row in found)
    given = json.loads(Path("out/report_test_dev.json").read_text())
    assert [row["question_id"] for row in given] == [100 + number for number in range(6)]


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
    main(["verify", "beitv2-base-pt1k-ft1k", "--data", str(data), "--device", "cpu"])
    row = json.loads(Path("verify_beitv2-base-pt1k-ft1k.json").read_text())["results"][0]
    assert row["published"] == 85.5
    assert row["measured"] == pytest.approx(100 * result.metrics["top1"])


def test_what_cannot_be_verified_is_one_line(site, cache, tmp_path, capsys):
    data, coco = pairs(tmp_path / "flickr30k"), pairs(tmp_path / "coco")
    for line, words in (
        (f"vlmo-base --data {data}", "no result of 'vlmo-base' is published; did you mean 'vlmo-"),
        (f"vlmo-base-coco --data {data}", f"{data} is flickr30k; the published results of "),
        ("vlmo-base-coco --data none", "nothing at none; give the folder"),
        ("vlmo-base-coco --data x --out a.txt", "ends with .json"),
    ):
        assert words in refused(["verify", *line.split()], capsys)
    assert not site.requests
    Path("vlmo-base-coco").mkdir()
    Path("vlmo-base-coco/config.json").write_text("{}")
    shown = refused(["verify", "vlmo-base-coco", "--data", str(coco)], capsys)
    assert "goes before the published" in shown
