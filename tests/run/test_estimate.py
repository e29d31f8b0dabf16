"""What a run will need, against what runs do need."""

import re
import shutil
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from tests.toy_batch import make_batch, with_parts_alone
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vlmo import cli, model_path
from vlmo.model import VLMoConfig
from vlmo.recipes import Recipe, describe, find_recipe
from vlmo.recipes.schema import model_config
from vlmo.run.estimate import estimate
from vlmo.tasks import BEiT3Task
from vlmo.training.config import EngineConfig
from vlmo.training.muon import matrices_of

WIDTH = {"hidden_size": 64, "num_hidden_layers": 4}
SIZES = VLMoConfig.tiny(**WIDTH)
ROWS, TEXT = 8, 16
WORDS = 4 / (ROWS * TEXT)
PATCHES = 6 / 16


def tiny(name: str, **losses: Any) -> Recipe:
    """A recipe of the sizes of the toy batch, on one process."""
    recipe = find_recipe(name)
    task, sizes = (
        replace(recipe.task, losses=replace(recipe.task.losses, **losses))
        if losses
        else recipe.task,
        SIZES,
    )
    if isinstance(task, BEiT3Task):  # patches that are not as many as words
        task = replace(
            task, masked_share=PATCHES, text_mask_probability=WORDS, pair_mask_probability=WORDS
        )
        sizes = VLMoConfig.tiny(**WIDTH, patch_size=8)
    return replace(
        recipe,
        task=task,
        model=model_config(sizes),
        text=replace(recipe.text, max_length=TEXT, vocab_size=SIZES.vocab_size),
        data=replace(recipe.data, mlm_probability=WORDS),
        loader=replace(recipe.loader, global_batch_size=ROWS, accumulation=1),
        trainer=replace(recipe.trainer, precision="float32"),
    )


def shallow(recipe: Recipe) -> Recipe:
    few = {"num_hidden_layers": 2, "num_fusion_layers": min(1, recipe.model.num_fusion_layers)}
    return replace(recipe, model=replace(recipe.model, **few))


def real_step(recipe: Recipe) -> tuple[nn.Module, int, int]:
    """The objective after a step with data, its FLOPs, and the bytes that autograd kept."""
    objective = recipe.task.step(recipe.task.build_model(asdict(recipe.model))).train()
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in objective.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = with_parts_alone(make_batch())
    batch |= {
        name: mask.repeat(1, 4) for name, mask in batch.items() if "masked_pos" in name
    }  # BEiT-3's, patches of 8
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = objective(batch)["loss"]
        loss.backward()
    return objective.model, counter.get_total_flops(), sum(kept.values())


@pytest.mark.parametrize("name", ["base-stage3", "base-beit3"])
def test_needs_are_those_of_a_step_with_data(name) -> None:
    """Texts of the batch are shorter than they may be, and its last block runs for fewer tokens: upper bounds."""
    recipe = tiny(name)
    needs, (model, flops, kept) = estimate(recipe), real_step(recipe)
    assert (
        0.999 * flops <= needs.flops_per_step <= 1.35 * flops
    )  # the contrast of few rows grows with their square
    assert 0.999 * kept <= needs.activation_bytes <= 1.35 * kept
    assert needs.parameters == sum(p.numel() for p in model.parameters())
    assert needs.trainable_parameters == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    # Tensors without data are not handed on to a model that has some.
    assert model.vlmo.position_bias(num_text=TEXT, grid=None)[0].isfinite().all()


def test_half_precision_and_muon_take_less() -> None:
    recipe = tiny("base-stage2")
    needs = estimate(recipe)
    model = recipe.task.build_model(asdict(recipe.model))
    recipe.task.step(model)  # which freezes what stage 2 does not train
    half = estimate(replace(recipe, trainer=replace(recipe.trainer, precision="bf16")))
    assert 0.5 * needs.activation_bytes < half.activation_bytes < needs.activation_bytes
    muon = estimate(replace(recipe, optimizer=replace(recipe.optimizer, muon=True)))
    matrices = [weight for weight in matrices_of(model) if weight.requires_grad]
    assert (
        needs.optimizer_bytes - muon.optimizer_bytes
        == 4 * sum(weight.numel() for weight in matrices)
        > 0
    )


