"""ONNX graphs of every class: what they give, and that they give it for any batch and any text length."""

from __future__ import annotations

import json
import logging.handlers
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from tests.integrations.toy_gallery import drawings
from tests.toy_model import BEIT3, pictures, texts, toy
from tests.toy_onnx import LONGEST, copy_graphs, dual_encoder, words
from torch import Tensor

import vlmo
from vlmo import (
    VLMoForImageCaptioning,
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForPreTraining,
    VLMoForSemanticSegmentation,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
    VLMoModel,
    VLMoProcessor,
)
from vlmo.export import onnx as onnx_export
from vlmo.export.graphs import graphs_of
from vlmo.export.onnx import write_onnx
from vlmo.export.sessions import OnnxSession
from vlmo.processing import image_processor_for

# Another order of float32 sums; measured: 4e-7 on vectors, 2e-6 on hidden states.
CLOSE = 1e-5
# Seven bits of weight and eight of activation in two layers of a shaken model; measured: 0.9992.
INT8_COSINE = 0.995
# Logits of the same, which reach 1.4; measured: 0.053.
INT8_LOGITS = 0.2

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_without_pytorch.py"


@pytest.fixture(scope="module")
def exported(shared_folder) -> SimpleNamespace:
    """A dual encoder with fusion encoder, in PyTorch and as graphs of both precisions."""
    found = dual_encoder(shared_folder)
    found.model = VLMoForPreTraining.from_pretrained(found.source).eval()
    return found


@pytest.fixture(scope="module")
def processor(exported) -> VLMoProcessor:
    return VLMoProcessor.from_pretrained(exported.source)


@pytest.fixture
def graph(exported):
    """Opens one graph of the exported folder."""
    return lambda name: OnnxSession(exported.folder / f"{name}.onnx")


def test_threads_of_onnx_runtime_sleep_where_those_of_openmp_do(graph, monkeypatch):
    entry = "session.intra_op.allow_spinning"
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert (
        graph("image_encoder").session.get_session_options().get_session_config_entry(entry) == "0"
    )
    monkeypatch.delenv("OMP_WAIT_POLICY")
    options = graph("image_encoder").session.get_session_options()
    with pytest.raises(RuntimeError, match=entry):  # not set: ONNX Runtime's own choice
        options.get_session_config_entry(entry)


def close(
    actual: Tensor | np.ndarray, expected: Tensor | np.ndarray, *, atol: float = CLOSE
) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual), torch.as_tensor(expected), atol=atol, rtol=0
    )


def text_of(lengths: list[int], *, padded_to: int | None = None) -> tuple[Tensor, Tensor]:
    made = texts(lengths, padded_to=padded_to)
    return made["input_ids"], made["attention_mask"]


# Neither batch nor length is one that the export itself used.
@pytest.mark.parametrize("lengths", [[5], [2, 2, 2, 2, 2], [3, 17], [LONGEST, 9, 4, 2]])
@torch.no_grad()
def test_encoders_give_what_pytorch_gives_for_any_batch_and_text_length(exported, graph, lengths):
    pixels, text = pictures(len(lengths)), text_of(lengths)
    close(graph("image_encoder")(pixels)[0], exported.model.get_image_features(pixels))
    close(graph("text_encoder")(*text)[0], exported.model.get_text_features(*text))
    close(graph("fusion_encoder")(pixels, *text)[0], exported.model.match(pixels, *text))


@pytest.mark.parametrize("name", ["image_encoder", "text_encoder", "fusion_encoder"])
def test_graph_is_valid_in_the_current_opset_and_holds_no_path_of_this_machine(exported, name):
    model = onnx.load(exported.folder / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 23)]
    attentions = [node for node in model.graph.node if node.op_type == "Attention"]
    assert len(attentions) == exported.model.config.num_hidden_layers
    if name != "image_encoder":  # padding reaches the attention as a float mask
        values = onnx.shape_inference.infer_shapes(model).graph.value_info
        types = {value.name: value.type.tensor_type.elem_type for value in values}
        assert {types[node.input[3]] for node in attentions} == {onnx.TensorProto.FLOAT}
    content = (exported.folder / f"{name}.onnx").read_bytes()
    assert str(Path(vlmo.__file__).parent).encode() not in content
    assert b"site-packages" not in content


