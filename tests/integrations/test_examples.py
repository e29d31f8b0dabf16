import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.few_rows import few_rows
from tests.tasks.toy_vision import write_class_set, write_segment_set
from transformers import AutoConfig

import vlmo

EXAMPLES = sorted(Path(__file__).parents[2].glob("examples/train_*.py"))
CLASSES = {
    "classification": "VLMoForImageClassification",
    "mim": "VLMoForMaskedImageModeling",
    "mlm": "VLMoForMaskedLM",
    "nlvr2": "VLMoForVisualReasoning",
    "retrieval": "VLMoForImageTextRetrieval",
    "segmentation": "VLMoForSemanticSegmentation",
    "vqa": "VLMoForVisualQuestionAnswering",
}
SHORT = [
    "--max-steps",
    "2",
    "--per-device-train-batch-size",
    "4",
    "--use-cpu",
    "--disable-tqdm",
    "true",
]


@pytest.fixture(autouse=True, scope="module")
def _few_rows() -> Iterator[None]:
    with few_rows(64):
        yield


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_example_trains_evaluates_and_writes_a_model_folder(example, tmp_path, capsys):
    task, main = example.stem.removeprefix("train_"), runpy.run_path(str(example))["main"]
    own = {"classification": write_class_set, "segmentation": write_segment_set}
    data = ["--data", str(own[task](tmp_path / "data"))] if task in own else []
    main([*SHORT, *data, "--output-dir", str(tmp_path)])
    measured = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert measured["eval_loss"] > 0
    assert AutoConfig.from_pretrained(tmp_path).architectures == [CLASSES[task]]
    _, report = getattr(vlmo, CLASSES[task]).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert (tmp_path / "preprocessor_config.json").is_file() or (
        tmp_path / "processor_config.json"
    ).is_file()
