"""`--lora.rank`: adapters are trained alone, resumed, kept without the model, and merged on request."""

import dataclasses
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.test_cli import refused
from tests.toy_model import pictures, texts
from tests.toy_questions import ANSWERS
from tests.training.toy_run import is_same

import vlmo
from vlmo import VLMoForVisualQuestionAnswering
from vlmo.cli import main
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.model.multiway import MultiwayBlock
from vlmo.recipes.finetune import finetune_recipe
from vlmo.recipes.schema import check_recipe
from vlmo.run import build
from vlmo.run.estimate import estimate
from vlmo.tasks import evaluate
from vlmo.training import LoraConfig, read_metrics
from vlmo.training.lora import add_adapters

STEPS = 4
# Adding an adapter to a weight once, or its output at each call: float32 sums in another order.
MERGED = 1e-5


@pytest.fixture(scope="module")
def start(folders) -> Path:
    return folders["retrieval"]


@pytest.fixture(scope="module")
def run(start, sets, tmp_path_factory) -> Path:
    """A finished run folder, trained from the command line."""
    folder = tmp_path_factory.mktemp("run")
    fine_tune(start, sets["vqa"], folder)
    return folder


def fine_tune(start: Path, questions: Path, folder: Path) -> None:
    options = [
        "--lora.rank",
        "4",
        "--steps",
        str(STEPS),
        "--device",
        "cpu",
        "--trainer.save-every",
        "2",
    ]
    main(
        [
            "finetune",
            str(start),
            "--data",
            str(questions),
            "--output-dir",
            str(folder),
            "--batch-size",
            "8",
            *options,
        ]
    )


def pairs() -> dict[str, torch.Tensor]:
    words = texts([5, 8])
    return {"pixel_values": pictures(2), **words, "input_ids": words["input_ids"] % 50}


def test_run_leaves_an_adapter_that_is_merged_on_request(run, start, sets, tmp_path, capsys):
    adapter, merged = run / "model", tmp_path / "merged"
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "README.md",
        "tokenizer.json",
    } <= {file.name for file in adapter.iterdir()}
    assert not (adapter / "config.json").exists()
    held = load_file(adapter / "adapter_model.safetensors")
    heads = (
        "base_model.model.answer_head.",
        "base_model.model.vlmo.pooler.",
        "base_model.model.vlmo.modality_types.",
    )
    assert all(
        ".lora_A.weight" in name or ".lora_B.weight" in name or name.startswith(heads)
        for name in held
    )
    assert (
        json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"] == 8
    )  # twice the rank
    assert all(
        tensor.any()
        for name, tensor in held.items()
        if "lora_B" in name and "vision_language" in name
    )
    line = refused(["evaluate", str(adapter), "--data", str(sets["vqa"])], capsys)
    assert f"vlmo merge {adapter} --out" in line
    assert "vlmo merge" in (adapter / "README.md").read_text()

    main(["merge", str(adapter), "--out", str(merged)])
    measured = [line for line in read_metrics(run) if any("/" in name for name in line)][-1]
    figures = evaluate(merged, source=str(sets["vqa"]), device="cpu").metrics
    shared = {name: value for name, value in figures.items() if f"test/{name}" in measured}
    assert shared
    assert shared == pytest.approx({name: measured[f"test/{name}"] for name in shared})
    # Frozen: what no adapter is on, and no head.
    before, after = (load_file(folder / "model.safetensors") for folder in (start, merged))
    for name, tensor in after.items():
        adapted = ".blocks." in name and name.endswith(
            ("shared.weight", "fc1.weight", "fc2.weight")
        )
        if name in before and not adapted and not f"base_model.model.{name}".startswith(heads):
            assert torch.equal(tensor, before[name]), name
    for changed in ("blocks.2.experts.vision_language.fc1", "pooler.dense", "modality_types"):
        assert not torch.equal(after[f"vlmo.{changed}.weight"], before[f"vlmo.{changed}.weight"])
    assert "vlmo merge" not in (merged / "README.md").read_text()
    assert "exists already" in refused(["merge", str(adapter), "--out", str(merged)], capsys)


