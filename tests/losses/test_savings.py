"""What a step leaves out changes no loss and no gradient, for every objective and variant of the model."""

from itertools import product

import pytest
import torch
from tests.losses.steps import Results, results
from tests.toy_batch import FixedTokens, make_batch
from tests.toy_model import BEIT3, shaken
from torch import Tensor, nn

from vlmo.model import (
    VLMoConfig,
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForVisualReasoning,
    VLMoModel,
)
from vlmo.model.multiway import MultiwayBlock
from vlmo.tasks.language import LanguageObjective
from vlmo.tasks.vision import VisionObjective
from vlmo.tasks.vision_language import VisionLanguageConfig, VisionLanguageObjective

VARIANTS = {
    "base": {},
    "base_plus": {"position_embedding": "absolute", "layer_scale_init": None},
    "separate attention": {"attention": "separate"},
    "separate attention without fusion experts": {"attention": "separate", "num_fusion_layers": 0},
    "shared experts": {"experts": "shared"},
    "all layers fuse": {"num_fusion_layers": 3},
    "one branch": {"contrast_fusion_branch": False},
    "beit3": BEIT3,
}
STAGE_3 = {
    "itc": {"mlm_weight": 0.0, "itm_weight": 0.0},
    "mlm": {"itc_weight": 0.0, "mlm_weight": 1.0, "itm_weight": 0.0},
    "itm": {"itc_weight": 0.0, "mlm_weight": 0.0},
    "sum": {},
}


def make_objective(task: str, variant: str) -> nn.Module:
    """In float64, with drop path and dropout on."""
    torch.manual_seed(0)
    config = VLMoConfig.tiny(**VARIANTS[variant], drop_path_rate=0.3, hidden_dropout_prob=0.1)
    if task == "mim":
        model = shaken(VLMoForMaskedImageModeling(config))
        return VisionObjective(model, tokenizer=FixedTokens()).double().train()
    if task == "language":
        return LanguageObjective(shaken(VLMoForMaskedLM(config)), freeze=False).double().train()
    losses = VisionLanguageConfig(**STAGE_3.get(task, {"mlm_weight": 0}))
    model = (VLMoForImageTextRetrieval if task == "retrieval" else VLMoForPreTraining)(config)
    return VisionLanguageObjective(shaken(model), config=losses).double().train()


def make_doubles() -> dict[str, Tensor]:
    batch = make_batch()
    return batch | {"pixel_values": batch["pixel_values"].double()}


def result(objective: nn.Module) -> Results:
    torch.manual_seed(5)
    return results(objective, make_doubles())


def check_equal(actual: Results, expected: Results) -> None:
    for part, wanted in zip(actual, expected, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(
                part.get(name, torch.zeros_like(value)), value, atol=1e-10, rtol=1e-9, msg=name
            )


def compute_everything(monkeypatch) -> None:
    """Makes the last block compute all tokens; those that are wanted are taken out afterwards."""
    run = VLMoModel._run

    def run_all(self, sequence, *, queries=None, **options):
        states = run(self, sequence, **options)
        return states if queries is None else queries.select(states)

    monkeypatch.setattr(VLMoModel, "_run", run_all)


@pytest.mark.parametrize(
    ("task", "variant"),
    [
        *product(("sum", "mim", "language"), VARIANTS),
        *product(("itc", "mlm", "itm", "retrieval"), ("base", "beit3")),
    ],
)
def test_last_block_for_wanted_tokens_alone(task, variant, monkeypatch):
    objective = make_objective(task, variant)
    actual = result(objective)
    compute_everything(monkeypatch)
    check_equal(actual, result(objective))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_each_implementation_of_attention_gives_the_same(implementation, monkeypatch):
    objective = make_objective("sum", "base")
    expected = result(objective)
    objective.model.set_attn_implementation(implementation)
    monkeypatch.setattr("vlmo.model.cpu.trains_on_cpu", lambda _: False)
    check_equal(result(objective), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_recomputed_activations_of_the_wanted_tokens_alone(variant):
    objective = make_objective("sum", variant)
    expected = result(objective)
    objective.model.activation_checkpointing_enable()
    check_equal(result(objective), expected)


@pytest.mark.parametrize(
    ("task", "tokens"),
    # Eight rows of first tokens; beside them masked words or patches, filled up to eight of each row.
    [
        ("itc", {8}),
        ("itm", {3 * 8}),
        ("mlm", {8 * 9}),
        ("mim", {8 * 9}),
        ("language", {8 * 9}),
        ("sum", {8, 32 * 9}),
    ],
)
@torch.no_grad()
def test_last_expert_sees_the_wanted_tokens_alone(task, tokens):
    objective = make_objective(task, "base")
    seen: set[int] = set()
    last: MultiwayBlock = objective.model.vlmo.blocks[-1]
    for expert in last.experts.values():
        expert.register_forward_hook(lambda _, given, __: seen.add(given[0].shape[:2].numel()))
    objective(make_doubles())
    assert seen - {8} == tokens - {8}  # the contrast runs always, as it draws the negatives


def test_reasoning_about_two_pictures(monkeypatch):
    torch.manual_seed(0)
    config = VLMoConfig.tiny(num_modality_types=3, num_labels=2)
    model = shaken(VLMoForVisualReasoning(config)).double()
    batch = make_doubles()
    given = {
        "pixel_values": batch["pixel_values"].unflatten(0, (4, 2)),
        "input_ids": batch["input_ids"][:4],
        "attention_mask": batch["attention_mask"][:4],
        "labels": torch.tensor([0, 1, 1, 0]),
    }
    loss = model(**given).loss
    compute_everything(monkeypatch)
    torch.testing.assert_close(model(**given).loss, loss)


@pytest.mark.parametrize("padding", [0, 24])
def test_text_padded_further_than_the_longest(padding):
    objective = make_objective("sum", "base").eval()
    expected = result(objective)
    fill = {"input_ids": 0, "attention_mask": 0, "mlm_input_ids": 0, "mlm_labels": -100}
    padded = {
        name: nn.functional.pad(value, (0, padding), value=fill[name]) if name in fill else value
        for name, value in make_doubles().items()
    }
    check_equal(results(objective, padded), expected)
