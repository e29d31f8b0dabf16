"""The dual encoder for inference: the same vectors, with fewer operations."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tests.toy_model import BEIT3, pictures, texts, toy

from vlmo.model import VLMoForImageTextRetrieval, VLMoForPreTraining, inference
from vlmo.model.inference import PackedLinear

VARIANTS = {
    "plain": {},
    "absolute": {"position_embedding": "absolute", "layer_scale_init": None},
    "one expert": {"experts": "shared"},
    "beit3": BEIT3,
    "one layer": {"num_hidden_layers": 1},
}
# The same sums with factors in other places; vectors have length one.
FLOAT32_TOLERANCE = 2e-6
# Eight bits of mantissa, rounded after each operation.
BFLOAT16_COSINE = 0.998
# Scales for each output and each token leave about one part in 127 of the largest value.


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def captions() -> dict[str, torch.Tensor]:
    return texts([5, 8, 3], padded_to=16)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("model_class", [VLMoForImageTextRetrieval, VLMoForPreTraining])
def test_vectors_are_those_of_the_model(model_class, changes):
    model = toy(model_class, **changes)
    encoder = model.for_inference()
    images = model.get_image_features(pictures(3))
    assert (images[0] - images[1]).abs().max() > 100 * FLOAT32_TOLERANCE
    torch.testing.assert_close(encoder.get_image_features(pictures(3)), images, atol=FLOAT32_TOLERANCE, rtol=0)
    vectors = model.get_text_features(**captions())
    assert (vectors[0] - vectors[1]).abs().max() > 100 * FLOAT32_TOLERANCE
    torch.testing.assert_close(encoder.get_text_features(**captions()), vectors, atol=FLOAT32_TOLERANCE, rtol=0)


@pytest.mark.parametrize("changes", [{}, VARIANTS["absolute"]], ids=["relative", "absolute"])
def test_large_batches_in_bfloat16_go_through_the_layers_in_parts(changes, monkeypatch):
    encoder = toy(VLMoForImageTextRetrieval, **changes).for_inference(dtype=torch.bfloat16)
    pixels, words = pictures(5).bfloat16(), texts([5, 8, 3, 6, 2])
    rows = []
    for tower in (encoder.images, encoder.texts):
        tower.layers[0].norm1.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    whole = encoder.get_image_features(pixels), encoder.get_text_features(**words)
    assert rows == [5, 5]
    rows.clear()
    monkeypatch.setattr(inference, "_LARGEST_BYTES", 2 * 8 * encoder.images._row_bytes)  # two texts of 8 tokens
    torch.testing.assert_close(encoder.get_image_features(pixels), whole[0], atol=0.02, rtol=0)
    assert max(rows) == 1  # pictures have more tokens
    rows.clear()
    torch.testing.assert_close(encoder.get_text_features(**words), whole[1], atol=0.02, rtol=0)
    assert rows == [2, 2, 1]


@pytest.mark.parametrize("changes", [{}, VARIANTS["absolute"]], ids=["relative", "absolute"])
def test_other_sizes_and_lengths_in_any_order(changes):
    model = toy(VLMoForImageTextRetrieval, **changes)
    encoder = model.for_inference()
    for size in ((64, 64), (32, 96), (64, 64)):
        given = pictures(2, size=size)
        expected = model.get_image_features(given)
        torch.testing.assert_close(encoder.get_image_features(given), expected, atol=FLOAT32_TOLERANCE, rtol=0)
    for length in (7, 20, 4):
        ids = texts([length, length])["input_ids"]
        expected = model.get_text_features(ids)
        torch.testing.assert_close(encoder.get_text_features(ids), expected, atol=FLOAT32_TOLERANCE, rtol=0)


@pytest.mark.parametrize("changes", [{}, VARIANTS["beit3"]], ids=["plain", "beit3"])
def test_bfloat16_stays_close(changes):
    model = toy(VLMoForImageTextRetrieval, hidden_size=64, size=0.05, **changes)
    images, vectors = model.get_image_features(pictures(3)), model.get_text_features(**captions())
    encoder = model.for_inference(dtype=torch.bfloat16)
    found = encoder.get_image_features(pictures(3)), encoder.get_text_features(**captions())
    for rows, expected in zip(found, (images, vectors), strict=True):
        assert rows.dtype == torch.float32
        assert (rows * expected).sum(dim=1).min() > BFLOAT16_COSINE
        assert not torch.equal(rows, expected)
    assert encoder.dtype == torch.bfloat16


def test_shared_weights_are_held_once_and_the_model_is_left_alone():
    model = toy(VLMoForImageTextRetrieval)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoder = model.for_inference()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert encoder.images.layers[0].query is encoder.texts.layers[0].query
    assert encoder.images.layers[0].fc1 is not encoder.texts.layers[0].fc1
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    expected = encoder.get_image_features(pictures())
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(encoder.get_image_features(pictures()), expected)


def test_kept_biases_follow_a_change_of_type():
    encoder = toy(VLMoForImageTextRetrieval).for_inference()
    encoder.get_image_features(pictures())
    encoder.get_text_features(**captions())
    assert encoder.to(torch.bfloat16).get_image_features(pictures()).isfinite().all()
    assert encoder.get_text_features(**captions()).isfinite().all()


def test_wrong_inputs_are_named():
    model = toy(VLMoForImageTextRetrieval)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 3\); expected \(2, 3\)"):
        model.for_inference().get_text_features(torch.ones(2, 3, dtype=torch.long), torch.ones(1, 3))
    with pytest.raises(ValueError, match="pixel_values have shape"):
        model.for_inference().get_image_features(torch.zeros(1, 3, 30, 64))


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_packed_layer_is_a_linear_layer(dtype, gelu):
    weight, bias, hidden = torch.randn(24, 16), torch.randn(24), torch.randn(2, 5, 16)
    layer = PackedLinear(weight.to(dtype), bias.to(dtype), gelu=gelu)
    assert layer.weight.is_mkldnn == (dtype == torch.float32)  # other types take the plain way
    sums = hidden.double() @ weight.double().T + bias.double()
    expected = torch.nn.functional.gelu(sums) if gelu else sums
    torch.testing.assert_close(layer(hidden.to(dtype)).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_packed_layer_can_be_copied_and_changes_its_type(again):
    layer = PackedLinear(torch.randn(24, 16), torch.randn(24))
    hidden = torch.randn(3, 16)
    other = again(layer)
    assert torch.equal(other(hidden), layer(hidden))
    assert other.weight.is_mkldnn
    double = other.double()
    assert double.weight.dtype == torch.float64
    torch.testing.assert_close(double(hidden.double()).float(), layer(hidden), atol=1e-5, rtol=0)


def test_towers_can_be_compiled():
    model = toy(VLMoForImageTextRetrieval, **VARIANTS["one layer"])
    encoder = model.for_inference()
    expected = encoder.get_image_features(pictures(2))
    encoder.images.compile(backend="aot_eager")
    torch.testing.assert_close(encoder.get_image_features(pictures(2)), expected, atol=FLOAT32_TOLERANCE, rtol=0)
