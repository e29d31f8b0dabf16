"""Model folders are loaded in one place, whole, without running code, or refused in one line."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints.toy_folder import folder_writer, text_processor
from transformers import (
    AutoConfig,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    PreTrainedModel,
)

from vlmo.checkpoints.loading import (
    load_model,
    load_processor,
    load_retrieval_model,
    read_state_dict,
)
from vlmo.model import (
    VLMoForImageTextRetrieval,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForVisualQuestionAnswering,
)
from vlmo.model.stages import start_from
from vlmo.retrieval import Encoder


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    return folder_writer(tmp_path_factory.mktemp("models"), text_processor())


@pytest.fixture(scope="module")
def answering(write):
    return write(VLMoForVisualQuestionAnswering, num_labels=3)


def edited(
    folder: str, to: Path, file: str = "config.json", *, without: str | None = None, **changes
) -> Path:
    """A copy whose JSON file differs."""
    if not to.exists():
        shutil.copytree(folder, to)
    settings = json.loads((to / file).read_text()) | changes
    settings.pop(without, None)
    (to / file).write_text(json.dumps(settings))
    return to


def test_model_is_loaded_for_use(answering):
    folder, model = answering
    for loaded in (load_model(folder), load_model(folder, VLMoForVisualQuestionAnswering)):
        assert type(loaded) is VLMoForVisualQuestionAnswering
        assert not loaded.training
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
    assert load_processor(folder).max_text_length == 16
    assert load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("model_class", [VLMoForImageTextRetrieval, VLMoForPreTraining])
def test_stage_3_and_fine_tuning_leave_models_that_retrieve(write, model_class):
    model, processor = load_retrieval_model(write(model_class)[0], device="cpu")
    assert type(model) is VLMoForImageTextRetrieval
    assert processor.image_size == 64


def test_folders_that_cannot_be_used_are_refused_in_one_line(answering, write, tmp_path):
    folder, _ = answering
    kind = VLMoForVisualQuestionAnswering
    cut = edited(folder, tmp_path / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    lacking = edited(folder, tmp_path / "lacking") / "model.safetensors"
    weights = load_file(lacking)
    del weights["answer_head.classifier.bias"]
    save_file(weights, lacking, metadata={"format": "pt"})
    (edited(folder, tmp_path / "empty") / "model.safetensors").unlink()
    other = write(VLMoForMaskedLM)[0]
    for path, words in (
        (tmp_path / "nowhere", "is no model folder: it has no config"),
        (other, "holds VLMoForMaskedLM; expected VLMoForVisualQuestionAnswering. Train one."),
        (edited(folder, tmp_path / "unnamed", without="architectures"), "holds no named class"),
        (edited(folder, tmp_path / "list", architectures="A"), "expected a list of names"),
        (edited(folder, tmp_path / "odd", architectures=[["A"]]), "expected"),
        (lacking.parent, "lacks 1 tensors of VLMoForVisualQuestionAnswering"),
        (cut.parent, "cannot be loaded"),
        (tmp_path / "empty", "cannot be loaded"),
        (
            edited(folder, tmp_path / "wide", hidden_size=48),
            "other shapes than its config.json says",
        ),
        (edited(folder, tmp_path / "type", dtype="no type"), "cannot be loaded"),
        (edited(folder, tmp_path / "quantised", quantization_config=3), "cannot be loaded"),
        (
            edited(folder, tmp_path / "labels", num_labels=10**12),
            "num_labels is 1000000000000; expected",
        ),
        (
            edited(folder, tmp_path / "names", num_labels=1 << 24),
            "num_labels is 16777216; expected",
        ),
        (
            edited(folder, tmp_path / "words", vocab_size=1 << 24),
            "vocab_size is 16777216; expected",
        ),
        (
            edited(folder, tmp_path / "layers", num_hidden_layers=10**7),
            "num_hidden_layers is 10000000; expected",
        ),
        (
            edited(folder, tmp_path / "kernel", _attn_implementation="a/b"),
            "_attn_implementation is 'a/b'; expected",
        ),
    ):
        with pytest.raises(ValueError, match=words.replace(".", r"\.")) as raised:
            load_model(path, kind, hint="Train one.")
        assert "\n" not in str(raised.value), path
        assert str(path) in str(raised.value)
    with pytest.raises(
        ValueError, match="VLMoForMaskedLM; expected VLMoForImageTextRetrieval or VLMoForPreTrain"
    ):
        load_retrieval_model(other)
    with pytest.raises(
        ValueError, match="holds SomebodyElse; expected a model folder of VLMoModel or"
    ):
        load_model(edited(folder, tmp_path / "else", architectures=["SomebodyElse"]))
    for text in (
        "{",
        (Path(folder) / "tokenizer.json")
        .read_text()
        .replace('"model":', '"normalizer": 5, "model":'),
    ):
        (tmp_path / "unnamed" / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_processor(tmp_path / "unnamed")


def test_weights_are_read_from_safetensors_alone(answering, tmp_path):
    folder = edited(answering[0], tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no file named model\.safetensors"):
        load_model(folder)


def test_nothing_is_read_of_what_a_folder_names_elsewhere(answering, tmp_path):
    weights = tmp_path / "secret" / "model.safetensors"
    shutil.copytree(answering[0], weights.parent)
    folder = edited(answering[0], tmp_path / "model")
    adapter = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(weights.parent),
        "target_modules": ["fc1"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ValueError, match="holds an adapter and no model"):
        load_model(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").unlink()
    (folder / "link.safetensors").symlink_to(weights)
    for name in ("../secret/model.safetensors", str(weights), "link.safetensors"):
        index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        for use in (load_model, read_state_dict, lambda path: start_from(answering[1], path)):
            with pytest.raises(ValueError, match="no path and no link"):
                use(folder)


@pytest.mark.parametrize("inside", ["", "model"])
def test_links_of_the_cache_of_the_hub_are_followed(answering, tmp_path, inside):
    folder = tmp_path / "snapshots" / "revision" / inside
    shutil.copytree(answering[0], folder)
    (tmp_path / "blobs").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "blobs" / "digest")
    (folder / "shard.safetensors").symlink_to(
        os.path.relpath(tmp_path / "blobs" / "digest", folder)
    )
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(load_file(tmp_path / "blobs" / "digest"), "shard.safetensors"),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_model(folder)


@pytest.mark.parametrize("size", ["vocab_size", "max_text_positions", "num_modality_types"])
@pytest.mark.parametrize("there", [True, False])
def test_no_memory_is_taken_for_sizes_that_the_weights_do_not_have(
    answering, tmp_path, monkeypatch, size, there
):
    folder = edited(answering[0], tmp_path / "model", **{size: 1 << 20})
    if not there:
        kept = {
            name: tensor
            for name, tensor in load_file(folder / "model.safetensors").items()
            if "embed" not in name
        }
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(
        PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("memory was taken")
    )
    with pytest.raises(
        ValueError, match=r"other shapes than its config\.json says|it lacks \d+ tensors"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "model-00001.safetensors"]
)
def test_named_pipe_in_a_folder_is_not_waited_for(answering, tmp_path, name):
    folder = edited(answering[0], tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for use in (load_model, load_processor, Encoder, lambda path: start_from(answering[1], path)):
        with pytest.raises(ValueError, match=rf"{name} is no regular file"):
            use(folder)


def test_code_of_a_folder_is_neither_run_nor_asked_about(answering, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    folder = tmp_path / "hostile"
    for file, classes in (
        ("config.json", {"AutoConfig": "code.A", "AutoModelForVisualQuestionAnswering": "code.A"}),
        ("processor_config.json", {"AutoProcessor": "code.A"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["code.A", "code.A"]}),
    ):
        edited(answering[0], folder, file, auto_map=classes)
    (folder / "code.py").write_text('raise SystemExit("code of the folder was run")\n')
    assert load_model(folder).config.num_labels == 3
    assert load_processor(folder).image_size == 64
    assert AutoConfig.from_pretrained(folder).model_type == "vlmo"
    assert isinstance(
        AutoModelForVisualQuestionAnswering.from_pretrained(folder), VLMoForVisualQuestionAnswering
    )
    assert AutoProcessor.from_pretrained(folder).image_size == 64
