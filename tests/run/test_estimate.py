"""What a run will need, against what runs do need."""

from __future__ import annotations

import re
import shutil
import weakref
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from tests.toy_batch import GLOBAL_BATCH, FixedTokens, make_batch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vlmo import cli, model_path
from vlmo.data.loader import LoaderConfig
from vlmo.model import VLMoConfig
from vlmo.recipes import Recipe, describe, find_recipe
from vlmo.recipes.schema import model_config
from vlmo.run.estimate import estimate
from vlmo.tasks import (
    ClassificationTask,
    LanguageTask,
    NLVR2Task,
    RetrievalTask,
    VisionLanguageTask,
    VisionTask,
    VQATask,
)
from vlmo.tasks.classification import ClassificationObjective
from vlmo.tasks.language import LanguageObjective
from vlmo.tasks.nlvr2 import ReasoningObjective
from vlmo.tasks.segmentation import SegmentationObjective
from vlmo.tasks.vision import VisionObjective
from vlmo.tasks.vision_language import VisionLanguageConfig, VisionLanguageObjective
from vlmo.tasks.vqa import QuestionObjective
from vlmo.training.config import EngineConfig
from vlmo.training.engine import Engine
from vlmo.types import Batch

# Left out are operations of vectors (norms, softmax) and of single tokens (a pooler's input).
FLOPS_TOLERANCE = 0.01
# The kernels of attention differ in what they keep, and the losses' own tensors are not modelled.
MEMORY_TOLERANCE = 0.15
LAST_BLOCK = 0.25
"""It is told of as a whole one, but run for the tokens whose state is used; of a toy it is a large part."""
SCRATCH = 2 * 2**20
"""What attention works in at most, whatever the batch (`model/cpu.py`)."""
SIZES = VLMoConfig.tiny(hidden_size=64, num_hidden_layers=4)
TEXT = 16
MASKED_WORDS = 4 / (GLOBAL_BATCH * TEXT)
MASKED_PATCHES = 6 / 16
ALL_LOSSES = VisionLanguageConfig()
CONTRAST_ALONE = VisionLanguageConfig(mlm_weight=0.0, itm_weight=0.0)


def tiny(name: str, *, losses: VisionLanguageConfig | None = None, precision: str = "float32") -> Recipe:
    """A recipe of the sizes of the toy batch."""
    recipe = find_recipe(name)
    task = recipe.task if losses is None else replace(recipe.task, losses=losses)
    if name == "base-stage1":
        task = replace(task, masked_share=MASKED_PATCHES)
    if name == "base-ade20k":
        task = replace(task, channels=32)
    return replace(
        recipe,
        task=task,
        model=model_config(SIZES),
        text=replace(recipe.text, max_length=TEXT, vocab_size=SIZES.vocab_size),
        data=replace(recipe.data, mlm_probability=MASKED_WORDS),
        loader=replace(recipe.loader, global_batch_size=GLOBAL_BATCH, accumulation=1),
        trainer=replace(recipe.trainer, precision=precision),
    )


def toy_objective(recipe: Recipe) -> tuple[nn.Module, Batch]:
    """The objective of the recipe's task, and the toy batch with its labels."""
    task, batch = recipe.task, make_batch()
    names = {"id2label": {number: str(number) for number in range(task.num_classes or 2)}}
    model: Any = task.build_model(asdict(recipe.model) | names)
    match task:
        case VisionTask():
            return VisionObjective(model, tokenizer=FixedTokens()), batch
        case LanguageTask():
            return LanguageObjective(model), batch
        case VisionLanguageTask() | RetrievalTask():
            return VisionLanguageObjective(model, config=task.losses), batch
        case VQATask():
            return QuestionObjective(model), batch | {"labels": torch.rand(GLOBAL_BATCH, 3129)}
        case NLVR2Task():
            batch["pixel_values"] = batch["pixel_values"][:, None].repeat(1, 2, 1, 1, 1)
            return ReasoningObjective(model), batch | {"labels": torch.zeros(GLOBAL_BATCH, dtype=torch.long)}
        case ClassificationTask():
            return ClassificationObjective(model), batch | {"labels": torch.zeros(GLOBAL_BATCH, dtype=torch.long)}
    return SegmentationObjective(model), batch | {"labels": torch.zeros(GLOBAL_BATCH, 64, 64, dtype=torch.long)}


CASES = [
    ("base-stage1", None),
    ("base-stage2", None),
    ("base-stage3", ALL_LOSSES),
    ("base-coco-retrieval", CONTRAST_ALONE),
    ("base-vqa", None),
    ("base-nlvr2", None),
    ("base-imagenet", None),
    ("base-ade20k", None),
]