def test_folder_holds_all_that_is_needed(exported, processor):
    description = json.loads((exported.folder / "onnx.json").read_text())
    image = {"resample": "bicubic", "transparency": "on white", "mean": [0.5] * 3, "std": [0.5] * 3}
    assert description["image"] == {"size": [64, 64], "rescale": pytest.approx(1 / 255), **image}
    text = {
        "max_positions": LONGEST,
        "pad_token_id": 0,
        "tokenizer": "tokenizer.json",
        "max_length": 16,
    }
    assert description["text"] == text
    assert description["logit_scale"] == pytest.approx(
        float(exported.model.contrast_head.logit_scale.detach())
    )
    assert (description["opset"], description["labels"]) == (23, None)
    assert description["model_class"] == "VLMoForPreTraining"
    assert list(description["graphs"]) == ["image_encoder", "text_encoder", "fusion_encoder"]
    for entry in description["graphs"].values():
        for variant in ("float32", "int8"):
            assert (exported.folder / entry[variant]["file"]).stat().st_size == entry[variant][
                "num_bytes"
            ]
        assert 0 < entry["float32"]["largest_difference"] < CLOSE
    read = VLMoProcessor.from_pretrained(exported.folder)
    assert read(text=words())["input_ids"] == processor(text=words())["input_ids"]
    fusion = description["graphs"]["fusion_encoder"]
    shapes = [["batch", 3, 64, 64], ["batch", "text"], ["batch", "text"]]
    assert [tensor["shape"] for tensor in fusion["inputs"].values()] == shapes
    assert fusion["outputs"] == {"match_logits": {"type": "tensor(float)", "shape": ["batch", 2]}}


@torch.no_grad()
def test_int8_files_multiply_in_int8_and_agree_roughly(exported, processor):
    weights = onnx.load(exported.folder / "text_encoder.int8.onnx").graph.initializer
    matrices = [
        each for each in weights if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 2
    ]
    # Four in each layer, the projection, and words' embeddings.
    assert len(matrices) == 4 * exported.model.config.num_hidden_layers + 2
    images, texts, pairs = (
        OnnxSession(exported.folder / f"{name}_encoder.int8.onnx")
        for name in ("image", "text", "fusion")
    )
    given = processor(
        images=drawings()[1:8:2], text=words()[3:19:4], return_tensors="pt"
    )  # alike to the samples
    pixels, text = given["pixel_values"], (given["input_ids"], given["attention_mask"])
    for actual, expected in (
        (images(pixels)[0], exported.model.get_image_features(pixels)),
        (texts(*text)[0], exported.model.get_text_features(*text)),
    ):
        cosines = (torch.from_numpy(actual) * expected).sum(dim=1)
        assert INT8_COSINE < cosines.min() < 1 - CLOSE
    close(pairs(pixels, *text)[0], exported.model.match(pixels, *text), atol=INT8_LOGITS)
    graphs = exported.report["graphs"].values()
    assert all(
        graph["int8"]["num_bytes"] < 0.75 * graph["float32"]["num_bytes"] for graph in graphs
    )


def test_example_runs_without_pytorch(exported, processor, tmp_path):
    for name, drawing in zip(("one", "two"), drawings()[::5], strict=False):
        drawing.save(tmp_path / f"{name}.png")
    (tmp_path / "exported").symlink_to(exported.folder)
    check = "import sys\nassert not {'torch', 'transformers', 'vlmo'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLE.read_text() + check],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    similarities = torch.tensor(
        [float(number) for number in re.findall(r"-?\d\.\d+(?:e-\d+)?", done.stdout)]
    )
    inputs = processor(
        images=drawings()[:6:5], text=["a red square", "the green circle"], return_tensors="pt"
    )
    with torch.no_grad():
        output = exported.model(**inputs)
    # Pillow, which the example calls, and the processor resize these drawings to the same bits.
    close(similarities.view(2, 2), output.text_embeds @ output.image_embeds.T)


