"""What people put around a model: compilation, device maps, bfloat16, shards, checkpointing, adapters of PEFT."""

import contextlib
import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.toy_model import BEIT3, pictures, texts, toy
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo import (
    VLMoConfig,
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForSemanticSegmentation,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
    VLMoModel,
)
from vlmo.checkpoints.loading import read_state_dict
from vlmo.model.stages import start_from

# A compiler may put other operations, with other roundings, in the place of ours.
COMPILED = 1e-5
# bfloat16 keeps 8 bits. Largest difference seen with ten random models of each class: 0.052 of the largest value.
SHARE_BFLOAT16 = 1e-1
# Adding an adapter to a weight once, or its output at each call: float32 sums in another order.
MERGED = 1e-5

VARIANTS = {"vlmo": {}, "beit3": BEIT3}

# Torch's compiler looks at this attribute of every input, and silences the warning unless warnings are errors.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"
)


def pairs() -> dict[str, Tensor]:
    return {"pixel_values": pictures(3), **texts([5, 8, 3])}


def outputs(model: nn.Module) -> dict[str, Tensor]:
    """Everything that a retrieval model says about the pairs."""
    with torch.no_grad():
        return {**model(**pairs()), "match_logits": model.match(**pairs())}


def check_equal(
    given: dict[str, Tensor], expected: dict[str, Tensor], *, atol: float = 0.0
) -> None:
    assert given.keys() == expected.keys()
    for name, value in given.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=atol, msg=name)


def match_loss(model: nn.Module) -> Tensor:
    return F.cross_entropy(model.match(**pairs()), torch.tensor([1, 0, 1]))


def contrast_and_match_loss(model: nn.Module) -> Tensor:
    output = model(**pairs())
    own = torch.arange(3)
    contrast = F.cross_entropy(output.logits_per_image, own) + F.cross_entropy(
        output.logits_per_text, own
    )
    return contrast + match_loss(model)


def gradients(model: nn.Module, loss_of=contrast_and_match_loss) -> dict[str, Tensor]:
    model.train()
    loss_of(model).backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@contextlib.contextmanager