@pytest.mark.parametrize(("name", "losses"), CASES, ids=[name for name, _ in CASES])
def test_operations_and_parameters_are_those_of_a_run(name, losses) -> None:
    recipe = tiny(name, losses=losses)
    objective, batch = toy_objective(recipe)
    objective.get_submodule("model").set_attn_implementation("eager")  # whose products are counted one by one
    with FlopCounterMode(display=False) as counter:
        objective(batch)["loss"].backward()
    told = estimate(recipe)
    counted = counter.get_total_flops()
    assert (1 - FLOPS_TOLERANCE) * counted <= told.flops_per_step <= (1 + FLOPS_TOLERANCE + LAST_BLOCK) * counted
    parameters = list(objective.get_submodule("model").parameters())
    assert told.parameters == sum(p.numel() for p in parameters)
    assert told.trainable_parameters == sum(p.numel() for p in parameters if p.requires_grad)


class LiveBytes(TorchDispatchMode):
    """While this is on, counts the bytes of all tensors that operations make, until they are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._live: set[int] = set()
        self._now = self.peak = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._live:
                self._live.add(storage._cdata)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return made

    def _drop(self, storage: int, size: int) -> None:
        self._live.remove(storage)
        self._now -= size


def measured_peak(recipe: Recipe) -> int:
    """Bytes of a step beside the weights."""
    objective, batch = toy_objective(recipe)
    run = Engine(objective, config=recipe.trainer.engine)
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.trainer.precision == "bf16"):
            loss = run(batch)["loss"]
        loss.backward()
    return live.peak


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    ("name", "losses"), [CASES[index] for index in (0, 2, 3)], ids=["stage1", "stage3", "retrieval"]
)
def test_activations_are_the_measured_peak(name, losses, precision) -> None:
    recipe = tiny(name, losses=losses, precision=precision)
    told, measured = estimate(recipe).activation_bytes, measured_peak(recipe)
    assert (1 - MEMORY_TOLERANCE) * measured <= told <= (1 + MEMORY_TOLERANCE + LAST_BLOCK) * measured


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("chunk", "again"), [(2, False), (None, True)], ids=["in chunks", "checkpointed"])
def test_activations_that_are_computed_again_are_the_measured_peak(chunk, again, precision) -> None:
    recipe = tiny("base-stage3", losses=replace(ALL_LOSSES, cache_chunk=chunk), precision=precision)
    recipe = replace(recipe, trainer=replace(recipe.trainer, engine=EngineConfig(activation_checkpointing=again)))
    needs, measured = estimate(recipe), measured_peak(recipe)
    told = needs.activation_bytes + needs.gradient_bytes  # which fill up while there are activations
    assert (1 - MEMORY_TOLERANCE) * told <= measured <= (1 + MEMORY_TOLERANCE) * told + SCRATCH


@pytest.mark.parametrize(
    "name", ["shapes-tokenizer", "shapes-stage3", "shapes-statements", "base-ade20k", "large-plusplus-stage3"]
)
def test_recipe_is_estimated_without_its_data(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = (estimate(find_recipe(name), processes=processes) for processes in (1, 2))
    assert 0 < one.trainable_parameters <= one.parameters
    assert one.optimizer_bytes == 2 * one.gradient_bytes == 8 * one.trainable_parameters
    assert one.flops_per_sample > 6 * 49  # more than one parameter's share, whatever the sizes
    assert two.micro_batch * 2 == one.micro_batch
    assert one.gradient_traffic == one.embedding_traffic == one.negative_traffic == 0
    if find_recipe(name).trainer.engine.data_parallel == "ddp":
        assert two.gradient_traffic == two.gradient_bytes
    else:
        assert two.gradient_traffic > 2 * two.gradient_bytes  # weights are gathered, too
    assert not list(tmp_path.iterdir())


def test_sizes_of_the_paper() -> None:
    base = estimate(find_recipe("base-stage3"), processes=8)
    assert base.parameters == pytest.approx(202e6, rel=0.01)  # 175M of the backbone, and the heads of pre-training
    assert base.micro_batch == 128
    dim = 768
    # Two endings, of pictures and texts, there and back; and two numbers that tell same pairs.
    assert base.embedding_traffic == 7 * 128 * (2 * 2 * 2 * dim * 4 + 2 * 8)
    # Of 128 pictures (in 8 bits) and texts, those that other processes hold; and the requests.
    assert base.negative_traffic == 112 * (3 * 224**2 + 2 * 40 * 8) + 2 * 8 * (112 + 7)
    recipe = find_recipe("base-stage3")
    for groups, expected in ((2, base.negative_traffic), (8, 0), (16, 0)):  # within half of the processes; of a process
        losses = replace(recipe.task.losses, negative_groups=groups)
        changed = replace(recipe, task=replace(recipe.task, losses=losses))
        assert estimate(changed, processes=8).negative_traffic == expected
    # Three forward passes' worth; a picture of 224 px alone costs ViT-B/16's 35.1 GFLOPs forward.
    assert estimate(find_recipe("base-imagenet")).flops_per_sample == pytest.approx(3 * 35.1e9, rel=0.01)


def changed(name: str, *, chunk: int | None = None, **engine: Any) -> Recipe:
    recipe = find_recipe(name)
    losses = replace(recipe.task.losses, cache_chunk=chunk)
    trainer = replace(recipe.trainer, engine=EngineConfig(**engine))
    return replace(recipe, task=replace(recipe.task, losses=losses), trainer=trainer)


def test_cache_and_checkpoints_make_large_batches_small() -> None:
    plain, cached, larger_chunk, checkpointed = (
        estimate(changed("base-coco-retrieval", chunk=chunk, activation_checkpointing=again))
        for chunk, again in ((None, False), (16, False), (32, False), (None, True))
    )
    assert cached.activation_bytes < larger_chunk.activation_bytes < 0.1 * plain.activation_bytes
    assert checkpointed.activation_bytes < 0.25 * plain.activation_bytes
    assert cached.flops_per_sample == plain.flops_per_sample == checkpointed.flops_per_sample
    small = replace(changed("base-coco-retrieval", chunk=16), loader=LoaderConfig(global_batch_size=256))
    # What grows from 256 to 3,072 pairs: pictures of 0.42 MiB, embeddings, logits.
    assert cached.activation_bytes - estimate(small).activation_bytes < 3072 * 0.55 * 2**20


def test_shards_of_weights_are_told() -> None:
    whole, shards = (estimate(changed("large-stage3", data_parallel=kind), processes=64) for kind in ("ddp", "fsdp"))
    assert shards.parameters == whole.parameters
    assert shards.optimizer_bytes == round(whole.optimizer_bytes / 64)
    assert shards.gradient_bytes == round(whole.gradient_bytes / 64)
    assert whole.parameter_bytes / 64 < shards.parameter_bytes < whole.parameter_bytes / 4
    assert shards.gradient_traffic > whole.gradient_traffic  # the price


def test_web_scale_run_fits_the_machines_of_its_card() -> None:
    recipe, card = find_recipe("large-plusplus-stage3"), describe("large-plusplus-stage3")
    nodes, each = map(int, re.search(r"--nnodes (\d+) --nproc-per-node (\d+)", card).groups())
    needs = estimate(recipe, processes=nodes * each)
    total = needs.parameter_bytes + needs.gradient_bytes + needs.optimizer_bytes + needs.activation_bytes
    assert total < 16 * 2**30
    assert needs.flops_per_step == pytest.approx(needs.flops_per_sample * recipe.loader.global_batch_size)


def test_processes_that_cannot_share_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"processes is 3; loader.global_batch_size 1024 must be a multiple"):
        estimate(find_recipe("base-stage3"), processes=3)


def test_start_of_the_recipe_must_fit_if_it_is_there(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_path("vlmo-small"), find_recipe("shapes-stage3").init)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "shapes-stage3", "--dry-run"])
    assert ended.value.code == 2


def test_start_teacher_and_data_that_are_missing_are_named(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = find_recipe("shapes-stage3")
    cli.main(["train", "shapes-stage3", "--dry-run"])
    assert f"{recipe.init}, which is not there" in capsys.readouterr().out
    cli.main(["train", "shapes-stage3", "--dry-run", "--init", "None"])
    assert "not there" not in capsys.readouterr().out
    cli.main(["train", "base-stage2", "--dry-run", "--init", "None"])
    assert "Not there yet of its data: data/text;" in capsys.readouterr().out
    cli.main(["train", "vlmo-small", "--dry-run", "--import", "worlds"])
    output = capsys.readouterr().out
    assert "It starts from runs/vlmo-small/sizes/model, which is not there" in output
    assert "Its teacher is runs/vlmo-small/retrieval-again/model, which is not there" in output
    cli.main(
        ["train", "vlmo-small", "--dry-run", "--task.teacher", "vlmo-small", "--init", "None", "--import", "worlds"]
    )
    assert "train that first" not in capsys.readouterr().out


def test_command_tells_and_writes_no_run(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["train", "shapes-stage3", "--dry-run", "--processes", "4"])
    output = capsys.readouterr().out
    for part in ("parameters", "optimizer", "activations", "hard negatives", "GFLOPs", "a sample"):
        assert part in output
    assert not list(tmp_path.iterdir())