# One layer keeps the export short; segmentation takes its levels from four.
SMALL = {"num_hidden_layers": 1, "max_text_positions": LONGEST}


def export(
    model_class, tmp_path: Path, **changes
) -> tuple[torch.nn.Module, dict[str, OnnxSession]]:
    model = toy(model_class, **SMALL | changes)
    model.save_pretrained(tmp_path / "model")
    report = write_onnx(tmp_path / "model", tmp_path / "exported")
    return model, {
        name: OnnxSession(tmp_path / "exported" / f"{name}.onnx") for name in report["graphs"]
    }


# Together they have every part that a published VLMo and BEiT-3 do not have.
UNUSUAL = {
    "position_embedding": "absolute",
    "layer_scale_init": None,
    "experts": "shared",
    "attention": "separate",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_class", "changes", "names"),
    [
        (VLMoForVisualQuestionAnswering, {"num_labels": 5}, ["fusion_encoder"]),
        (VLMoForVisualReasoning, {"num_modality_types": 3}, ["fusion_encoder"]),
        (VLMoForImageCaptioning, {}, ["fusion_encoder"]),
        (VLMoForImageCaptioning, BEIT3, ["fusion_encoder"]),
        (
            VLMoForSemanticSegmentation,
            {"num_labels": 3, "segmentation_channels": 8, "num_hidden_layers": 4},
            ["image_encoder"],
        ),
        (VLMoModel, UNUSUAL, ["image_encoder", "text_encoder", "fusion_encoder"]),
        (VLMoModel, BEIT3, ["image_encoder", "text_encoder", "fusion_encoder"]),
    ],
)
@torch.no_grad()
def test_graphs_of_every_class_give_what_pytorch_gives(tmp_path, model_class, changes, names):
    model, sessions = export(model_class, tmp_path, **changes)
    assert list(sessions) == names
    given = dict(zip(("input_ids", "attention_mask"), text_of([4, 11]), strict=True)) | {
        "pixel_values": pictures(2)
    }
    if model_class is VLMoForVisualReasoning:
        given["pixel_values"] = pictures(4).unflatten(0, (2, 2))
    for session in sessions.values():
        inputs = {name: given[name] for name in session.inputs}
        expected = model(**inputs)
        for name, actual in zip(session.outputs, session(*inputs.values()), strict=True):
            close(
                actual, expected[name], atol=CLOSE * float(expected[name].abs().max().clamp(min=1))
            )
    labels = json.loads((tmp_path / "exported" / "onnx.json").read_text())["labels"]
    assert labels is None or len(labels) == model.config.num_labels
    assert (labels is not None) == (model_class not in {VLMoModel, VLMoForImageCaptioning})


def test_graphs_of_a_model_without_pooler_and_matching_head_are_those_of_its_parts():
    bare = {"use_pooler": False, "use_match_head": False}
    backbone, dual = (
        graphs_of(toy(of, **SMALL | bare)) for of in (VLMoModel, VLMoForImageTextRetrieval)
    )
    assert [graph.outputs for graph in backbone] == [
        ("last_hidden_state",),
        ("last_hidden_state",),
        ("text_hidden_state", "image_hidden_state"),
    ]
    assert [graph.name for graph in dual] == ["image_encoder", "text_encoder"]


