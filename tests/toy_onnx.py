"""A dual encoder with fusion encoder as ONNX graphs, exported once for all test processes of a run."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from tests.integrations.toy_gallery import CAPTIONS, drawings
from tests.toy_model import toy
from vlmo import VLMoForPreTraining, VLMoProcessor
from vlmo.export import onnx as onnx_export

LONGEST = 24


def words() -> list[str]:
    return [caption for captions in CAPTIONS for caption in captions]


def dual_encoder(shared: Path) -> SimpleNamespace:
    """Return the model folder `source`, `folder` with graphs of both precisions, and the `report` of their export."""
    source, folder, report = (
        shared / "onnx" / name for name in ("model", "exported", "report.pickle")
    )
    with FileLock(shared / "onnx.lock"):
        if not report.exists():
            sizes = {"num_hidden_layers": 2, "max_text_positions": LONGEST}
            toy(VLMoForPreTraining, **sizes).save_pretrained(source)
            lengths = {"vocab_size": 96, "image_size": 64, "max_text_length": 16}
            processor = VLMoProcessor.train(words() * 2, **lengths)
            processor.save_pretrained(source)
            samples = dict(processor(images=drawings(), text=words()[::2], return_tensors="np"))
            written = onnx_export.write_onnx(source, folder, samples=samples)
            report.write_bytes(pickle.dumps(written))
    return SimpleNamespace(source=source, folder=folder, report=pickle.loads(report.read_bytes()))


def copy_graphs(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let an export of the same model copy the graphs of `folder`, instead of converting the model again."""

    def copy(model, graph, file: Path) -> bool:
        copied = [shutil.copy(part, file.parent) for part in folder.glob(f"{file.name}*")]
        return len(copied) > 1  # weights in a second file

    patch.setattr(onnx_export, "_convert", copy)
