"""Which tokens pass through which expert, in each of the three ways in."""

from unittest import mock

import pytest
import torch
from tests.toy_model import pictures, texts, toy
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vlmo import distributed
from vlmo.model import VLMoModel
from vlmo.model.multiway import OutputTokens, Route, additive_mask, attend
from vlmo.run.fake_cuda import FAKE_CUDA, fake_cuda

WAYS = ("image", "text", "pair")
NUM_TEXT = 6
ATOL = 1e-6  # float32 sums in another order


def inputs(way: str) -> dict[str, torch.Tensor]:
    given = {} if way == "text" else {"pixel_values": pictures()}
    return given if way == "image" else given | texts([NUM_TEXT, NUM_TEXT])


@torch.no_grad()
def changed_tokens(model: VLMoModel, module: nn.Module, *, layer: int, way: str) -> set[str]:
    """Whether text, image or both differ after `layer` once every parameter of `module` has moved."""

    def states() -> dict[str, torch.Tensor]:
        hidden = model(**inputs(way), output_hidden_states=True).hidden_states[1 + layer]
        num_text = 0 if way == "image" else NUM_TEXT
        return {"text": hidden[:, :num_text], "image": hidden[:, num_text:]}

    before = states()
    for parameter in module.parameters():
        parameter.add_(1.0)
    after = states()
    for parameter in module.parameters():
        parameter.sub_(1.0)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    for name in changed:  # a module that acts on a modality acts on all of its tokens
        assert torch.all((before[name] != after[name]).any(dim=-1))
    return changed


def expected_experts(way: str, *, fused: bool) -> dict[str, set[str]]:
    if way != "pair":
        return {"image": {"vision": {"image"}}, "text": {"language": {"text"}}}[way]
    return (
        {"vision_language": {"text", "image"}}
        if fused
        else {"vision": {"image"}, "language": {"text"}}
    )


def test_drop_path_drops_text_and_image_of_a_pair_apart_below_the_fusion_experts():
    block = (
        toy(VLMoModel, num_fusion_layers=1, drop_path_rate=0.5, layer_scale_init=None)
        .train()
        .blocks[-1]
    )
    hidden = torch.randn(64, 12, block.experts["vision"].fc2.out_features)
    for fusion, kinds in ((False, 4), (True, 2)):
        route = Route(num_text=5, num_image=7, fusion=fusion)
        with mock.patch.object(
            block.attention, "forward", lambda hidden, **_: (torch.zeros_like(hidden), None)
        ):
            changed = block(hidden, None, route=route)[0] != hidden
        text, image = changed[:, :5].any(dim=(1, 2)), changed[:, 5:].any(dim=(1, 2))
        # A part is dropped as a whole.
        assert torch.equal(text, changed[:, :5].any(dim=2).all(dim=1))
        assert torch.equal(image, changed[:, 5:].any(dim=2).all(dim=1))
        assert len(set(zip(text.tolist(), image.tolist(), strict=True))) == kinds


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("num_fusion_layers", [0, 1, 2, 3])
def test_experts_see_the_tokens_that_the_paper_gives_them(way, num_fusion_layers):
    model = toy(VLMoModel, num_fusion_layers=num_fusion_layers)
    for layer, block in enumerate(model.blocks):
        top = layer >= 3 - num_fusion_layers
        assert set(block.experts) == {"vision", "language"} | (
            {"vision_language"} if top else set()
        )
        expected = expected_experts(way, fused=top)
        for name, expert in block.experts.items():
            assert changed_tokens(model, expert, layer=layer, way=way) == expected.get(
                name, set()
            ), (layer, name)


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_shared_parts_equal_separate_parts_with_the_same_weights(way):
    shared = toy(VLMoModel, experts="shared", attention="shared")
    separate = toy(VLMoModel, experts="multiway", attention="separate")
    state = shared.state_dict()
    for name in ("vision", "language", "vision_language"):
        copied = {key.replace(".shared.", f".{name}."): value for key, value in state.items()}
        separate.load_state_dict(copied, strict=False)
    torch.testing.assert_close(
        separate(**inputs(way)).last_hidden_state,
        shared(**inputs(way)).last_hidden_state,
        atol=ATOL,
        rtol=ATOL,
    )


