"""Models on the Hugging Face hub: up with processor and card, and down again by `OWNER/NAME`."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import EvalResult
from huggingface_hub import ModelCard as HubCard
from PIL import Image
from tests.integrations.toy_gallery import CAPTIONS
from tests.toy_model import toy
from transformers import AutoImageProcessor, AutoProcessor, pipeline
from transformers.models.auto import modeling_auto

import vlmo
from vlmo import VLMoProcessor
from vlmo.folder.card import ModelCard, add_metrics, write_card
from vlmo.integrations.auto import AUTO_CLASSES
from vlmo.integrations.sentence_transformers import load_sentence_transformer
from vlmo.processing import image_processor_for
from vlmo.tasks import usage_of

# The way in which huggingface_hub hands a file to httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
CLASSES = [name for name in vlmo.__all__ if name == "VLMoModel" or name.startswith("VLMoFor")]
METRIC = EvalResult(
    task_type="image-text-retrieval",
    dataset_type="toy",
    dataset_name="toy",
    metric_type="ir@1",
    metric_name="IR@1",
    metric_value=50.0,
    metric_args={"unit": "percent", "chance": 10.0, "meaning": "", "measured_by": "hand", "date": "2026-01-01"},
)
SMALL = {"num_hidden_layers": 1, "num_fusion_layers": 1, "hidden_size": 16, "intermediate_size": 16, "image_size": 32}
OWN = {
    "VLMoForSemanticSegmentation": {
        "num_hidden_layers": 4,
        "segmentation_layers": [1, 2, 3, 4],
        "segmentation_channels": 8,
    },
    "VLMoForVisualReasoning": {"num_modality_types": 3},
}


@pytest.fixture(scope="module")
def processor():
    words = [caption for captions in CAPTIONS for caption in captions]
    return VLMoProcessor.train(words * 2, vocab_size=90, image_size=32, max_text_length=16)


@pytest.fixture
def write(tmp_path, processor):
    """Writes the folder of a tiny model, as a run does."""

    def write(name: str):
        model = toy(getattr(vlmo, name), **SMALL | {"vocab_size": processor.vocab_size} | OWN.get(name, {}))
        folder = tmp_path / "folder"
        model.save_pretrained(folder)
        reads_text = name not in {"VLMoForImageClassification", "VLMoForSemanticSegmentation"}
        (processor if reads_text else image_processor_for(32)).save_pretrained(folder)
        write_card(folder, ModelCard(recipe="toy", licence="mit"), usage_of(folder))
        add_metrics(folder, [METRIC])
        return folder

    return write


def check_equal(given, expected):
    assert type(given) is type(expected)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(given.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", CLASSES)
def test_model_goes_up_with_processor_and_card_and_comes_down_by_name(hub, write, name):
    own = getattr(vlmo, name)
    folder = write(name)
    model = own.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).add_(1)  # in memory, not in the folder
    model.push_to_hub("someone/tiny")
    assert [commit.split(" ")[0] for commit in hub.commits] == ["main:", "main:"]
    there = hub.repositories["someone/tiny"]["main"]
    assert there.keys() == {file.name for file in folder.iterdir()} - {"results.json"}
    card = HubCard(there["README.md"].decode())
    assert card.data.license == "mit"
    assert "vlmo" in card.data.tags
    assert card.data.eval_results is None
    assert card.text.strip().startswith("# someone/tiny\n")
    assert "path/to/this/folder" not in card.text
    check_equal(own.from_pretrained("someone/tiny"), model)
    for auto, registered in AUTO_CLASSES.items():
        if registered is own:
            check_equal(getattr(modeling_auto, auto).from_pretrained("someone/tiny"), model)
    if "tokenizer.json" in there:
        assert isinstance(AutoProcessor.from_pretrained("someone/tiny"), VLMoProcessor)
        assert VLMoProcessor.from_pretrained("someone/tiny").max_text_length == 16
    else:
        assert AutoImageProcessor.from_pretrained("someone/tiny").size["height"] == 32


def test_what_a_link_leads_to_is_not_uploaded(hub, write, tmp_path):
    folder = write("VLMoForImageTextRetrieval")
    (tmp_path / "secret").write_text("{}")
    (folder / "tokenizer_extra.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"'tokenizer_extra\.json': expected .* no link"):
        vlmo.VLMoForImageTextRetrieval.from_pretrained(folder).push_to_hub("someone/tiny")
    assert not hub.repositories


def test_pull_request_and_branch_get_all_files_and_the_hubs_card_stays(hub, write):
    model = vlmo.VLMoForImageTextRetrieval.from_pretrained(write("VLMoForImageTextRetrieval"))
    model.push_to_hub("someone/tiny", create_pr=True)
    files = hub.repositories["someone/tiny"]
    assert [commit.split(": ")[0] for commit in hub.commits] == ["refs/pr/1", "refs/pr/1"]
    assert not files["main"]
    assert {"README.md", "tokenizer.json", "model.safetensors"} <= files["refs/pr/1"].keys()
    files["main"]["README.md"] = b"---\nlicense: other\n---\nwritten on the hub"
    model.push_to_hub("someone/tiny", revision="second")
    assert {"tokenizer.json", "model.safetensors"} <= files["second"].keys()
    assert b"written on the hub" in files["second"]["README.md"]
    assert files["main"].keys() == {"README.md"}
    check_equal(vlmo.VLMoForImageTextRetrieval.from_pretrained("someone/tiny", revision="second"), model)


def test_pipelines_and_encoders_load_from_the_hub(hub, write):
    folder = write("VLMoForImageTextRetrieval")
    hub.repositories["someone/tiny"] = {"main": {file.name: file.read_bytes() for file in folder.iterdir()}}
    image = Image.new("RGB", (32, 32), "red")
    (best, other) = pipeline("image-text-matching", model="someone/tiny")(image, text=["a red bar", "a blue bar"])
    assert best["score"] > other["score"]
    encoder = load_sentence_transformer("hf://someone/tiny")
    expected = load_sentence_transformer(folder).encode(["a red bar"])
    assert (encoder.encode(["a red bar"]) == expected).all()