@pytest.mark.parametrize(
    "name", ["shapes-tokenizer", "shapes-stage1", "shapes-statements", "tiny-ade20k"]
)
def test_recipe_is_estimated_without_its_data(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = (
        tiny(name.replace("tiny", "base"))
        if name.startswith("tiny")
        else shallow(find_recipe(name))
    )
    # Both moments of AdamW; Muon keeps one.
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, muon=False))
    one, two = (estimate(recipe, processes=processes) for processes in (1, 2))
    assert 0 < one.trainable_parameters <= one.parameters
    assert one.parameter_bytes == 4 * one.parameters
    assert one.optimizer_bytes == 2 * one.gradient_bytes == 8 * one.trainable_parameters
    assert one.flops_per_sample > 6 * 49  # more than one parameter's share, whatever the sizes
    assert two.micro_batch * 2 == one.micro_batch
    assert two.flops_per_step == pytest.approx(one.flops_per_step, rel=0.01)
    assert one.activation_bytes > two.activation_bytes > 0
    assert not list(tmp_path.iterdir())


def test_sizes_of_the_paper() -> None:
    base = estimate(find_recipe("base-imagenet"), processes=8)
    assert base.parameters == pytest.approx(
        166.7e6, rel=0.01
    )  # with language experts, which it keeps
    assert base.micro_batch == 64
    # Three forward passes' worth; an image of 224 px alone costs ViT-B/16's 35.1 GFLOPs forward.
    assert base.flops_per_sample == pytest.approx(3 * 35.1e9, rel=0.015)


def test_chunks_checkpoints_and_shards_take_less() -> None:
    recipe = tiny("large-stage3")
    recipe = replace(recipe, loader=replace(recipe.loader, global_batch_size=64 * 64))
    plain = estimate(recipe, processes=64)
    losses = replace(recipe.task.losses, cache_chunk=2)
    cached = estimate(replace(recipe, task=replace(recipe.task, losses=losses)), processes=64)
    assert cached.activation_bytes < 0.2 * plain.activation_bytes
    engine = EngineConfig(data_parallel="fsdp", activation_checkpointing=True)
    shards = estimate(replace(recipe, trainer=replace(recipe.trainer, engine=engine)), processes=64)
    assert shards.activation_bytes < 0.35 * plain.activation_bytes
    assert shards.optimizer_bytes == round(plain.optimizer_bytes / 64)
    assert shards.parameters == plain.parameters
    # But for the contrast, which has fewer columns in a chunk.
    assert cached.flops_per_sample == pytest.approx(plain.flops_per_sample, rel=1e-3)
    assert shards.flops_per_sample == plain.flops_per_sample


@pytest.mark.slow
def test_web_scale_run_fits_the_machines_of_its_card() -> None:
    recipe, card = find_recipe("large-plusplus-stage3"), describe("large-plusplus-stage3")
    nodes, each = map(int, re.search(r"--nnodes (\d+) --nproc-per-node (\d+)", card).groups())
    needs = estimate(recipe, processes=nodes * each)
    assert (
        needs.parameter_bytes
        + needs.gradient_bytes
        + needs.optimizer_bytes
        + needs.activation_bytes
        < 16 * 2**30
    )


def test_processes_that_cannot_share_the_batch_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"processes is 3; loader.global_batch_size 1024 must be a multiple"
    ):
        estimate(find_recipe("base-stage3"), processes=3)


def test_start_teacher_and_data_that_are_missing_are_named(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)

    def shown(*words: str) -> str:
        few = [
            "--model.num-hidden-layers",
            "2",
            "--model.num-fusion-layers",
            "1",
        ]  # each takes its time
        cli.main(["train", *words, *few, "--dry-run"])
        return capsys.readouterr().out

    start = find_recipe("shapes-stage3").init
    output = shown("shapes-stage3", "--processes", "4")
    for part in (
        f"{start}, which is not there",
        "trained",
        "optimizer",
        "activations",
        "GFLOPs",
        "a sample",
    ):
        assert part in output
    assert not list(tmp_path.iterdir())
    assert "not there" not in shown("shapes-stage3", "--init", "None")
    assert "Not there yet of its data: data/text;" in shown("base-stage2", "--init", "None")
    output = shown("small-relations", "--import", "worlds")
    assert "It starts from runs/vlmo-small/stage3/model, which is not there" in output
    assert "Its teacher is runs/vlmo-small/contrast/model, which is not there" in output
    shutil.copytree(model_path("vlmo-small"), start)  # which does not fit
    with pytest.raises(SystemExit) as ended:
        shown("shapes-stage3")
    assert ended.value.code == 2