def compiled(backbone: nn.Module, *, backend: str):
    """Every block compiled by itself, an error at the first graph break; gives what torch counts on the way."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    for block in backbone.blocks:
        block.compile(fullgraph=True, backend=backend)
    yield torch._dynamo.utils.counters
    torch.compiler.reset()


INPUTS = {
    "image": {"pixel_values": pictures(3)},
    "padded text": texts([5, 8, 3]),
    "padded pair": pairs(),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", INPUTS)
@torch.no_grad()
def test_blocks_compile_without_a_graph_break(name, variant):
    """By the part that captures graphs; a C++ compiler is not everywhere, and has no say in graph breaks."""
    model = toy(VLMoModel, **{"num_hidden_layers": 2} | VARIANTS[variant])
    expected = model(**INPUTS[name]).last_hidden_state
    with compiled(model, backend="eager") as counters:
        torch.testing.assert_close(
            model(**INPUTS[name]).last_hidden_state, expected, rtol=0, atol=COMPILED
        )
        # Blocks with and without a `vision_language` expert.
        assert counters["stats"]["unique_graphs"] == (2 if variant == "vlmo" else 1)
        assert not counters["graph_break"]


def test_compiled_blocks_have_the_same_gradients():
    expected = gradients(toy(VLMoForImageTextRetrieval, num_hidden_layers=2), match_loss)
    model = toy(VLMoForImageTextRetrieval, num_hidden_layers=2)
    with compiled(model.vlmo, backend="aot_eager"):
        check_equal(gradients(model, match_loss), expected, atol=COMPILED)


@pytest.mark.parametrize(
    "device_map", [{"vlmo": "disk", "contrast_head": "cpu", "match_head": "cpu"}, {"": "disk"}]
)
def test_model_runs_with_parts_on_disk(device_map, tmp_path):
    model = toy(VLMoForImageTextRetrieval)
    model.save_pretrained(tmp_path / "model")
    loaded = VLMoForImageTextRetrieval.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    assert loaded.vlmo.blocks[1].attention.qkv["shared"].weight.device.type == "meta"
    check_equal(outputs(loaded), outputs(model))


BFLOAT16 = [
    (VLMoModel, pairs(), {}),
    (VLMoModel, pairs(), BEIT3),
    (VLMoForPreTraining, pairs(), {}),
    (VLMoForMaskedLM, texts([5, 8, 3]), {}),
    (
        VLMoForMaskedImageModeling,
        {"pixel_values": pictures(3), "bool_masked_pos": torch.eye(3, 16).bool()},
        {},
    ),
    (VLMoForVisualQuestionAnswering, pairs(), {"num_labels": 7}),
    (
        VLMoForVisualReasoning,
        {**pairs(), "pixel_values": pictures(6).unflatten(0, (3, 2))},
        {"num_modality_types": 3},
    ),
    (VLMoForImageClassification, {"pixel_values": pictures(3)}, {"num_labels": 7}),
    (
        VLMoForSemanticSegmentation,
        {"pixel_values": pictures(3)},
        {"num_labels": 7, "segmentation_channels": 8},
    ),
]


@pytest.mark.parametrize(("model_class", "inputs", "changes"), BFLOAT16)
@torch.no_grad()
def test_bfloat16_stays_close_to_float32(model_class, inputs, changes, tmp_path):
    model = toy(model_class, **changes)
    model.save_pretrained(tmp_path)
    half = model_class.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    expected = model(**inputs)
    given = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    for name, value in half(**given).items():
        difference = (value.float() - expected[name]).abs().max()
        assert torch.isfinite(value).all()
        assert difference > 0
        assert difference < SHARE_BFLOAT16 * expected[name].abs().max(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_shards_come_back_bit_by_bit(variant, tmp_path):
    model = toy(VLMoForPreTraining, **VARIANTS[variant])
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    started = VLMoForPreTraining(VLMoConfig.tiny(**VARIANTS[variant]))
    assert not start_from(started, tmp_path).missing
    for loaded in (VLMoForPreTraining.from_pretrained(tmp_path).state_dict(), started.state_dict()):
        check_equal(dict(loaded), dict(model.state_dict()))
    check_equal(dict(read_state_dict(tmp_path)), dict(model.state_dict()))
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(ValueError, match="is it whole"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_recomputes_blocks_and_keeps_gradients(variant):
    expected = gradients(toy(VLMoForImageTextRetrieval, **VARIANTS[variant]))
    model, calls = toy(VLMoForImageTextRetrieval, **VARIANTS[variant]), []
    model.activation_checkpointing_enable()
    model.vlmo.blocks[0].attention.register_forward_hook(lambda *_: calls.append(1))
    check_equal(gradients(model), expected)
    assert len(calls) == 2 * 3  # image, text and pair, each forward and again backward


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft 0.21 asks for it
@pytest.mark.parametrize("variant", VARIANTS)
def test_adapters_on_every_linear_layer_train_alone_and_merge(variant):
    before = toy(VLMoForImageTextRetrieval, **VARIANTS[variant])
    model = get_peft_model(
        copy.deepcopy(before), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    )
    check_equal(outputs(model.eval()), outputs(before))  # adapters start at zero
    linear = {name for name, module in before.named_modules() if isinstance(module, nn.Linear)}
    assert any(".attention.qkv." in name for name in linear)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == {
        f"base_model.model.{name}.lora_{side}.default.weight" for name in linear for side in "AB"
    }
    optimizer, losses = torch.optim.AdamW(trained.values(), lr=3e-2), []
    for _ in range(12):
        loss = contrast_and_match_loss(model.train())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    expected = outputs(model.eval())
    merged = model.merge_and_unload()
    assert type(merged) is VLMoForImageTextRetrieval
    assert merged.state_dict().keys() == before.state_dict().keys()
    check_equal(outputs(merged), expected, atol=MERGED)
