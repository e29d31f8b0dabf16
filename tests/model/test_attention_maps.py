from __future__ import annotations

import pytest
import torch
from tests.toy_model import BEIT3, pictures, texts, toy

from vlmo.model import VLMoForImageTextRetrieval, VLMoModel
from vlmo.model.attention_maps import attention_maps, maps_by_word


@pytest.mark.parametrize(
    ("changes", "text", "patches"),
    [
        ({"num_fusion_layers": 2}, slice(0, 8), slice(9, 25)),
        # BEiT-3's order: class token and patches stand before the text.
        (BEIT3 | {"num_fusion_layers": 0}, slice(17, 25), slice(1, 17)),
    ],
    ids=["text_first", "image_first"],
)
def test_maps_are_the_attention_of_text_to_patches_in_the_fusion_layers(
    changes, text, patches
) -> None:
    given = {"pixel_values": pictures(), **texts([5, 8])}
    model = toy(VLMoForImageTextRetrieval, **changes, use_pooler=True)
    maps = attention_maps(model, **given)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    attentions = model.vlmo(**given, output_attentions=True).attentions
    layers = attentions[-(model.config.num_fusion_layers or 1) :]
    expected = torch.stack(layers).mean(dim=(0, 2))[:, text, patches]
    torch.testing.assert_close(maps, expected.unflatten(-1, (4, 4)))


def test_maps_follow_the_grid_of_the_image() -> None:
    given = {"pixel_values": pictures(size=(32, 64)), **texts([5, 8])}
    assert attention_maps(toy(VLMoModel), **given).shape == (2, 8, 2, 4)


def test_pieces_join_their_word() -> None:
    maps = torch.arange(6.0)[:, None, None].expand(-1, 2, 2)
    for tokens in (
        ["[CLS]", "red", "mush", "##room", "[SEP]", "[PAD]"],
        ["<s>", "▁red", "▁mush", "room", "</s>", "<pad>"],
    ):
        words, joined = maps_by_word(maps, tokens=tokens)
        assert words == ["red", "mushroom"]
        assert joined[:, 0, 0].tolist() == [1.0, 2.5]
    words, joined = maps_by_word(maps, tokens=["<s>", "▁a", "▁", "2", "▁b", "</s>"])
    assert words == ["a", "2", "b"]
    assert joined[:, 0, 0].tolist() == [1.0, 2.5, 4.0]
    with pytest.raises(ValueError, match="6 maps"):
        maps_by_word(maps, tokens=["red"])
    with pytest.raises(ValueError, match="1 maps"):
        maps_by_word(maps[:1], tokens=["[CLS]"])