def test_run_that_was_cut_off_ends_with_the_same_adapter(run, start, sets, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(again / "model")
    shutil.rmtree(again / "state" / f"step_{STEPS:08d}")
    fine_tune(start, sets["vqa"], again)
    expected, found = (
        load_file(folder / "model" / "adapter_model.safetensors") for folder in (run, again)
    )
    assert is_same(expected, found)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("vqa", "VLMoForVisualQuestionAnswering"),
        (
            "nlvr2",
            "VLMoForVisualReasoning",
        ),  # a table of types with a row more than in the start folder
        ("retrieval", "VLMoForImageTextRetrieval"),
        ("classification", "VLMoForImageClassification"),
        ("segmentation", "VLMoForSemanticSegmentation"),  # a head with running statistics
    ],
)
def test_merged_model_of_each_task_equals_the_trained_one(start, sources, tmp_path, task, name):
    lora = (
        LoraConfig(rank=2, alpha=8, dropout=0.1, targets=("qkv", "fc2"))
        if task == "vqa"
        else LoraConfig(rank=2)
    )
    recipe = finetune_recipe(start, str(sources[task])).recipe
    trainer_config = dataclasses.replace(recipe.trainer, max_steps=2, precision="float32")
    recipe = dataclasses.replace(recipe, lora=lora, trainer=trainer_config, evaluate_on=None)
    trainer = build(recipe, run_dir=tmp_path / "run", device="cpu")
    blocks = [module for module in trainer.objective.modules() if isinstance(module, MultiwayBlock)]
    assert not any(
        p.requires_grad for block in blocks for n, p in block.named_parameters() if "lora_" not in n
    )
    adapter = trainer.fit().model_dir
    main(["merge", str(adapter), "--out", str(tmp_path / "merged")])
    merged = getattr(vlmo, name).from_pretrained(tmp_path / "merged").eval()
    inputs = pairs()
    if name == "VLMoForVisualReasoning":
        inputs["pixel_values"] = torch.stack([pictures(2), pictures(2, seed=1)], dim=1)
    inputs = {
        key: value
        for key, value in inputs.items()
        if recipe.task.reads.text or key == "pixel_values"
    }
    with torch.no_grad():
        expected, found = (
            model(**inputs).to_tuple() for model in (trainer.objective.model.eval(), merged)
        )
    torch.testing.assert_close(found, expected, atol=MERGED, rtol=0)
    if task == "vqa":
        assert merged.config.id2label == dict(enumerate(ANSWERS))
        assert json.loads((adapter / "adapter_config.json").read_text())["lora_dropout"] == 0.1
        held = load_file(adapter / "adapter_model.safetensors")
        assert not any(".fc1." in name or ".projection." in name for name in held)
        base = VLMoForVisualQuestionAnswering.from_pretrained(start, num_labels=len(ANSWERS))
        with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
            loaded = PeftModel.from_pretrained(base, str(adapter)).eval()
        torch.testing.assert_close(loaded(**inputs).logits, expected[0], atol=MERGED, rtol=0)


