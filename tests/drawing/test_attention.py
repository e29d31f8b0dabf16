from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vlmo.drawing.attention import attention_by_word, attention_over_patches, heat_map
from vlmo.model import VLMoConfig, VLMoModel


def test_attention_is_the_mean_over_heads_of_chosen_layers() -> None:
    # Two tokens of text, the class token, 2 x 3 patches.
    attentions = torch.rand(3, 1, 2, 9, 9)
    result = attention_over_patches(tuple(attentions), text_length=2, grid=(2, 3), layers=(0, -1))
    assert result.shape == (1, 2, 2, 3)
    for token, row, column in ((0, 0, 0), (1, 0, 2), (1, 1, 1)):
        values = attentions[[0, 2], 0, :, token, 3 + row * 3 + column]
        assert result[0, token, row, column] == pytest.approx(float(values.mean()))


def test_attention_of_wrong_length_is_refused() -> None:
    attentions = (torch.rand(1, 2, 9, 9),)
    with pytest.raises(ValueError, match="9 tokens"):
        attention_over_patches(attentions, text_length=3, grid=(2, 3))
    with pytest.raises(ValueError, match="layers"):
        attention_over_patches(attentions, text_length=2, grid=(2, 3), layers=(1,))


def test_pieces_join_their_word() -> None:
    maps = torch.arange(6.0)[:, None, None].expand(-1, 2, 2)
    words, joined = attention_by_word(maps, tokens=["[CLS]", "red", "mush", "##room", "[SEP]", "[PAD]"])
    assert words == ["red", "mushroom"]
    assert joined[:, 0, 0].tolist() == [1.0, 2.5]
    words, joined = attention_by_word(maps, tokens=["<s>", "▁red", "▁mush", "room", "</s>", "<pad>"])
    assert words == ["red", "mushroom"]
    assert joined[:, 0, 0].tolist() == [1.0, 2.5]
    with pytest.raises(ValueError, match="6 maps"):
        attention_by_word(maps, tokens=["red"])
    with pytest.raises(ValueError, match="1 maps"):
        attention_by_word(maps[:1], tokens=["[CLS]"])


def test_attention_of_the_model_fits() -> None:
    config = VLMoConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_fusion_layers=1,
        patch_size=4,
        image_size=8,
        vocab_size=50,
        max_text_positions=24,
        attn_implementation="eager",
    )
    output = VLMoModel(config).eval()(
        pixel_values=torch.randn(1, 3, 8, 8),
        input_ids=torch.randint(5, 50, (1, 8)),
        attention_mask=torch.ones(1, 8, dtype=torch.int64),
        output_attentions=True,
    )
    maps = attention_over_patches(output.attentions, text_length=8, grid=(2, 2))
    assert maps.shape == (1, 8, 2, 2)
    assert (maps > 0).all()
    assert (maps.sum(dim=(-1, -2)) < 1).all()


def test_heat_is_where_the_weight_is() -> None:
    weights = torch.zeros(4, 4)
    weights[0, 3] = 2.0
    heat = np.asarray(heat_map(Image.new("RGB", (72, 72), "white"), weights, size=80)).astype(int)
    assert heat[5, 75, 1] < 100  # top right: coloured
    assert heat[70, 10].tolist() == [255, 255, 255]
    # A flat map has no colour rather than a division by zero.
    assert np.asarray(heat_map(Image.new("RGB", (8, 8), "white"), torch.ones(2, 2), size=16)).min() == 255