@pytest.fixture(scope="module")
def classifier_export(tmp_path_factory) -> SimpleNamespace:
    """A model with one graph, without a tokenizer, exported as if its weights were too large for one file."""
    folder = tmp_path_factory.mktemp("classifier")
    model = toy(VLMoForImageClassification, **SMALL, num_labels=2)
    model.save_pretrained(folder / "model")
    image_processor_for(64).save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            logging.getLogger(), "handlers", [handler := logging.handlers.BufferingHandler(10_000)]
        )
        patch.setattr(onnx_export, "_MAX_SINGLE_FILE", 1000)
        samples = {"pixel_values": pictures(4).numpy()}
        report = write_onnx(folder / "model", folder / "exported", samples=samples)
    logged = [record for record in handler.buffer if record.name == "root"]
    return SimpleNamespace(model=model, folder=folder, report=report, logged=logged)


@pytest.fixture
def classifier(classifier_export, tmp_path, monkeypatch) -> Path:
    """A copy of the model folder; its graph is not converted again but copied."""
    copy_graphs(classifier_export.folder / "exported", monkeypatch)
    return shutil.copytree(classifier_export.folder / "model", tmp_path / "model")


def test_a_difference_leaves_nothing_behind_and_an_earlier_export_as_it_was(
    classifier, tmp_path, monkeypatch
):
    steps = []
    write_onnx(classifier, tmp_path / "exported", report=lambda *step: steps.append(step))
    assert steps == [("exporting image_encoder", 0, 1)]
    before = {file.name: file.read_bytes() for file in (tmp_path / "exported").iterdir()}
    assert set(before) == {
        "image_encoder.onnx",
        "image_encoder.onnx.data",
        "onnx.json",
        "preprocessor_config.json",
    }
    for out in (tmp_path / "exported", tmp_path / "new"):
        with monkeypatch.context() as patch:
            patch.setattr(onnx_export, "TOLERANCE", -1.0)
            with pytest.raises(
                ValueError,
                match=r"image_encoder\.onnx differs from PyTorch by .*, more than -1e\+00",
            ):
                write_onnx(classifier, out)
    assert {file.name: file.read_bytes() for file in (tmp_path / "exported").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "exported"}
    model = VLMoForImageClassification.from_pretrained(classifier)
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    model.save_pretrained(classifier)
    with pytest.raises(ValueError, match="differs from PyTorch by nan"):
        write_onnx(classifier, tmp_path / "exported")


@torch.no_grad()
def test_large_weights_lie_beside_the_graph(classifier_export, tmp_path):
    assert not classifier_export.logged  # the quantiser's log
    moved = shutil.copytree(classifier_export.folder / "exported", tmp_path / "moved")
    graph = classifier_export.report["graphs"]["image_encoder"]
    for variant in (graph["float32"], graph["int8"]):
        sizes = [(moved / f"{variant['file']}{suffix}").stat().st_size for suffix in ("", ".data")]
        assert sum(sizes) == variant["num_bytes"]
        assert np.isfinite(OnnxSession(moved / variant["file"])(pictures(2))[0]).all()
    close(
        OnnxSession(moved / graph["float32"]["file"])(pictures(2))[0],
        classifier_export.model(pictures(2)).logits,
    )
    assert len(json.loads((moved / "onnx.json").read_text())["labels"]) == 2


def test_folders_that_cannot_be_exported_are_named(classifier, exported, tmp_path):
    with pytest.raises(ValueError, match="is no model folder"):
        write_onnx(tmp_path, tmp_path / "exported")
    with pytest.raises(ValueError, match="exists and is no ONNX export"):
        write_onnx(classifier, classifier)
    (tmp_path / "secret").write_text("secret")
    (classifier / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"has no file 'vocab\.txt'"):
        write_onnx(classifier, tmp_path / "exported")
    config = json.loads((classifier / "config.json").read_text())
    (classifier / "config.json").write_text(
        json.dumps(config | {"architectures": ["SomebodyElse"]})
    )
    with pytest.raises(ValueError, match=r"holds SomebodyElse; expected .* VLMoFor"):
        write_onnx(classifier, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
