import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.few_rows import few_rows
from tests.tasks.toy_vision import write_class_set, write_segment_set
from transformers import AutoConfig

import vlmo

ROOT = Path(__file__).parents[2]
CLASSES = {
    "classification": "VLMoForImageClassification",
    "mim": "VLMoForMaskedImageModeling",
    "mlm": "VLMoForMaskedLM",
    "nlvr2": "VLMoForVisualReasoning",
    "retrieval": "VLMoForImageTextRetrieval",
    "segmentation": "VLMoForSemanticSegmentation",
    "vqa": "VLMoForVisualQuestionAnswering",
}
SHORT = ["--max-steps", "2", "--per-device-train-batch-size", "4", "--use-cpu", "--disable-tqdm", "true"]
MOST_LINES = 60


@pytest.fixture(autouse=True, scope="module")
def _few_rows() -> Iterator[None]:
    with few_rows(64):
        yield


def example(task: str) -> Path:
    return ROOT / "examples" / f"train_{task}.py"


@pytest.mark.parametrize("task", CLASSES)
def test_example_trains_evaluates_and_writes_a_model_folder(task, tmp_path, capsys):
    main = runpy.run_path(str(example(task)))["main"]
    own = {"classification": write_class_set, "segmentation": write_segment_set}
    data = ["--data", str(own[task](tmp_path / "data"))] if task in own else []
    main([*SHORT, *data, "--output-dir", str(tmp_path)])
    measured = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert measured["eval_loss"] > 0
    assert AutoConfig.from_pretrained(tmp_path).architectures == [CLASSES[task]]
    _, report = getattr(vlmo, CLASSES[task]).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert (tmp_path / "preprocessor_config.json").is_file() or (tmp_path / "processor_config.json").is_file()


def test_documents_name_all_examples():
    page = (ROOT / "docs" / "trainer.md").read_text(encoding="utf-8")
    assert sorted(ROOT.glob("examples/train_*.py")) == [example(task) for task in sorted(CLASSES)]
    for task, name in CLASSES.items():
        assert f"[`train_{task}.py`](../examples/train_{task}.py)" in page
        assert f"`{name}`" in page
        assert len(example(task).read_text(encoding="utf-8").splitlines()) <= MOST_LINES