def test_drop_path_rises_with_depth_and_is_off_in_evaluation():
    dropping, plain = toy(VLMoModel, drop_path_rate=0.5), toy(VLMoModel)
    assert [block.drop_path for block in dropping.blocks] == [0.0, 0.25, 0.5]
    states = [model(**inputs("pair")).last_hidden_state for model in (dropping, plain)]
    assert torch.equal(*states)
    torch.manual_seed(1)
    assert not torch.allclose(dropping.train()(**inputs("pair")).last_hidden_state, states[1])


def test_gradients_of_what_is_read_often_do_not_depend_on_threads():
    """With several threads, PyTorch adds up the gradient of an index in any order."""
    torch.set_num_threads(2)  # each test starts with one
    bias, states, places = (
        torch.randn(2, 17, 17),
        torch.randn(64, 17, 32),
        torch.randint(0, 17, (128, 16)),
    )
    queries, rows = OutputTokens(places, num_text=0), torch.randint(0, 64, (256,))
    upstream = torch.randn(128, 2, 16, 17), torch.randn(256, 17, 32)

    def rows_of(bias: Tensor) -> Tensor:
        return additive_mask(bias, None, queries=queries, dtype=bias.dtype)

    def gradients() -> list[torch.Tensor]:
        inputs = bias.clone().requires_grad_(), states.clone().requires_grad_()
        read = rows_of(inputs[0]), distributed.exchange(inputs[1], rows)
        torch.autograd.backward(read, upstream)
        return [value.grad for value in inputs]

    assert torch.equal(rows_of(bias), bias[:, places].transpose(0, 1))
    first = gradients()
    for _ in range(20):
        assert all(map(torch.equal, first, gradients()))


def test_bias_of_a_gpu_is_filled_once_in_half_precision(monkeypatch) -> None:
    """Rows of 35 keys lie 48 apart, which PyTorch's kernels read as they are."""
    filled: list[int] = []
    masks: list[Tensor] = []

    class Filled(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if not masks and isinstance(result, Tensor) and result.shape[:3] == (8, 4, 35):
                filled.append(result.untyped_storage()._cdata)
            return result

    def attention(query, key, value, *, attn_mask):
        masks.append(attn_mask)
        return query

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", attention)
    with fake_cuda():
        qkv = torch.empty(8, 35, 3, 4, 16, device=FAKE_CUDA, dtype=torch.bfloat16)
        bias = torch.empty(4, 35, 35, device=FAKE_CUDA, requires_grad=True)
        seen = torch.ones(8, 35, dtype=torch.bool, device=FAKE_CUDA)
        with Filled():
            attend(qkv, bias=bias, attention_mask=seen, queries=None, eager=False)
        (mask,) = masks
        assert (mask.dtype, mask.shape) == (torch.bfloat16, (8, 4, 35, 35))
        assert mask.stride()[1:] == (35 * 48, 48, 1)
        # Queries, keys and values are one tensor; the mask is the other.
        assert len({*filled} - {qkv.untyped_storage()._cdata}) == 1


def test_padded_rows_of_a_bias_change_no_attention(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 21, 3, 2, 8, generator=generator)
    bias = torch.randn(2, 21, 21, generator=generator, requires_grad=True)
    seen = torch.arange(21) < torch.tensor([[21], [9], [1]])

    def attended() -> tuple[Tensor, Tensor]:
        with monkeypatch.context() as fused:
            fused.setattr("vlmo.model.cpu.prefers_matrices", lambda *_: False)
            states, _ = attend(qkv, bias=bias, attention_mask=seen, queries=None, eager=False)
        (gradient,) = torch.autograd.grad(states.square().sum(), bias)
        return states, gradient

    plain_states, plain_gradient = attended()
    monkeypatch.setattr("vlmo.model.multiway._row_multiple", lambda _: 16)
    states, gradient = attended()
    assert additive_mask(bias, seen, queries=None, dtype=bias.dtype).stride(-2) == 32
    torch.testing.assert_close(states, plain_states)
    torch.testing.assert_close(gradient, plain_gradient)