STRANGERS = {  # file of the adapter, what is written over it (settings: what they are changed to), and the refusal
    "a rank beyond memory": ("adapter_config.json", {"r": 1000000000}, "does not fit its model"),
    "another rank": ("adapter_config.json", {"r": 2}, "does not fit its model"),
    "no rank": ("adapter_config.json", {"r": 0}, "cannot be loaded"),
    "no scale": ("adapter_config.json", {"lora_alpha": float("nan")}, "does not fit its model"),
    "a text": ("adapter_config.json", {"lora_alpha": "1"}, "cannot be loaded"),
    "another scale": ("adapter_config.json", {"use_rslora": True}, "use_rslora"),
    "scales of layers": ("adapter_config.json", {"alpha_pattern": {"qkv": 64}}, "alpha_pattern"),
    "no start": ("base.json", "{}", "cannot be loaded"),
    "a list": ("base.json", "[1]", "cannot be loaded"),
    "depth": ("base.json", "[" * 100_000, "base.json is no JSON"),
    "no class": (
        "base.json",
        '{"config": {"architectures": ["nope"]}, "start": "x"}',
        "holds nope",
    ),
    "damaged weights": ("adapter_model.safetensors", "damaged", "cannot be loaded"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_adapter_of_strangers_is_refused_in_a_line(run, tmp_path, name, capsys):
    file, content, words = STRANGERS[name]
    path = shutil.copytree(run / "model", tmp_path / "adapter") / file
    path.write_text(
        content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content)
    )
    assert words in refused(
        ["merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "x")], capsys
    )
    assert not (tmp_path / "x").exists()


def test_merging_neither_follows_patterns_nor_copies_what_links_lead_to(run, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "model", adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {
        "target_modules": "(" * 30 + "a*" + ")*" * 30
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "vocab.txt").symlink_to("/etc/hostname")
    assert "no link to elsewhere" in refused(
        ["merge", str(adapter), "--out", str(tmp_path / "x")], capsys
    )
    assert not (tmp_path / "x").exists()
    (adapter / "vocab.txt").unlink()
    main(["merge", str(adapter), "--out", str(tmp_path / "x")])


def test_adapter_without_its_head_or_with_a_link_is_refused(run, tmp_path, capsys):
    for name in ("headless", "linked"):
        shutil.copytree(run / "model", tmp_path / name)
    file = "adapter_model.safetensors"
    tensors = load_file(run / "model" / file)
    kept = {key: tensor for key, tensor in tensors.items() if "answer_head" not in key}
    save_file(kept, tmp_path / "headless" / file)
    (tmp_path / "linked" / file).rename(tmp_path / "elsewhere.safetensors")
    (tmp_path / "linked" / file).symlink_to(tmp_path / "elsewhere.safetensors")
    for name, words in (("headless", "holds answer_head"), ("linked", "no link to elsewhere")):
        line = refused(["merge", str(tmp_path / name), "--out", str(tmp_path / "x")], capsys)
        assert words in line
        assert not (tmp_path / "x").exists()


def test_start_that_lacks_what_adapters_freeze_is_refused(start):
    """A head may be missing, since it is trained whole."""
    model = VLMoForImageTextRetrieval.from_pretrained(start)
    frozen = "vlmo.blocks.0.experts.vision_language.fc1.weight"
    with pytest.raises(ValueError, match=r"photos lacks 1 tensors.*vlmo\.blocks\.0"):
        add_adapters(
            model, LoraConfig(rank=2), start="photos", missing=["match_head.weight", frozen]
        )
    add_adapters(model, LoraConfig(rank=2), start="photos", missing=["match_head.weight"])


def test_adapters_are_estimated_and_need_a_start_and_their_package(
    start, sets, tmp_path, monkeypatch
):
    recipe = dataclasses.replace(
        finetune_recipe(start, str(sets["vqa"])).recipe, lora=LoraConfig(rank=4)
    )
    whole = estimate(dataclasses.replace(recipe, lora=LoraConfig()))
    needs, twice = (
        estimate(dataclasses.replace(recipe, lora=LoraConfig(rank=rank))) for rank in (4, 8)
    )
    adapters = needs.parameters - whole.parameters
    assert twice.trainable_parameters - needs.trainable_parameters == adapters > 0
    assert needs.trainable_parameters < whole.trainable_parameters
    with pytest.raises(ValueError, match="adapters need a model to start from"):
        check_recipe(dataclasses.replace(recipe, init=None), processes=1)
    monkeypatch.setitem(sys.modules, "peft", None)
    for refuse in (estimate, partial(build, run_dir=tmp_path / "run")):
        with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[lora\]'"):
            refuse(recipe)
    assert not (tmp_path / "run").exists()
