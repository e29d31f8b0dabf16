"""Recall of the variants of an ONNX export."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console
from tests.toy_model import toy
from tests.toy_onnx import copy_graphs, dual_encoder

from vlmo.evaluation import evaluate_retrieval
from vlmo.export.runtime import OnnxRetrievalModel
from vlmo.model import VLMoForImageClassification
from vlmo.processing import VLMoProcessor
from vlmo.tasks.onnx_export import export_onnx
from vlmo.tasks.retrieval import PairSet

NUM_IMAGES = 32


@pytest.fixture(scope="module")
def exported(shared_folder) -> SimpleNamespace:
    return dual_encoder(shared_folder)


@pytest.mark.slow
def test_recall_of_both_variants_is_printed_and_kept(exported, pictures, tmp_path, monkeypatch) -> None:
    copy_graphs(exported.folder, monkeypatch)
    console = Console(file=io.StringIO(), width=100)
    out = tmp_path / "exported"
    report = export_onnx(exported.source, out, int8=True, recall_on=str(pictures), split="train", console=console)
    float32, int8 = report.recalls["float32"], report.recalls["int8"]
    rows = PairSet.read(
        str(pictures), split="train", processor=VLMoProcessor.from_pretrained(out), quarantine=tmp_path / "quarantine"
    )
    # Not PyTorch's: these images are so alike that the last digit decides some ranks.
    assert float32 == evaluate_retrieval(OnnxRetrievalModel(out), rows.as_set()).metrics
    assert int8 == evaluate_retrieval(OnnxRetrievalModel(out, precision="int8"), rows.as_set()).metrics
    kept = json.loads((out / "onnx.json").read_text())["recall"]
    assert kept == {"source": str(pictures), "float32": float32, "int8": int8}

    printed = console.file.getvalue()
    assert printed.startswith("image_encoder.onnx: ")
    assert printed.count("largest difference to PyTorch") == 6
    (line,) = [line for line in printed.splitlines() if "IR@10" in line]
    figures = [float(cell) for cell in line.replace("│", " ").split()[1:]]
    loss = float32["ir@10"] - int8["ir@10"]
    expected = [float32["ir@10"], int8["ir@10"], loss, 10 / NUM_IMAGES]
    assert figures == [pytest.approx(100 * value, abs=0.051) for value in expected]  # printed with one decimal


def test_recall_of_a_model_that_does_not_search_is_refused_before_the_work(pictures, tmp_path) -> None:
    toy(VLMoForImageClassification).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="VLMoForImageClassification"):
        export_onnx(tmp_path / "model", tmp_path / "exported", recall_on=str(pictures), split="train")
    assert not (tmp_path / "exported").exists()


def test_a_source_that_is_not_there_is_refused_before_the_work(exported, tmp_path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        export_onnx(exported.source, tmp_path / "exported", recall_on="nowhere")
    assert not (tmp_path / "exported").exists()
